"""Runs of the command line are as small as those of the tests of `runs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "runs"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads; a test that compares them fixes it."""
    from tiny_runs import threads

    with threads(1):
        yield
