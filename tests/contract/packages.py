"""Packages of methods written outside the project, as an installer leaves them: files beside their entry points."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def install(folder: Path, files: Mapping[str, str], entries: Mapping[str, str], package: str = "my-package") -> None:
    """Write the files of a package and what its installation says of it."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    about = folder / f"{package.replace('-', '_')}-0.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n", encoding="utf-8")
    lines = ["[cl_prompts.strategies]", *(f"{name} = {module}" for name, module in entries.items())]
    (about / "entry_points.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def template() -> tuple[dict[str, str], dict[str, str]]:
    """Files and entry points of the method that CONTRIBUTING.md tells to begin with, word by word."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"`(my_package/\S+)`:\n\n```\w+\n(.*?)```", text, re.S))
    toml = re.search(r'\[project\.entry-points\."cl_prompts\.strategies"\]\n(.*?)```', text, re.S)
    assert toml
    return files, dict(re.findall(r'^(\w+) = "(\S+)"$', toml.group(1), re.M))
