"""`TrainingWatch`: what curves and guards read of a training loop, kept on the device until someone asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_prompts.errors import StrategyError
from cl_prompts.labels import LABEL_KINDS, LabelKind, label_kind

DECAY = 0.98
"""Weight of the past in the running score: roughly the last 50 updates count."""


class TrainingWatch:
    """Running score of training, latest losses, and whether every loss so far was finite.

    Args:
        device: where losses and logits live.

    Attributes:
        kind: form of the labels seen last; None before the first.
        last_losses: named detached losses and diagnostics of the last update, on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.last_losses: dict[str, Tensor] = {}
        self.kind: LabelKind | None = None
        self._hits = torch.zeros(2, device=device)
        self._all_finite = torch.ones((), dtype=torch.bool, device=device)

    def running_score(self, name: str) -> float:
        """Score of late, each update's predictions before it: `accuracy`, or `F1` at probability 0.5 (micro).

        NaN for the score that the labels do not have, and before the first update. Waits for the device.
        """
        if self.kind is None or self.kind.name != name:
            return float("nan")
        hits, possible = self._hits.tolist()
        return hits / possible if possible else float("nan")

    @torch.no_grad()
    def predicted(self, logits: Tensor, targets: Tensor) -> None:
        """Take up the predictions of one update: logits (batch, classes) and its labels."""
        self.kind = label_kind(targets)
        self._hits = DECAY * self._hits + (1 - DECAY) * self.kind.hits(logits, targets)

    @torch.no_grad()
    def lost(self, named: dict[str, Tensor], total: Tensor) -> None:
        """Take up the losses of one update."""
        self.last_losses = {name: value.detach() for name, value in named.items()}
        self.last_losses["total"] = total.detach().squeeze()
        self._all_finite &= torch.isfinite(total).all()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores."""
        return {
            "label_dimensions": next((number for number, kind in LABEL_KINDS.items() if kind is self.kind), None),
            "hits": self._hits,
            "all_finite": self._all_finite,
            "last_losses": dict(self.last_losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        device = self._hits.device
        self.kind = LABEL_KINDS.get(state["label_dimensions"])
        self._hits, self._all_finite = state["hits"].to(device), state["all_finite"].to(device)
        self.last_losses = {name: value.to(device) for name, value in state["last_losses"].items()}

    def stop_if_not_finite(self, samples_seen: int, updates: int) -> None:
        """Refuse to go on after a loss that is NaN or infinite. Waits for the device.

        Raises:
            StrategyError: with the place and the parts of the loss.
        """
        if not bool(self._all_finite):
            losses = ", ".join(f"{name}={float(value):g}" for name, value in self.last_losses.items())
            raise StrategyError(
                f"the loss is not finite after {samples_seen} samples and {updates} updates ({losses}); "
                "lower protocol.lr, use protocol.precision=fp32, and never read a hidden label"
            )
