"""Faults are injected into runs as small as those of the tests of `runs`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "runs"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads; a test that compares them fixes it."""
    from tiny_runs import threads

    with threads(1):
        yield


@pytest.fixture
def run_tiny(one_thread, tmp_path) -> Iterator[Callable]:
    """A function that executes a tiny run in this process: `run_tiny(strategy, *words)` -> `Finished`."""
    from tiny_runs import runner, tiny_words

    with runner(tmp_path, tiny_words) as run:
        yield run
