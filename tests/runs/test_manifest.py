"""The manifest: JSON-safe, complete, and without anything of the environment it must not tell."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import pytest

from cl_prompts.runs.manifest import PACKAGES, determinism, git_state, make_manifest, peak_memory_bytes, versions


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.check_output(["git", "-C", str(folder), *identity, *arguments], text=True).strip()


def test_manifest_is_json_and_tells_no_environment_variable(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2-secret")
    manifest = make_manifest(
        command=["run.py", "name=a b"],
        started=datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        device="cpu",
        hashes={"plan": "ab", "weights": None},
        seeds={"plan": 1},
        notices=("untrained",),
        skipped={"train": ("a.png: damaged",), "test": ()},
    )
    text = json.dumps(manifest, allow_nan=False)
    assert "hunter2-secret" not in text
    assert manifest["notices"] == ["untrained"]
    assert manifest["skipped"] == {"train": ["a.png: damaged"], "test": []}
    assert manifest["command"] == "run.py 'name=a b'"
    assert manifest["started"] == "2024-01-02T03:04:05+00:00"
    assert manifest["versions"]["numpy"] == metadata.version("numpy")
    assert manifest["hardware"]["cores"] >= manifest["hardware"]["usable_cores"] >= 1
    assert manifest["hardware"]["memory_bytes"] is None or manifest["hardware"]["memory_bytes"] > 2**20
    assert isinstance(manifest["hardware"]["gpus"], list)


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert versions().keys() == {"cl-prompts", *PACKAGES}
    assert [value for name, value in versions().items() if name != "cl-prompts"] == [None] * len(PACKAGES)


def test_git_state_sees_commit_and_changes_of_the_top_folder_only(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("2")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_state(inside) is None


def test_no_git_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_determinism_promises_less_on_a_gpu():
    assert "bit for bit" in determinism("cpu")["on_equal_machines"]
    gpu = determinism("cuda:0")
    assert "up to rounding" in gpu["on_equal_machines"]
    assert "bits on a GPU" in gpu["not_guaranteed"]
    assert gpu["equal_machines"]["device"] == "cuda:0"


def test_determinism_names_what_has_to_be_equal(monkeypatch):
    import torch

    found = determinism("cpu")
    assert found["equal_machines"]["threads"] == torch.get_num_threads()
    assert "bits on a GPU" not in found["not_guaranteed"]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "bit for bit" in determinism("cuda:0")["on_equal_machines"]


@pytest.mark.skipif(sys.platform == "win32", reason="not told by the system")
def test_peak_memory_is_in_bytes():
    assert 2**24 < peak_memory_bytes() < 2**40


def test_collecting_a_manifest_does_not_import_torch():
    code = (
        "import sys, datetime; from cl_prompts.runs.manifest import make_manifest;"
        "import cl_prompts.runs.directory;"
        "make_manifest(command=[], started=datetime.datetime.now(), device='cpu', hashes={}, seeds={});"
        "print([m for m in ('torch', 'avalanche', 'matplotlib') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).strip() == "[]"
