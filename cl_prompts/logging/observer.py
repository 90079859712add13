"""`StrategyObserver`: what a logger may read from a running strategy, one of ours or one of Avalanche's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_prompts.labels import label_kind
from cl_prompts.plugins.stream_position import StreamPosition

RUNNING_SCORES = ("running_accuracy", "running_f1")
"""Attributes of our strategies: for one label an image, for several; the other one is NaN."""


class RunningScore(NamedTuple):
    """How good the latest training batches were predicted: a name of `RUNNING_SCORES`, and a fraction."""

    name: str
    value: float


class StrategyObserver:
    """Counts stream samples and reads losses, running score and speed; reads from the device only when asked.

    Call the methods in the hooks they are named after.

    Attributes:
        samples_seen: stream samples trained on, each presentation once; the x axis of everything.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.samples_seen = 0
        self._clock = clock
        self._position = StreamPosition()
        self._tally = RUNNING_SCORES[0]
        self._hits: Tensor | int = 0
        self._tries: Tensor | int = 0
        self._mark = self._last = clock()
        self._mark_samples: int | None = None
        self._paused = 0.0

    def before_training_epoch(self, strategy: Any) -> None:
        """Start of a pass over an experience; the time since the last batch was no training."""
        self._position.begin_epoch(strategy)
        self.pause()
        if self._mark_samples is None:
            # After a resume the stream does not begin at its first sample.
            self.samples_seen = self._mark_samples = int(getattr(strategy, "samples_seen", 0))

    def before_training_iteration(self, strategy: Any) -> None:
        """A batch was loaded."""
        self._position.begin_batch(strategy)
        self.tick()

    def after_training_iteration(self, strategy: Any) -> None:
        """A batch is done."""
        self._position.end_batch()
        self.samples_seen = int(getattr(strategy, "samples_seen", self._position.samples_seen))
        if not hasattr(strategy, RUNNING_SCORES[0]):
            self._count_hits(strategy)
        self.tick()

    def tick(self) -> None:
        """Training was going on until now."""
        self._last = self._clock()

    def pause(self) -> None:
        """What happened since the last `tick` was no training (an evaluation): keep it out of the speed."""
        now = self._clock()
        self._paused += now - self._last
        self._last = now

    def samples_per_second(self) -> float:
        """Stream samples trained on a second since the last call, pauses left out; NaN if there were none."""
        trained = self._last - self._mark - self._paused
        samples = self.samples_seen - (self._mark_samples or 0)
        self._mark, self._mark_samples, self._paused = self._last, self.samples_seen, 0.0
        return samples / trained if trained > 0 and samples > 0 else math.nan

    @staticmethod
    def losses(strategy: Any) -> dict[str, float]:
        """Latest losses by name, with their sum as `total`; one read from the device for all of them."""
        # One of ours without losses learns in closed form: the zero that Avalanche keeps for it means nothing.
        named = dict(getattr(strategy, "last_losses", {}))
        if not hasattr(strategy, "last_losses") and isinstance(getattr(strategy, "loss", None), Tensor):
            named = {"total": strategy.loss}
        if not named:
            return {}
        values = torch.stack([torch.as_tensor(value).detach().float().mean() for value in named.values()]).tolist()
        return dict(zip(named, values, strict=True))

    def running_score(self, strategy: Any) -> RunningScore:
        """Training score of late, as the strategy defines it; else since the last call. NaN if unknown.

        Accuracy, or for several labels an image the micro F1 of the visible labels at a probability of 0.5.
        """
        if hasattr(strategy, RUNNING_SCORES[0]):
            for name in RUNNING_SCORES:
                value = float(getattr(strategy, name, math.nan))
                if not math.isnan(value):
                    return RunningScore(name, value)
            return RunningScore(RUNNING_SCORES[0], math.nan)
        hits, tries = float(self._hits), float(self._tries)
        self._hits = self._tries = 0
        return RunningScore(self._tally, hits / tries if tries else math.nan)

    @staticmethod
    def learning_rates(strategy: Any) -> list[float]:
        """Learning rate of each parameter group; empty without an optimizer."""
        groups = getattr(getattr(strategy, "optimizer", None), "param_groups", [])
        return [float(group["lr"]) for group in groups if "lr" in group]

    @staticmethod
    def prompt_usage(strategy: Any) -> list[float] | None:
        """How often each prompt was chosen; None for a model without a pool."""
        usage = getattr(strategy.model, "prompt_usage", None)
        counts = usage() if callable(usage) else None
        return None if counts is None else counts.detach().flatten().tolist()

    def _count_hits(self, strategy: Any) -> None:
        logits, targets = strategy.mb_output, strategy.mb_y
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            return
        # The sums stay on the device: reading them here would make every step wait.
        if targets.ndim == 1:
            self._hits = self._hits + (logits.detach().argmax(dim=1) == targets).sum()
            self._tries = self._tries + len(targets)
        elif targets.shape == logits.shape:
            # Other strategies may keep rows of whole numbers.
            rows = targets.to(logits.dtype)
            hits, tries = label_kind(rows).hits(logits.detach(), rows)
            self._tally = RUNNING_SCORES[1]
            self._hits = self._hits + hits
            self._tries = self._tries + tries
