"""TCPA as a continual learner: every token takes its own prompts in every block, without a query pass (ICML 2025).

Each prompted block has two pools, one for the class token and one for the patches. All prompts stand in the block's
sequence; a token takes those whose keys are nearest to its state there and sees no others. As released, what is not
taken is hidden behind the softmax: it keeps its share of the attention and gives nothing (`masking=output`). Keys learn
from the distance to what took them, prompts from the classification. Nothing needs a task.

Pool sizes, lengths and numbers taken are our choice, as is that the states are compared before the block's first norm,
that no gradient goes from the distances into them, and that the distances are averaged over tokens, pools and blocks.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT, RoutedPrompts
from cl_prompts.backbones.insertions import Insertion
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.losses import pull_loss
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.token_pool import Picks, TokenPool
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings, model_validator
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class TCPASettings(StrategySettings):
    """Settings of TCPA."""

    needs: ClassVar[Needs] = Needs(replay="optional", multi_label=True)

    prompt_layers: int | None = Field(None, ge=1, description="the first blocks, which get pools; null: every block")
    class_pool_size: int = Field(10, ge=1, description="prompts for the class token in each of them")
    class_length: int = Field(2, ge=1, description="tokens of such a prompt")
    class_selection: int = Field(2, ge=1, description="such prompts the class token takes")
    patch_pool_size: int = Field(10, ge=1, description="prompts for the patches in each of them")
    patch_length: int = Field(2, ge=1, description="tokens of such a prompt")
    patch_selection: int = Field(2, ge=1, description="such prompts a patch takes")
    masking: Literal["output", "logits"] = Field(
        "output", description="hide what is not taken behind the softmax, as released, or before it"
    )
    key_loss: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the distance to the taken keys")
    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")

    @model_validator(mode="after")
    def _check_combinations(self) -> "TCPASettings":  # noqa: UP037 -- also evaluated without this file's imports
        """Refuse values that exclude each other: one line `key=value: advice` for each."""
        problems = [
            f"{kind}_selection={size}: at most strategy.{kind}_pool_size={pool}"
            for kind, size, pool in (
                ("class", self.class_selection, self.class_pool_size),
                ("patch", self.patch_selection, self.patch_pool_size),
            )
            if size > pool
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def deviations(self) -> list[str]:
        """What is ours, and another masking than the released one."""
        sentences = ["sizes of pools and prompts are ours, as is how distances to keys are averaged"]
        if self.masking == "logits":
            sentences.append("prompts not taken are masked before the softmax, where the published code does it behind")
        return sentences


class TCPAMethod(Method):
    """The learner: two `TokenPool`s, `class_pool` and `patch_pool`, and `head`.

    Other tokens in front of the patches (distillation, registers) take from the pool of the class token. Buffer:
    `usage_counts` (class pool + patch pool,), how often each was taken in training, in any block.

    Raises:
        StrategyError: more prompted blocks than the backbone has, or a backbone without a class token.
    """

    settings_class = TCPASettings
    settings: TCPASettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: TCPASettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        blocks = backbone.depth if settings.prompt_layers is None else settings.prompt_layers
        if blocks > backbone.depth:
            raise StrategyError(f"strategy.prompt_layers={blocks}: the backbone has {backbone.depth} blocks")
        if backbone.num_prefix_tokens == 0:
            raise StrategyError("strategy=tcpa: has prompts for the class token, which this backbone lacks")
        width = backbone.width
        self.class_pool = TokenPool(
            blocks, settings.class_pool_size, settings.class_length, settings.class_selection, width, generator
        )
        self.patch_pool = TokenPool(
            blocks, settings.patch_pool_size, settings.patch_length, settings.patch_selection, width, generator
        )
        for pool in (self.class_pool, self.patch_pool):
            pool.keys.requires_grad_(settings.key_loss > 0)
        self.head = make_head(settings.head, width, num_classes, settings.temperature, generator)
        self.usage_counts: Tensor
        self.register_buffer("usage_counts", torch.zeros(settings.class_pool_size + settings.patch_pool_size))

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes)."""
        return apply_head(self.head, self._features(images)[0])

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's losses: `classification`, and `prompt`, the mean distance of tokens to the keys they took."""
        features, picks = self._features(batch.images)
        for taken in picks:
            for offset, part in zip((0, self.settings.class_pool_size), taken, strict=True):
                chosen = part.choice.flatten() + offset
                self.usage_counts.index_add_(0, chosen, self.usage_counts.new_ones(chosen.shape))
        logits = apply_head(self.head, features)
        losses = {"classification": label_kind(batch.targets).loss(logits, batch.targets, batch.allowed)}
        if self.settings.key_loss > 0:
            distances = torch.stack([pull_loss(part.distance) for taken in picks for part in taken])
            losses["prompt"] = self.settings.key_loss * distances.mean()
        return TrainingOutputs(losses, mask_logits(logits, batch.allowed), features)

    @torch.no_grad()
    def patch_choices(self, images: Tensor) -> Tensor:
        """Which prompts each patch takes, nearest first: (blocks, batch, patches, size) int64, for a map of colours."""
        return torch.stack([patches.choice for _, patches in self._features(images)[1]])

    def prompt_usage(self) -> Tensor:
        """How often each prompt was taken in training, in any block: those of the class token, then of patches."""
        return self.usage_counts

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the number of prompted blocks in place of null."""
        return super().effective_settings() | {"prompt_layers": len(self.class_pool.keys)}

    def _features(self, images: Tensor) -> tuple[Tensor, list[tuple[Picks, Picks]]]:
        """What the head reads, and what class tokens and patches took, block by block."""
        picks: list[tuple[Picks, Picks]] = []
        blocks = range(len(self.class_pool.keys))
        insertions: dict[int, list[Insertion]] = {block: [self._prompts(block, picks)] for block in blocks}
        return self.backbone(images, insertions), picks

    def _prompts(self, block: int, picks: list[tuple[Picks, Picks]]) -> RoutedPrompts:
        """Both pools of a block; its picks are added to the list when it runs."""
        front = self.backbone.num_prefix_tokens

        def route(states: Tensor) -> Tensor:
            taken = self.class_pool.pick(block, states[:, :front]), self.patch_pool.pick(block, states[:, front:])
            picks.append(taken)
            of_class, of_patches = (part.visible for part in taken)
            return torch.cat(
                [
                    torch.cat([of_class, of_class.new_zeros(*of_class.shape[:2], of_patches.shape[2])], dim=2),
                    torch.cat([of_patches.new_zeros(*of_patches.shape[:2], of_class.shape[2]), of_patches], dim=2),
                ],
                dim=1,
            )

        pools = (self.class_pool, self.patch_pool)
        tokens = torch.cat([pool.prompts[block].flatten(0, 1) for pool in pools])
        return RoutedPrompts(tokens[None], route, self.settings.masking)


class TCPA(ContinualStrategy):
    """TCPA as an Avalanche strategy; `settings` is a `TCPASettings`."""

    method_class = TCPAMethod
