"""Saved runs: state files as trees and as bytes, folders of checkpoints, runs that are loaded and gone on with."""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from harness import Target, Violation
from hypothesis import strategies as st
from mutations import hostile_bytes, odd_values, paths_of, put, spoilt_trees
from tiny_runs import QUIET, checked, threads, tiny_words

from cl_prompts.runs.build import build_learner
from cl_prompts.runs.checkpoints import SCHEMA, CheckpointStore
from cl_prompts.runs.execute import execute
from cl_prompts.runs.loading import load_run
from cl_prompts.runs.prepared import prepare
from cl_prompts.runs.saving import resumed, saved_points
from cl_prompts.runs.state_file import FORMAT, from_bytes, to_bytes
from cl_prompts.strategies.state import restore_strategy

# State files


@cache
def states() -> tuple[dict[str, Any], ...]:
    """Small states of every kind of value."""
    return (
        {"schema": SCHEMA, "a": torch.arange(6.0).reshape(2, 3), "b": [1, (2, "x"), None, True, {"c": np.arange(3)}]},
        {"schema": SCHEMA, 3: {(1, 2): "tuple"}, "empty": {}, "text": "é\n甲", "number": 0.5},
        {
            "schema": SCHEMA,
            "half": torch.zeros(2, dtype=torch.bfloat16),
            "none": torch.zeros(0, 3),
            "bits": torch.ones(2) > 0,
        },
    )


def laid_out(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """The content of a file laid out as safetensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def taken_apart(content: bytes) -> tuple[Any, bytes]:
    """Header and body of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@st.composite
def _headers(draw: st.DrawFn) -> bytes:
    header, body = taken_apart(to_bytes(draw(st.sampled_from(states()))))
    if draw(st.booleans()):
        return laid_out(draw(spoilt_trees([header])), body)
    tree = draw(spoilt_trees([json.loads(header["__metadata__"]["tree"])]))
    header["__metadata__"] = {"format": FORMAT, "tree": json.dumps(tree)}
    return laid_out(header, body, draw(st.none() | st.sampled_from((0, 1, 10**6, 2**63, 2**64 - 1))))


_NESTED = tuple(
    laid_out({"__metadata__": {"format": FORMAT, "tree": text}})
    for text in (
        '{"tuple":[' * 900 + "]}" * 900,
        "[" * 900 + "]" * 900,
        '{"pairs":[[' * 400,
        "9" * 5000,
        "1e999",
        "NaN",
    )
)


@contextmanager
def opened_states(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Read a state; what is read can be written again."""

    def attempt(content: bytes) -> None:
        state = from_bytes(content)
        assert isinstance(state, dict)
        to_bytes(state)

    yield attempt


# Folders of checkpoints


@st.composite
def _folders(draw: st.DrawFn) -> list[tuple[int, bytes, bytes]]:
    """(samples, content that the name is of, content that lies there)."""
    contents = [to_bytes(state) for state in states()]
    files = []
    for samples in draw(st.lists(st.sampled_from((0, 10, 20, 999_999_999_999)), min_size=1, max_size=3, unique=True)):
        named = draw(st.sampled_from(contents))
        lying = draw(st.one_of(st.just(named), hostile_bytes([named]), st.sampled_from(contents)))
        files.append((samples, named if draw(st.booleans()) else lying, lying))
    return files


@contextmanager
def opened_folders(folder: Path) -> Iterator[Callable[[Any], None]]:
    """The newest file that can be read is taken, each one passed over is told."""

    def attempt(files: list[tuple[int, bytes, bytes]]) -> None:
        place = folder / "checkpoints"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for samples, named, lying in files:
            digest = hashlib.sha256(named).hexdigest()[:32]
            (place / f"{samples:012d}-{digest}.safetensors").write_bytes(lying)
        told: list[str] = []
        state = CheckpointStore(place).load(told.append)
        assert state is not None
        assert state["schema"] == SCHEMA
        if any("\n" in line or "safetensors" not in line for line in told):
            raise Violation(f"not one line about a file: {told}")

    yield attempt


# Whole runs


@cache
def finished(strategy: str) -> Path:
    """The folder of a tiny run, made once."""
    output = Path(mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, output, ignore_errors=True)
    words = ("protocol.memory_size=6", "protocol.replay_batch=2") if strategy == "mvp" else ()
    with threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = checked(
            *tiny_words(strategy), *QUIET, *words, f"output={output}", "name=run", "scenario.n_sessions=2", "device=cpu"
        )
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            assert execute(config) == 0
    return output / "run"


@cache
def saved_state(strategy: str) -> dict[str, Any]:
    """What the run left."""
    state = CheckpointStore(finished(strategy) / "checkpoints").load(print)
    assert state is not None
    return state


_TENSORS = st.sampled_from(
    (
        *(
            torch.zeros(0),
            torch.zeros(1),
            torch.zeros(3, dtype=torch.uint8),
            torch.full((2, 2), torch.nan),
            torch.zeros(10),
        ),
        *(torch.arange(3), torch.ones(4, dtype=torch.bool), torch.zeros(5056, dtype=torch.uint8), torch.tensor(7)),
    )
)


@st.composite
def _states(draw: st.DrawFn, strategy: str) -> Any:
    """A state with edits; places high in the tree are as likely as the many leaves."""
    state = saved_state(strategy)
    depth = draw(st.integers(1, 6))
    paths = [path for path in paths_of(state) if len(path) <= depth]
    path = draw(st.sampled_from(paths))
    if path and draw(st.booleans()):
        # One place alone, by a value of another kind.
        return put(deepcopy(state), path, draw(odd_values() | _TENSORS))
    return draw(spoilt_trees([state], odd_values() | _TENSORS))


def _write(folder: Path, state: Any) -> None:
    for path in folder.iterdir():
        path.unlink()
    content = to_bytes(state if isinstance(state, dict) else {"state": state})
    digest = hashlib.sha256(content).hexdigest()[:32]
    (folder / f"{40:012d}-{digest}.safetensors").write_bytes(content)


def _writable(state: Any) -> bool:
    try:
        to_bytes(state)
    except (TypeError, ValueError, UnicodeError, OverflowError):
        return False
    return isinstance(state, dict)


@contextmanager
def opened_runs(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Load the run, tell about it and predict."""
    own = Path(shutil.copytree(finished("linear_probe"), folder / "run"))
    image = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    with threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def attempt(state: Any) -> None:
            _write(own / "checkpoints", state)
            run = load_run(own)
            assert str(own) in repr(run)
            predicted = run.predict(image)
            assert len(predicted.names) == 2

        yield attempt


@contextmanager
def opened_resumes(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Compare the state with what is there and bring the strategy to it."""
    own = Path(shutil.copytree(finished("mvp"), folder / "run"))
    words = (
        "protocol.memory_size=6",
        "protocol.replay_batch=2",
        f"output={folder}",
        "name=run",
        "scenario.n_sessions=2",
    )
    config = checked(*tiny_words("mvp"), *QUIET, *words)
    device = torch.device("cpu")
    with threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = prepare(config, device)

        def attempt(state: Any) -> None:
            _write(own / "checkpoints", state)
            learner = build_learner(config, first.data, device, first.learner.backbone)
            left, found = resumed(CheckpointStore(own / "checkpoints"), config, replace(first, learner=learner), print)
            assert found is not None
            saved_points(found["strategy"])
            restore_strategy(learner.strategy, found["strategy"])
            assert left is not None

        yield attempt


def _of_folder(value: Any) -> tuple[str, ...]:
    return ("run", "checkpoint", "state", "safetensors")


def _found_runs() -> tuple[Any, ...]:
    state = saved_state("linear_probe")
    return (
        put(deepcopy(state), ("strategy", "samples_seen"), "x"),  # told only when shown
        put(deepcopy(state), ("strategy", "classes", "exposed"), torch.zeros(3)),  # told only when it predicts
        put(deepcopy(state), ("identity",), torch.zeros(0)),  # IndexError
        put(deepcopy(state), ("identity", "content", "decoding", "interpolation"), "crop"),  # KeyError
        put(deepcopy(state), ("identity", "content", "decoding", "size"), 65536),  # MemoryError
        put(deepcopy(state), ("schema",), torch.zeros(0)),  # RuntimeError: no truth in it
    )


def _found_resumes() -> tuple[Any, ...]:
    state = saved_state("mvp")
    return (
        put(deepcopy(state), ("strategy", "place"), {}),  # KeyError
        put(deepcopy(state), ("strategy", "plugins"), 3),  # TypeError
        put(deepcopy(state), ("identity", "keys", "seed"), torch.zeros(0)),  # RuntimeError: no truth in it
        put(deepcopy(state), ("strategy", "random", "numpy"), [1]),  # ValueError
    )


TARGETS = (
    Target(
        "state files: headers and trees",
        st.deferred(lambda: _headers() | st.sampled_from(_NESTED)),
        opened_states,
        lambda content: ("state",),
        share=60,
    ),
    Target(
        "state files: bytes",
        st.deferred(lambda: hostile_bytes([to_bytes(state) for state in states()])),
        opened_states,
        lambda content: ("state",),
        share=60,
    ),
    Target("folders of checkpoints", st.deferred(_folders), opened_folders, lambda files: ("safetensors",), share=40),
    Target(
        "saved runs: states",
        st.deferred(lambda: _states("linear_probe").filter(_writable)),
        opened_runs,
        _of_folder,
        30,
        _found_runs,
    ),
    Target(
        "saved runs: resumed",
        st.deferred(lambda: _states("mvp").filter(_writable)),
        opened_resumes,
        _of_folder,
        20,
        _found_resumes,
    ),
)
