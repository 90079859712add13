"""VPT-deep: learned tokens of its own in every block, which leave the sequence behind it (Jia et al., ECCV 2022).

One prompt for all classes, read through the class token; neither pool nor query. The paper tunes it for one data set at
a time; here a stream of classes is learned with it as it comes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.visual import VisualPrompt
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class VPTDeepSettings(StrategySettings):
    """Settings of VPT-deep."""

    needs: ClassVar[Needs] = Needs(replay="optional", multi_label=True)

    prompt_layers: int | None = Field(None, ge=1, description="the first blocks, which get tokens; null: every block")
    prompt_length: int = Field(5, ge=1, description="tokens in each of them; the paper tries 1 to 200")
    prompt_dropout: float = Field(0.0, ge=0, lt=1, description="share of the tokens' numbers left out in training")
    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")

    def deviations(self) -> list[str]:
        """Fewer blocks than the paper's deep form has."""
        if self.prompt_layers is None:
            return []
        return [f"tokens in the first {self.prompt_layers} blocks, where the paper's deep form has them in every block"]


class VPTDeepMethod(Method):
    """The learner: `prompt.tokens` (layers, length, width) and `head`.

    Raises:
        StrategyError: more prompted blocks than the backbone has.
    """

    settings_class = VPTDeepSettings
    settings: VPTDeepSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: VPTDeepSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        layers = backbone.depth if settings.prompt_layers is None else settings.prompt_layers
        if layers > backbone.depth:
            raise StrategyError(f"strategy.prompt_layers={layers}: the backbone has {backbone.depth} blocks")
        self.prompt = VisualPrompt(backbone, layers, settings.prompt_length, keep=False, generator=generator)
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

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the number of prompted blocks in place of null."""
        return super().effective_settings() | {"prompt_layers": len(self.prompt.tokens)}


class VPTDeep(ContinualStrategy):
    """VPT-deep as an Avalanche strategy; `settings` is a `VPTDeepSettings`."""

    method_class = VPTDeepMethod
