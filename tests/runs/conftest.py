"""Evaluation points are made by the helper of the metric tests; runs are small, and on one thread to be repeatable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "metrics"))


@pytest.fixture
def run_several(one_thread, tmp_path) -> Iterator[Callable]:
    """The same with several labels an image: `run_several(scenario, strategy, *words)` -> `Finished`."""
    from tiny_runs import runner, several_words

    with runner(tmp_path, several_words) as run:
        yield run
