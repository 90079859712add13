"""`TrainingWatch`: what curves and guards read of a training loop, kept on the device until someone asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cl_prompts.errors import NotFiniteError
from cl_prompts.labels import LABEL_KINDS, LabelKind, label_kind

DECAY = 0.98
"""Weight of the past in the running score: roughly the last 50 updates count."""


NAMED_SAMPLES = 8
"""Samples of a broken batch that its one line names; its details name all."""


@dataclass
class Update:
    """What one update was computed on, and whether that gave numbers.

    Attributes:
        sample_ids: int64 `(batch,)` on the CPU, those of replay behind those of the stream.
        stream_size: how many are of the stream.
        samples_seen: before the batch.
        updates: done before this one.
        losses: named, on the device.
        finite: what was computed -> bool scalars on the device.
    """

    sample_ids: Tensor
    stream_size: int
    samples_seen: int
    updates: int
    losses: dict[str, Tensor] = field(default_factory=dict)
    finite: dict[str, Tensor] = field(default_factory=dict)

    def error(self, what: str) -> NotFiniteError:
        """The error of this update; waits for the device."""
        losses = {name: float(value) for name, value in self.losses.items()}
        ids = self.sample_ids.tolist()
        more = ", ..." if len(ids) > NAMED_SAMPLES else ""
        named = f" ({', '.join(f'{name}={value:g}' for name, value in losses.items())})" if losses else ""
        return NotFiniteError(
            f"the {what} not finite after {self.samples_seen} samples and {self.updates} updates{named}, in the batch "
            f"of samples {', '.join(map(str, ids[:NAMED_SAMPLES]))}{more}; lower protocol.lr, use "
            "protocol.precision=fp32, and never read a hidden label",
            {
                "not_finite": what.split()[0],
                "samples_seen": self.samples_seen,
                "updates": self.updates,
                # As text: JSON has no NaN.
                "losses": {name: f"{value:g}" for name, value in losses.items()},
                "stream_samples": ids[: self.stream_size],
                "replayed_samples": ids[self.stream_size :],
            },
        )


class TrainingWatch:
    """Running score of training, latest losses, and whether everything so far was finite.

    What an update gave is looked at later, when somebody waits for the device anyway; until then its samples are kept.

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
        self._unchecked: list[Update] = []
        self._last: Update | None = None

    def running_score(self, name: str) -> float:
        """Score of late, each update's predictions before it: `accuracy`, or `F1` at probability 0.5 (micro).

        NaN for the score that the labels do not have, and before the first update. Waits for the device.
        """
        if self.kind is None or self.kind.name != name:
            return float("nan")
        hits, possible = self._hits.tolist()
        return hits / possible if possible else float("nan")

    @property
    def unchecked(self) -> int:
        """Updates of which nobody knows yet whether they gave numbers."""
        return len(self._unchecked)

    @torch.no_grad()
    def predicted(self, logits: Tensor, targets: Tensor, update: Update) -> None:
        """Take up the predictions of one update: logits (batch, classes) and its labels."""
        update.finite["logits are"] = torch.isfinite(logits).all()
        self._last = update
        self._unchecked.append(update)
        self.kind = label_kind(targets)
        self._hits = DECAY * self._hits + (1 - DECAY) * self.kind.hits(logits, targets)

    @torch.no_grad()
    def lost(self, named: dict[str, Tensor], total: Tensor) -> None:
        """Take up the losses of the update that `predicted` told of."""
        self.last_losses = {name: value.detach() for name, value in named.items()}
        self.last_losses["total"] = total.detach().squeeze()
        if self._last is not None:
            self._last.losses = self.last_losses
            # First: what follows from a loss is named after it.
            self._last.finite = {"loss is": torch.isfinite(total).all(), **self._last.finite}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores."""
        return {
            "label_dimensions": next((number for number, kind in LABEL_KINDS.items() if kind is self.kind), None),
            "hits": self._hits,
            "last_losses": dict(self.last_losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        device = self._hits.device
        self.kind = LABEL_KINDS.get(state["label_dimensions"])
        self._hits = state["hits"].to(device)
        self.last_losses = {name: value.to(device) for name, value in state["last_losses"].items()}

    @torch.no_grad()
    def stop_if_not_finite(self, weights: Sequence[Tensor] = ()) -> None:
        """Refuse to go on after a loss, logits or weights that are NaN or infinite. Waits for the device, once.

        Args:
            weights: looked at, too; what the last update made of them.

        Raises:
            NotFiniteError: of the first update that gave no number, with its samples and the parts of its loss.
        """
        unchecked, self._unchecked = self._unchecked, []
        found = [(update, what, flag) for update in unchecked for what, flag in update.finite.items()]
        if self._last is not None:
            found += [(self._last, "weights are", torch.isfinite(tensor).all()) for tensor in weights]
        if not found:
            return
        for (update, what, _), finite in zip(found, torch.stack([flag for *_, flag in found]).tolist(), strict=True):
            if not finite:
                # Asked again, the answer is the same.
                self._unchecked = [update]
                raise update.error(what)
