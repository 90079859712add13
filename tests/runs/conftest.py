"""Evaluation points are made by the helper of the metric tests; runs are small, and on one thread to be repeatable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "metrics"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads; a test that compares them fixes it."""
    from tiny_runs import threads

    with threads(1):
        yield


@pytest.fixture
def run_tiny(one_thread, tmp_path, monkeypatch) -> Callable:
    """A function that executes a tiny run in this process: `run_tiny(strategy, *words)` -> `Finished`."""
    from tiny_runs import QUIET, Finished, checked, only_folder, tiny_words

    from cl_prompts.runs import execute as module

    built: list = []
    build = module.build_learner
    monkeypatch.setattr(module, "build_learner", lambda *arguments: built.append(build(*arguments)) or built[-1])
    count = iter(range(1000))

    def run(strategy: str, *words: str) -> Finished:
        output = tmp_path / f"output {next(count)}"
        built.clear()
        config = checked(*tiny_words(strategy, *QUIET, f"output={output}", *words))
        code = module.execute(config)
        return Finished(code, only_folder(output), built[-1])

    return run
