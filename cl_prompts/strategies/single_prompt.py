"""SinglePrompt: one prefix in each early block, cosine head, no pool and no query (arXiv 2604.04420).

The honest baseline of every pool. The prefix stands behind the key and value projection and carries, as released,
the position code of the class token. The released mask (classes of the batch) belongs to the protocol here:
`protocol.train_mask=batch`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.layout import merge, projected_prefixes_by_layer
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class SinglePromptSettings(StrategySettings):
    """Settings of SinglePrompt."""

    needs: ClassVar[Needs] = Needs(replay="optional", multi_label=True)

    prompt_layers: int = Field(5, ge=1, description="the first blocks, which get a prefix")
    prompt_length: int = Field(20, ge=1, description="keys and values added in each of them")
    position_code: bool = Field(True, description="add the class token's position code to the prefix, as released")
    head: Literal["cosine", "linear"] = Field("cosine", description="cosine over temperature, or a linear layer")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")


class SinglePromptMethod(Method):
    """The learner: `prompt` (layers * 2 * length, width), keys before values in each layer, and `head`.

    Raises:
        StrategyError: more prompted blocks than the backbone has, or a position code that it lacks.
    """

    settings_class = SinglePromptSettings
    settings: SinglePromptSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: SinglePromptSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        if settings.prompt_layers > backbone.depth:
            raise StrategyError(
                f"strategy.prompt_layers={settings.prompt_layers}: the backbone has {backbone.depth} blocks"
            )
        if settings.position_code and backbone.position_of_class_token is None:
            raise StrategyError(
                "strategy.position_code=true: this backbone has no position code for a class token; set it to false"
            )
        rows = settings.prompt_layers * 2 * settings.prompt_length
        self.prompt = nn.Parameter(torch.empty(rows, backbone.width).uniform_(-1, 1, generator=generator))
        self.head = make_head(settings.head, backbone.width, num_classes, settings.temperature, generator)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes)."""
        return apply_head(self.head, self._features(images))

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's loss: `classification`, over the competing classes, by the kind of the labels."""
        features = self._features(batch.images)
        logits = apply_head(self.head, features)
        loss = label_kind(batch.targets).loss(logits, batch.targets, batch.allowed)
        return TrainingOutputs({"classification": loss}, mask_logits(logits, batch.allowed), features)

    def _features(self, images: Tensor) -> Tensor:
        settings = self.settings
        code = self.backbone.position_of_class_token if settings.position_code else None
        rows = self.prompt if code is None else self.prompt + code
        insertions = projected_prefixes_by_layer(rows[None], range(settings.prompt_layers), settings.prompt_length)
        return self.backbone(images, merge(insertions))


class SinglePrompt(ContinualStrategy):
    """SinglePrompt as an Avalanche strategy; `settings` is a `SinglePromptSettings`."""

    method_class = SinglePromptMethod
