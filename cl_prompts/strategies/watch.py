"""`TrainingWatch`: what curves and guards read of a training loop, kept on the device until someone asks."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_prompts.errors import StrategyError

DECAY = 0.98
"""Weight of the past in the running accuracy: roughly the last 50 updates count."""


class TrainingWatch:
    """Running accuracy, latest losses, and whether every loss so far was finite.

    Args:
        device: where losses and logits live.

    Attributes:
        last_losses: named detached losses and diagnostics of the last update, on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.last_losses: dict[str, Tensor] = {}
        self._accuracy = torch.zeros((), device=device)
        self._weight = 0.0
        self._all_finite = torch.ones((), dtype=torch.bool, device=device)

    @property
    def running_accuracy(self) -> float:
        """Share of correct predictions of late, each before its update; NaN before the first. Waits for the device."""
        return float(self._accuracy) / self._weight if self._weight else float("nan")

    @torch.no_grad()
    def predicted(self, logits: Tensor, targets: Tensor) -> None:
        """Take up the predictions of one update: logits (batch, classes), targets (batch,)."""
        correct = (logits.argmax(-1) == targets).float().mean()
        self._accuracy = DECAY * self._accuracy + (1 - DECAY) * correct
        self._weight = DECAY * self._weight + (1 - DECAY)

    @torch.no_grad()
    def lost(self, named: dict[str, Tensor], total: Tensor) -> None:
        """Take up the losses of one update."""
        self.last_losses = {name: value.detach() for name, value in named.items()}
        self.last_losses["total"] = total.detach().squeeze()
        self._all_finite &= torch.isfinite(total).all()

    def stop_if_not_finite(self, samples_seen: int, updates: int) -> None:
        """Refuse to go on after a loss that is NaN or infinite. Waits for the device.

        Raises:
            StrategyError: with the place and the parts of the loss.
        """
        if not bool(self._all_finite):
            losses = ", ".join(f"{name}={float(value):g}" for name, value in self.last_losses.items())
            raise StrategyError(
                f"the loss is not finite after {samples_seen} samples and {updates} updates ({losses}); "
                "lower protocol.lr or use protocol.precision=fp32"
            )
