"""What a run costs, from a measurement of about two seconds: passes of the backbone, time and memory.

Some batches of the run's own stream are trained on by its own loop, whose weights are thrown away afterwards; then a
few test images are evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.data import Subset

from cl_prompts.evaluation.images import TestSetImages
from cl_prompts.evaluation.logits import ModelLogits
from cl_prompts.runs.build import Data, Learner
from cl_prompts.runs.inspection.operations import OperationCounter
from cl_prompts.runs.inspection.stopwatch import Stopwatch
from cl_prompts.runs.manifest import peak_memory_bytes
from cl_prompts.runs.schema import RunConfig

SECONDS = 2.0
"""Time that the measurement aims at, most of it training."""
_PROBE = 4
"""Images of the first pass that is timed, to decide how large a measured batch may be."""


@dataclass(frozen=True)
class Passes:
    """Work in passes of one image through the frozen backbone without prompts, by floating-point operations.

    Attributes:
        gflop: a pass, in thousand million operations, a multiply-add being two.
        forward: forward passes of an image in an update.
        backward: its backward pass, in forward passes.
        evaluation_once: passes of a test image in the whole run, such as its query.
        evaluation_each: passes of a test image at every evaluation.
    """

    gflop: float
    forward: float
    backward: float
    evaluation_once: float
    evaluation_each: float


@dataclass(frozen=True)
class Measurement:
    """Times in seconds, memory in bytes, and what they were measured on.

    Attributes:
        passes: what was counted.
        batches: timed training batches, after one that was counted.
        batch_size: images from the stream in each of them.
        seconds: time of these batches, loading included.
        seconds_per_row: time of an image in an update.
        test_images: timed test images.
        seconds_once: time of a test image in the whole run.
        seconds_each: time of a test image at every evaluation.
        whole_test_set: an evaluation passes over all test images, since outputs of finished parts are kept for all.
        memory: peak of the process so far; None where the system does not tell.
        batch_memory: what training and evaluation added to that peak.
        gpu_memory: peak that tensors took on the GPU; None without one.
    """

    passes: Passes
    batches: int
    batch_size: int
    seconds: float
    seconds_per_row: float
    test_images: int
    seconds_once: float
    seconds_each: float
    whole_test_set: bool
    memory: int | None
    batch_memory: int
    gpu_memory: int | None


def measure(config: RunConfig, data: Data, learner: Learner, seconds: float | None = None) -> Measurement:
    """Train and evaluate for about so many seconds (None: `SECONDS`); the learner is spent afterwards.

    Where a batch of the run would take too long, smaller ones are measured.
    """
    seconds = SECONDS if seconds is None else seconds
    strategy, device = learner.strategy, learner.strategy.device
    clock = _clock(device)
    before = peak_memory_bytes() or 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    operations, pass_seconds = _one_pass(data, learner, clock, seconds / 40)
    strategy.train_mb_size = _affordable_batch(config, pass_seconds, seconds / 2)
    strategy.plugins.remove(learner.evaluation)
    watch = Stopwatch(clock, clock() + seconds)
    strategy.plugins.insert(0, watch)
    for experience in learner.benchmark.train_stream:
        strategy.train(experience, num_workers=config.num_workers)
        if watch.is_over:
            break
    count = max(1, min(len(data.test), config.protocol.eval_batch, int(seconds / 16 / pass_seconds)))
    evaluation = _Evaluation(learner, count)
    counted, timed = evaluation.count(), evaluation.time(clock)
    memory = peak_memory_bytes()
    counted_rows = max(1, watch.counted_rows)
    return Measurement(
        passes=Passes(
            gflop=operations / 1e9,
            forward=watch.forward / counted_rows / operations,
            backward=watch.backward / counted_rows / operations,
            evaluation_once=counted.once / operations,
            evaluation_each=counted.each / operations,
        ),
        batches=watch.batches,
        batch_size=strategy.train_mb_size,
        seconds=watch.seconds,
        seconds_per_row=watch.seconds / max(1, watch.rows),
        test_images=count,
        seconds_once=timed.once,
        seconds_each=timed.each,
        whole_test_set=evaluation.has_parts,
        memory=memory,
        batch_memory=0 if memory is None else memory - before,
        gpu_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds, once the device has done what it was given."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def _one_pass(data: Data, learner: Learner, clock: Callable[[], float], least: float) -> tuple[int, float]:
    """Operations and seconds of a pass of one image through the frozen backbone.

    Of more images at once until a pass takes `least` seconds: a GPU is as fast with many as with a few.
    """
    autocast, most = learner.evaluation.evaluator.logits.autocast, learner.strategy.train_mb_size
    count = min(_PROBE, most, len(data.plan.order))
    images = _first_images(data, learner, count)
    with torch.no_grad(), torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
        with OperationCounter() as counter:
            learner.backbone(images)
        operations = counter.operations // len(images)
        while True:
            learner.backbone(images)  # the first pass of a size is slower
            start = clock()
            learner.backbone(images)
            elapsed = clock() - start
            if elapsed >= least or count >= most:
                return operations, elapsed / len(images)
            count = min(4 * count, most)
            images = _first_images(data, learner, count)


def _first_images(data: Data, learner: Learner, count: int) -> torch.Tensor:
    """The first images of the stream as the backbone takes them."""
    return learner.eval_transform(data.train.images(data.plan.order[:count])).to(learner.strategy.device)


def _affordable_batch(config: RunConfig, pass_seconds: float, seconds: float) -> int:
    """The stream batch, or as much of it as this time is enough for."""
    protocol = config.protocol
    # About three passes of an image in an update: query, prompted pass, backward.
    rows = int(seconds / (3 * pass_seconds * max(1.0, protocol.updates_per_batch)))
    return max(1, min(protocol.stream_batch, rows - protocol.replay_batch))


@dataclass(frozen=True)
class _Shares:
    """Operations or seconds of a test image."""

    once: float
    """In the whole run."""
    each: float
    """At every evaluation."""


class _Evaluation:
    """A few test images, evaluated twice as a run evaluates them: what the second time leaves out is needed once."""

    def __init__(self, learner: Learner, count: int) -> None:
        self._model, self._device = learner.strategy.model, learner.strategy.device
        self._autocast = learner.evaluation.evaluator.logits.autocast
        whole = learner.evaluation.evaluator.images
        places = torch.linspace(0, len(whole) - 1, count).round().long().tolist()
        self._images = TestSetImages(Subset(whole.dataset, places), whole.transform, whole.batch_size)
        self._places = torch.arange(count)
        # All of them are decoded here: a run does so once, which is no work of the learner.
        self._images.decoded(self._places)
        self.has_parts = self._model.parts() is not None

    def count(self) -> _Shares:
        """Operations of an image."""
        with OperationCounter() as counter:
            return self._twice(lambda: counter.operations)

    def time(self, clock: Callable[[], float]) -> _Shares:
        """Seconds of an image."""
        return self._twice(clock)

    def _twice(self, read: Callable[[], float]) -> _Shares:
        logits = ModelLogits(self._images, self._autocast)
        marks = [read()]
        for _ in range(2):
            for _ in logits.of(self._model, self._places, self._device):
                pass
            marks.append(read())
        first, second = (marks[1] - marks[0]) / len(self._places), (marks[2] - marks[1]) / len(self._places)
        if self.has_parts:
            # Nothing has changed the parts between the two, whereas in a run they learn between evaluations.
            return _Shares(0.0, first)
        return _Shares(max(0.0, first - second), second)
