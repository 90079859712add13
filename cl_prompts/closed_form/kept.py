"""Features that are kept apart from the sums of a ridge regression, to choose its constant on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class KeptRows(nn.Module):
    """Features float32 and their target rows, buffers whose length is part of the state.

    Buffers: `features` `(kept, width)`, `rows` float64 `(kept, classes)`.

    Args:
        width: of the features.
        num_classes: columns of the rows.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.features: Tensor
        self.rows: Tensor
        self.register_buffer("features", torch.zeros(0, width))
        self.register_buffer("rows", torch.zeros(0, num_classes, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.features)

    def append(self, features: Tensor, rows: Tensor) -> None:
        """Keep some more, `(batch, width)` and `(batch, classes)`."""
        self.features = torch.cat([self.features, features.float()])
        self.rows = torch.cat([self.rows, rows])

    def clear(self) -> None:
        """Keep nothing."""
        self.features, self.rows = self.features[:0].clone(), self.rows[:0].clone()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in ("features", "rows"):
            saved, here = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(saved, Tensor) and saved.shape[1:] == here.shape[1:]:
                setattr(self, name, here.new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class HeldOut(KeptRows):
    """A uniform sample of the stream, disjoint from what goes on (algorithm R): a kept row is returned when it leaves.

    Buffer `seen`: rows that came, int64.

    Args:
        capacity: rows kept at most.
        width: of the features.
        num_classes: columns of the rows.
        generator: decides who stays.
    """

    def __init__(self, capacity: int, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__(width, num_classes)
        self.capacity = capacity
        self.generator = generator
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def exchange(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Show a batch; returns the features and rows that are not kept, or no longer, in any order."""
        fits = min(self.capacity - len(self), len(features))
        self.append(features[:fits], rows[:fits])
        features, rows = features[fits:].float().clone(), rows[fits:].clone()
        before = int(self.seen) + fits
        for number in range(len(features)):
            place = int(torch.randint(before + number + 1, (), generator=self.generator))
            if place < self.capacity:
                out = self.features[place].clone(), self.rows[place].clone()
                self.features[place], self.rows[place] = features[number], rows[number]
                features[number], rows[number] = out
        self.seen += fits + len(features)
        return features, rows
