"""`Stopwatch`: counts and times a few batches of a training loop, then stops it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche.core import SupervisedPlugin

from cl_prompts.runs.inspection.operations import OperationCounter


class Stopwatch(SupervisedPlugin):
    """Counts the operations of the first batches up to one with an update, times those after it, and then stops.

    Args:
        clock: seconds.
        end: by that clock, when to stop.

    Attributes:
        forward: operations of forward passes in the counted batches.
        backward: operations of backward passes in them.
        counted_rows: images in their updates.
        batches: timed ones.
        rows: images in the updates of the timed batches.
        seconds: their time, loading included.
        is_over: time is up.
    """

    def __init__(self, clock: Callable[[], float], end: float) -> None:
        super().__init__()
        self.forward = self.backward = self.counted_rows = self.batches = self.rows = 0
        self.seconds = 0.0
        self.is_over = False
        self._clock, self._end = clock, end
        self._counter = OperationCounter()
        self._is_counting = False
        self._mark = self._batch_rows = 0
        self._start = clock()

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """The time between experiences is no training of images."""
        self._start = self._clock()

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Counting slows a batch down: it is not timed."""
        self._batch_rows = 0
        self._is_counting = self.counted_rows == 0
        if self._is_counting:
            self._counter.__enter__()

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start of a forward pass."""
        self._mark = self._counter.operations

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """End of it; replayed images have joined the batch by now."""
        self._batch_rows += len(strategy.mb_y)
        self.forward += self._counter.operations - self._mark

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start of a backward pass."""
        self._mark = self._counter.operations

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """End of it."""
        self.backward += self._counter.operations - self._mark

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note the batch, and stop once time is up."""
        now = self._clock()
        if self._is_counting:
            self._counter.__exit__(None, None, None)
            self.counted_rows += self._batch_rows
        else:
            self.batches += 1
            self.rows += self._batch_rows
            self.seconds += now - self._start
        # Without an image in an update there would be nothing to scale by.
        self.is_over = now >= self._end and self.rows > 0
        if self.is_over:
            strategy.stop_training()
        self._start = self._clock()
