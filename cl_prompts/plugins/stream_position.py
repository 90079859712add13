"""`StreamPosition`: how many stream samples a strategy has seen, whatever strategy it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StreamPosition:
    """Counts stream samples, each presentation once; rows that replay adds to a batch do not count.

    Attributes:
        samples_seen: stream samples in finished batches.
        rows: stream rows at the front of the current batch.
    """

    def __init__(self) -> None:
        self.samples_seen = 0
        self.rows = 0
        self._left = 0

    def begin_epoch(self, strategy: Any) -> None:
        """Call in `before_training_epoch`."""
        self._left = len(strategy.experience.dataset)

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` restores, between two batches."""
        return {"samples_seen": self.samples_seen, "left": self._left}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where the state was taken."""
        self.samples_seen, self._left = state["samples_seen"], state["left"]

    def begin_batch(self, strategy: Any) -> None:
        """Call in `before_training_iteration`, where replay from a loader may already have joined the batch."""
        # Avalanche's loaders hold one batch size for each data set they join, the stream's first.
        size = getattr(strategy.dataloader, "batch_sizes", [strategy.train_mb_size])[0]
        self.rows = min(len(strategy.mb_y), size, self._left)

    def end_batch(self) -> None:
        """Call in `after_training_iteration`."""
        self.samples_seen += self.rows
        self._left -= self.rows
