"""ER-ACE: replay with asymmetric cross-entropy: new classes do not push old ones down (Caccia et al., ICLR 2022).

The rows of the stream compete among the classes of this stream batch alone, those of the memory among all classes seen
so far; the loss is the sum of both means. That mask is the method, whatever `protocol.train_mask` says. Masks are over
class ids as they are: nothing assumes, as code of the field does, that ids grow with time or that the mask may
start at the second task. One public version leaves classes never seen open in the memory's half; here they are not.

What is trained is a setting, see `strategy=er`: the published rows trained a head on a frozen ViT (`trained=head`).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Needs, NetworkSettings
from cl_prompts.strategies.method import TrainingBatch, TrainingOutputs
from cl_prompts.strategies.network import NetworkMethod


class ERACESettings(NetworkSettings):
    """Settings of ER-ACE."""

    needs: ClassVar[Needs] = Needs(replay="required")

    def deviations(self) -> list[str]:
        """The mask is part of the method."""
        return [
            "er_ace has masks of its own, whatever protocol.train_mask is: classes of the stream batch for its rows, "
            "classes seen so far for rows of the memory"
        ]


class ERACEMethod(NetworkMethod):
    """The learner: `classification` of the stream rows and `replay` of the memory rows, each a mean."""

    settings_class = ERACESettings

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """The losses of one update; the memory's is left out as long as it is empty."""
        assert batch.exposed is not None
        features, logits = self.training_pass(batch)
        halves = {"classification": batch.stream, "replay": batch.replay}
        losses, masked = {}, []
        for name, rows in halves.items():
            targets = batch.targets[rows]
            if not len(targets):
                continue
            kind = label_kind(targets)
            allowed = batch.exposed
            if name == "classification":
                # The protocol allows the classes of a batch whatever its mask is.
                allowed = kind.shown(targets, self.num_classes) & batch.allowed
            losses[name] = kind.loss(logits[rows], targets, allowed)
            masked.append(mask_logits(logits[rows], allowed))
        return TrainingOutputs(losses, torch.cat(masked), features)


class ERACE(ContinualStrategy):
    """ER-ACE as an Avalanche strategy; `settings` is an `ERACESettings`."""

    method_class = ERACEMethod
