"""VPT-shallow: learned tokens beside the patches from the first block to the last (Jia et al., ECCV 2022).

One prompt for all classes, read through the class token; neither pool nor query. The paper tunes it for one data set at
a time; here a stream of classes is learned with it as it comes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.visual import VisualPrompt
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class VPTShallowSettings(StrategySettings):
    """Settings of VPT-shallow."""

    needs: ClassVar[Needs] = Needs(replay="optional", multi_label=True)

    prompt_length: int = Field(5, ge=1, description="tokens joined before the first block; the paper tries 1 to 200")
    prompt_dropout: float = Field(0.0, ge=0, lt=1, description="share of the tokens' numbers left out in training")
    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")


class VPTShallowMethod(Method):
    """The learner: `prompt.tokens` (1, length, width) and `head`."""

    settings_class = VPTShallowSettings
    settings: VPTShallowSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: VPTShallowSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.prompt = VisualPrompt(backbone, 1, settings.prompt_length, keep=True, generator=generator)
        self.head = make_head(settings.head, backbone.width, num_classes, settings.temperature, generator)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes), without drop-out."""
        return apply_head(self.head, self.backbone(images, self.prompt.insertions()))

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's loss: `classification`, over the competing classes, by the kind of the labels."""
        insertions = self.prompt.dropped(len(batch), self.settings.prompt_dropout, self.generator)
        features = self.backbone(batch.images, insertions)
        logits = apply_head(self.head, features)
        loss = label_kind(batch.targets).loss(logits, batch.targets, batch.allowed)
        return TrainingOutputs({"classification": loss}, mask_logits(logits, batch.allowed), features)


class VPTShallow(ContinualStrategy):
    """VPT-shallow as an Avalanche strategy; `settings` is a `VPTShallowSettings`."""

    method_class = VPTShallowMethod
