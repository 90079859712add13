"""Every dependency has a reason and a licence that this project may depend on, as the installed packages state it."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml
from test_imports import SOURCES, libraries_of

ROOT = Path(__file__).parent.parent
LICENCES = yaml.safe_load(Path(__file__).with_name("dependency_licences.yaml").read_text(encoding="utf-8"))

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
ENTRY = re.compile(r'^  "(?P<name>[\w.-]+)[^"]*",(?P<comment>.*)$', re.MULTILINE)
"""A requirement on a line of its own, without a parser of TOML, which Python 3.10 lacks."""

REQUIRED = {
    found["name"]: found["comment"].strip()
    for found in ENTRY.finditer(PROJECT.partition("\ndependencies = [")[2])
    if found["name"] != "cl-prompts"
}


def stated(name: str) -> str | None:
    """What the installed package says about its licence; None where it is not installed.

    Where the whole text of a licence stands in place of its name, the first line is read alone: wheels append those of
    the libraries that they bring.
    """
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return None
    classifiers = [line for line in found.get_all("Classifier") or [] if line.startswith("License")]
    return "\n".join(
        [found.get("License-Expression") or "", *(found.get("License") or "").splitlines()[:1], *classifiers]
    )


def test_every_dependency_has_a_licence_here_and_no_other_has():
    assert len(REQUIRED) > 20
    assert set(LICENCES) == set(REQUIRED)
    assert {entry["kind"] for entry in LICENCES.values()} <= {"permissive", "weak", "strong"}
    assert all(entry["why"] for entry in LICENCES.values())


def test_every_dependency_of_a_run_has_its_reason_beside_it():
    runtime = PROJECT.partition("\ndependencies = [")[2].partition("\n]")[0]
    assert [found["name"] for found in ENTRY.finditer(runtime) if len(found["comment"]) < 12] == []


@pytest.mark.parametrize("name", LICENCES)
def test_the_installed_package_states_that_licence(name):
    text = stated(name)
    if text is None:
        pytest.skip(f"{name} is not installed here")
    assert LICENCES[name]["stated"] in text
    copyleft = re.search(r"(?<!L)GPL|Affero|GNU General", text)
    assert LICENCES[name]["kind"] == "strong" or not copyleft


def test_no_shipped_file_imports_what_is_under_a_strong_licence():
    strong = {name.replace("-", "_") for name, entry in LICENCES.items() if entry["kind"] == "strong"}
    assert strong == {"quadprog"}
    for module in SOURCES:
        assert not strong & libraries_of(module), module
