"""DER++: replay that remembers what the network said, not labels alone (Buzzega et al., NeurIPS 2020, equation 6).

Two independent draws of the memory join each stream batch (x, y). With z the logits of the network and z_0 those that
it gave when the sample came, before its first step on it and of the augmented image,

    loss = CE(z(x), y) + alpha * mse(z(x'), z_0) + beta * CE(z(x''), y'').

Logits are kept unmasked, and only of classes seen by then: the squared error averages over the stored columns, so
that a class which came later is not held at what an untrained row of the head once said. Samples whose batch got no
update (`protocol.updates_per_batch` below 1) have no stored logits and count in the third term alone. The mask of the
protocol holds in both cross-entropies.

`alpha` and `beta` are those of the published Si-Blurry rows; the paper tunes alpha in 0.1 to 1 for each data set, with
beta 0.5 or 1. What is trained is a setting, see `strategy=er`: those rows trained a head on a frozen ViT.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, NetworkSettings
from cl_prompts.strategies.method import TrainingBatch, TrainingOutputs
from cl_prompts.strategies.network import NetworkMethod


class DERPPSettings(NetworkSettings):
    """Settings of DER++."""

    needs: ClassVar[Needs] = Needs(replay="required", replay_draws=2, multi_label=True)

    alpha: float = Field(0.2, ge=0, allow_inf_nan=False, description="weight of the distance to the stored logits")
    beta: float = Field(0.5, ge=0, allow_inf_nan=False, description="weight of the replayed cross-entropy")


def distance_to_stored(logits: Tensor, stored: Tensor) -> Tensor:
    """Mean squared difference over the entries that were stored, a scalar; 0 if none was.

    Args:
        logits: (rows, classes), with the graph behind them.
        stored: (rows, classes), NaN where nothing was stored.
    """
    known = ~torch.isnan(stored)
    # Filled with the logits themselves: NaN times 0 would stay NaN in the gradient.
    difference = logits - torch.where(known, stored, logits.detach())
    return difference.square().sum() / known.sum().clamp(min=1)


class DERPPMethod(NetworkMethod):
    """The learner: `classification` of the stream, `logits` of the first draw and `replay` of the second."""

    settings_class = DERPPSettings
    settings: DERPPSettings

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """The three losses of one update, weighted; the stream's alone as long as the memory is empty."""
        assert batch.exposed is not None
        features, logits = self.training_pass(batch)
        kind = label_kind(batch.targets)

        def classification(rows: slice) -> Tensor:
            return kind.loss(logits[rows], batch.targets[rows], batch.allowed)

        losses = {"classification": classification(batch.stream)}
        first, second = halves(batch.replay, len(batch))
        if first != second:
            losses["replay"] = self.settings.beta * classification(second)
        if "logits" in batch.remembered:
            stored = batch.remembered["logits"][: first.stop - first.start]
            losses["logits"] = self.settings.alpha * distance_to_stored(logits[first], stored)
        kept = logits.detach().masked_fill(~batch.exposed, float("nan"))
        return TrainingOutputs(losses, mask_logits(logits, batch.allowed), features, remember={"logits": kept})


def halves(replay: slice, rows: int) -> tuple[slice, slice]:
    """The two draws, of equal size, behind the stream in a batch of so many rows."""
    middle = (replay.start + rows) // 2
    return slice(replay.start, middle), slice(middle, rows)


class DERPP(ContinualStrategy):
    """DER++ as an Avalanche strategy; `settings` is a `DERPPSettings`."""

    method_class = DERPPMethod
