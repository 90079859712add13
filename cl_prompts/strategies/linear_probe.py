"""Linear probe: a trained head on frozen features, the least a prompt has to beat (Alain and Bengio, 2016).

It trains on the protocol's augmented images, like the methods it is compared with; with `protocol.augmentation=none`
the frozen features of a batch are computed once for all its updates."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class LinearProbeSettings(StrategySettings):
    """Settings of the linear probe."""

    needs: ClassVar[Needs] = Needs(trains="head", replay="optional", multi_label=True)

    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits; unused by the linear head")


class LinearProbeMethod(Method):
    """The learner: nothing but `head` on the features of the un-prompted backbone."""

    settings_class = LinearProbeSettings
    predicts_from_query = True

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: LinearProbeSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.head = make_head(settings.head, backbone.width, num_classes, settings.temperature, generator)

    def query(self, images: Tensor) -> Tensor:
        """The features themselves, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes); with a known `query` the images are not looked at."""
        if query is None:
            assert images is not None
            query = self.query(images)
        return apply_head(self.head, query)

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's loss: `classification`, over the competing classes, by the kind of the labels."""
        features = self.query(batch.images) if batch.query is None else batch.query
        logits = apply_head(self.head, features)
        loss = label_kind(batch.targets).loss(logits, batch.targets, batch.allowed)
        return TrainingOutputs({"classification": loss}, mask_logits(logits, batch.allowed), features)


class LinearProbe(ContinualStrategy):
    """The linear probe as an Avalanche strategy; `settings` is a `LinearProbeSettings`."""

    method_class = LinearProbeMethod
