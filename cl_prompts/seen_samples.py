"""`SeenSamples`: features and labels of everything that came, as state of a module that grows and can be saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SeenSamples(nn.Module):
    """Rows of features and of labels, in an order that depends on the rows and not on when they came.

    Rows are joined when somebody reads them, not with every batch: appending costs nothing, whatever is there.

    Args:
        width: of the features.
        generator: source of the direction that orders rows.

    Attributes:
        version: counts changes, so that what was computed from the rows can be known to be old.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.version = 0
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._features: Tensor
        self._labels: Tensor
        self._direction: Tensor
        self.register_buffer("_features", torch.zeros(0, width))
        self.register_buffer("_labels", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("_direction", torch.randn(width, generator=generator, dtype=torch.float64))
        self.register_state_dict_pre_hook(_join_first)
        self.register_load_state_dict_pre_hook(_make_room)

    def append(self, features: Tensor, labels: Tensor) -> None:
        """Take up (rows, width) features, kept as float32, and (rows,) or (rows, classes) labels."""
        self._waiting.append((features.float(), labels))
        self.version += 1

    def all(self) -> tuple[Tensor, Tensor]:
        """Features (rows, width) float32 and labels of everything so far."""
        self._join()
        return self._features, self._labels

    def _join(self) -> None:
        if not self._waiting:
            return
        # Evaluation may ask; what it creates in its mode could not be trained on.
        with torch.inference_mode(False), torch.no_grad():
            parts = [(self._features, self._labels)] if len(self._features) else []
            features, labels = (torch.cat(part) for part in zip(*parts, *self._waiting, strict=True))
            key = (features.double() * self._direction).sum(1)
            order = key.argsort(stable=True)
            if labels.ndim == 1:
                order = order[labels[order].argsort(stable=True)]
            self._features, self._labels = features[order], labels[order]
        self._waiting = []

    def _apply(self, function: Any, recurse: bool = True) -> SeenSamples:
        self._join()
        self.version += 1
        return super()._apply(function, recurse)


def _join_first(samples: SeenSamples, *others: Any) -> None:
    samples._join()


def _make_room(samples: SeenSamples, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Take the shapes and types of the rows that a saved state has."""
    samples._waiting = []
    samples.version += 1
    for name in ("_features", "_labels"):
        saved = state.get(f"{prefix}{name}")
        if saved is not None:
            setattr(samples, name, torch.empty_like(saved, device=samples._direction.device))
