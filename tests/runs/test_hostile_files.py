"""Files that somebody made to do harm: a run folder, a checkpoint, a plan. Nothing is executed, and one line tells."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import QUIET, checked, threads, tiny_words

from cl_prompts.errors import UserError
from cl_prompts.runs.checkpoints import SCHEMA, CheckpointStore
from cl_prompts.runs.command_line import main
from cl_prompts.runs.execute import execute
from cl_prompts.runs.loading import load_run
from cl_prompts.runs.state_file import FORMAT, to_bytes
from scenarios import load_plan


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def canary(tmp_path) -> Path:
    """Exists once something was executed."""
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    with threads(1):
        config = checked(*tiny_words("linear_probe"), *QUIET, f"output={output}", "name=run", "scenario.n_sessions=2")
        assert execute(config) == 0
    return output / "run"


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def file_of(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    """The content of a file laid out as safetensors."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def with_metadata(metadata) -> bytes:
    return file_of(json.dumps({"__metadata__": metadata}).encode())


def with_tree(tree: str) -> bytes:
    return with_metadata({"format": FORMAT, "tree": tree})


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Harm(canary))


def zipped(canary: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
        archive.writestr("../../canary", "escaped")
    return file.getvalue()


def saved_by_torch(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"state": Harm(canary)}, file)
    return file.getvalue()


CHECKPOINTS = {
    "pickle": pickled,
    "zip": zipped,
    "torch": saved_by_torch,
    "header of 2^64 bytes": lambda canary: file_of(b"{}", 2**64 - 1),
    "header longer than the file": lambda canary: file_of(b"{}", 10**6),
    "no bytes": lambda canary: b"",
    "lists in lists in the header": lambda canary: file_of(b"[" * 200_000),
    "dictionaries in the header": lambda canary: file_of(b'{"__metadata__":' * 50_000),
    "lists in lists in the tree": lambda canary: with_tree("[" * 100_000 + "]" * 100_000),
    "pairs in pairs": lambda canary: with_tree('{"tuple":[' * 50_000 + "]}" * 50_000),
    "a number of 10^5 digits": lambda canary: with_tree("9" * 100_000),
    "metadata as text": lambda canary: with_metadata("tree"),
    "metadata as a list": lambda canary: with_metadata([1, 2]),
    "another format": lambda canary: with_metadata({"format": "x" * 1000 + "\nline", "tree": "{}"}),
    "a tree that is no text": lambda canary: with_metadata({"format": FORMAT, "tree": 7}),
    "an unknown mark": lambda canary: with_tree('{"object": "os.system"}'),
    "two marks": lambda canary: with_tree('{"tuple": [], "pairs": []}'),
    "a key that is a list": lambda canary: with_tree('{"pairs": [[[1], 2]]}'),
    "a tensor that is not there": lambda canary: with_tree('{"tensor": "../0"}'),
    "a list in place of a state": lambda canary: with_tree("[1]"),
    "nothing": lambda canary: with_tree("null"),
    "another schema": lambda canary: to_bytes({"schema": "\n\n"}),
    "no state of a run": lambda canary: to_bytes({"schema": SCHEMA, "strategy": 3}),
    "an identity of another kind": lambda canary: to_bytes({"schema": SCHEMA, "identity": [1]}),
    "content of another kind": lambda canary: to_bytes({"schema": SCHEMA, "identity": {"content": {"plan": {}}}}),
}


def replace_checkpoint(folder: Path, content: bytes) -> None:
    """As an attacker would, who knows how names are made."""
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    digest = hashlib.sha256(content).hexdigest()[:32]
    (folder / "checkpoints" / f"{40:012d}-{digest}.safetensors").write_bytes(content)


def assert_one_line(error: BaseException) -> None:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 1000


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_hostile_checkpoint_is_one_line(kind, folder, canary, capsys):
    replace_checkpoint(folder, CHECKPOINTS[kind](canary))
    with pytest.raises(UserError) as caught:
        load_run(folder)
    assert_one_line(caught.value)
    assert not canary.exists()


STATES = {
    "strategy": lambda state: state.update(strategy={"strategy": "os.system"}),
    "no method": lambda state: state["strategy"].pop("method"),
    "tensors that do not fit": lambda state: state["strategy"]["method"].update(
        tensors={"head.weight": torch.zeros(1)}
    ),
    "no tensors": lambda state: state["strategy"]["method"].update(tensors=[1]),
    "a generator of another kind": lambda state: state["strategy"]["method"].update(generator=torch.zeros(3)),
    "an optimizer of another kind": lambda state: state["strategy"].update(optimization={"optimizer": {"state": 1}}),
    "more classes than fit": lambda state: state["identity"]["content"].update(classes=["a"] * 3),
    "a size that is none": lambda state: state["identity"]["content"]["input"].update(size=-1),
    "a filter that is none": lambda state: state["identity"]["content"]["input"].update(interpolation="__class__"),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_with_other_content_is_one_line(kind, folder):
    store = CheckpointStore(folder / "checkpoints")
    state = store.load(lambda text: None)
    assert state is not None
    STATES[kind](state)
    replace_checkpoint(folder, to_bytes(state))
    with pytest.raises(UserError) as caught:
        load_run(folder)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    "kind", ["no state of a run", "pickle", "content of another kind", "lists in lists in the tree"]
)
def test_resuming_from_a_hostile_checkpoint_is_one_line(kind, folder, canary, capsys, one_thread):
    replace_checkpoint(folder, CHECKPOINTS[kind](canary))
    (folder / "summary.json").unlink()
    assert main([f"resume={folder}", "progress=none"]) != 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "unexpected" not in line
    assert not canary.exists()


CONFIGS = {
    "a tag of Python": "!!python/object/apply:os.mkdir ['{canary}']",
    "such a tag in a key": "seed: !!python/object/new:os.mkdir ['{canary}']",
    "a tag of its own": "seed: !exec ls",
    "a date that is none": "seed: 2001-99-99",
    "lists in lists": "seed: " + "[" * 500,
    "references to references": "a: &a [x, x, x, x]\n"
    + "\n".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
    ),
    "a list": "[1, 2]",
    "text": "run",
    "bytes": "\x00",
    "a group of another kind": "strategy: [mvp]",
    "a module by its path": "strategy: {{name: ../../os}}",
    "an interpolation": "strategy: {{name: '${{oc.env:HOME}}'}}",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_hostile_configuration_is_one_line(kind, folder, canary, capsys):
    (folder / "config.yaml").write_text(CONFIGS[kind].replace("{canary}", str(canary)), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)
    assert main([f"resume={folder}"]) == 2
    assert main(["mode=predict", f"run={folder}", f"images={folder}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)
    assert not canary.exists()


def of_objects(canary: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, order=np.array([Harm(canary)], dtype=object))
    return file.getvalue()


PLANS = {
    "objects": ("plan.npz", of_objects),
    "pickle": ("plan.npz", pickled),
    "zip of something else": ("plan.npz", zipped),
    "no bytes": ("plan.npz", lambda canary: b""),
    "lists in lists": ("plan.json", lambda canary: b"[" * 200_000),
    "a list": ("plan.json", lambda canary: b"[]"),
    "a header that is a list": ("plan.json", lambda canary: b'{"header": [], "class_names": 1, "sha256": 1}'),
    "a request that is a list": (
        "plan.json",
        lambda canary: b'{"header": {"requested": [], "format": 1}, "class_names": 1, "sha256": 1, "provenance": {}}',
    ),
    "pickle in place of text": ("plan.json", pickled),
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_hostile_plan_is_one_line(kind, folder, canary):
    name, make = PLANS[kind]
    (folder / name).write_bytes(make(canary))
    with pytest.raises(UserError) as caught:
        load_plan(folder)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_the_harm_is_real(canary):
    pickle.loads(pickled(canary))
    assert canary.exists()
