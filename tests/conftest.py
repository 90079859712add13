"""Fixtures that several rooms of the tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cl_prompts.backbones import FrozenViT
from cl_prompts.contract.toys import tiny_vit

# Tiny runs serve the tests of runs, faults and kills alike.
sys.path.append(str(Path(__file__).parent / "runs"))

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers on two cores: threads of their own would only wait for one another. Subprocesses read the variable.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_backbone() -> FrozenViT:
    return tiny_vit()


@pytest.fixture(scope="session")
def short_backbone() -> FrozenViT:
    """Three blocks, for many runs: a run takes little more than half of what six blocks take."""
    return tiny_vit(depth=3)


@pytest.fixture
def make_vit():
    return tiny_vit


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
