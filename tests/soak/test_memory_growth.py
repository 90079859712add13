"""A stream of a million synthetic samples: the memory of the process is the same after a tenth of it and at its end.

    python -m pytest -m soak tests/soak/test_memory_growth.py -s

The images are made as they are asked for, so that all that could grow is ours: counters, replay, curves, checkpoints,
what Avalanche keeps of a batch. `SOAK_SAMPLES` changes the length.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import CLASSES, SIZE, Pictures, TrainNormalise, normalise, plan_of

from cl_prompts.evaluation import Evaluator
from cl_prompts.plugins import AnytimeEvaluation, Reservoir
from cl_prompts.runs.checkpoints import CheckpointStore
from cl_prompts.strategies import load_strategy
from scenarios import benchmark_from_plan

SAMPLES = int(os.environ.get("SOAK_SAMPLES", "1000000"))
BATCH = 500
REPLAYING = ("mvp", "linear_probe")
SHORT = {"mvp": {"general_layers": (0,), "general_length": 1, "expert_layers": (1, 2), "expert_length": 1}}
ALLOWED_GROWTH = 24 * 2**20
"""Bytes, for allocators that take memory in blocks: 24 bytes a sample of a million would already be found."""


class EndlessPictures:
    """uint8 noise (16, 16, 3), made when asked for, with the brightness of its class."""

    def __init__(self, count: int) -> None:
        self.targets = np.random.default_rng(1).integers(0, CLASSES, count)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        target = int(self.targets[index])
        image = np.random.default_rng(index).integers(0, 128, (SIZE, SIZE, 3), dtype=np.uint8)
        return image + np.uint8(20 * target), target, index


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """Resident memory at every tenth of the stream, after the checkpoint that is written there."""

    def __init__(self, folder: Path) -> None:
        self.store = CheckpointStore(folder)
        self.marks: list[int] = []
        self._next = SAMPLES // 10

    def __call__(self, strategy) -> None:
        if strategy.samples_seen >= self._next:
            self._next += SAMPLES // 10
            self.store.save(strategy.samples_seen, strategy.state_dict())
            gc.collect()
            self.marks.append(resident_bytes())


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process as Linux tells it")
@pytest.mark.parametrize("name", ["mvp", "linear_probe", "ncm"])
def test_a_million_samples_leave_memory_as_it_was(name, short_backbone, tmp_path):
    torch.set_num_threads(1)
    pictures = EndlessPictures(SAMPLES)
    order = np.arange(SAMPLES).reshape(5, -1)
    benchmark = benchmark_from_plan(
        plan_of(list(order), pictures.targets), pictures, Pictures(list(range(CLASSES)) * 4)
    )
    evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise)
    strategy_class = load_strategy(name)
    evaluation = AnytimeEvaluation(evaluator, every=SAMPLES // 50)
    plugins = [Reservoir(200, 20, seed=1), evaluation] if name in REPLAYING else [evaluation]
    strategy = strategy_class(
        backbone=short_backbone,
        num_classes=CLASSES,
        train_transform=TrainNormalise(),
        eval_transform=normalise,
        updates_per_batch=1,
        train_mb_size=BATCH,
        plugins=plugins,
        settings=strategy_class.method_class.settings_class(**SHORT.get(name, {})),
    )
    watch, started = MemoryWatch(tmp_path), time.monotonic()
    strategy.batch_listeners.append(watch)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert strategy.samples_seen == SAMPLES
    mebibytes = [round(mark / 2**20, 1) for mark in watch.marks]
    print(f"\n{name}: {SAMPLES} samples in {time.monotonic() - started:.0f} s; MiB at every tenth: {mebibytes}")
    assert len(watch.marks) == 10
    assert max(watch.marks[1:]) - watch.marks[0] < ALLOWED_GROWTH
