"""L2P: prompts chosen from a pool by learned keys, read in place of the class token (Wang et al., CVPR 2022).

The frozen query of an image takes the prompts whose keys are nearest. They join the sequence in front of the first
block, and the head reads the mean of their outputs. Trained are prompts, keys and head.

`variant=paper`: every image chooses for itself; the key loss has the paper's weight of 0.5 (from memory of the paper).
`variant=released`: the PyTorch port, where a batch votes for one set of prompts in training and in evaluation, at
weight 0.1. `variant=siblurry`: the re-implementation behind the L2P rows of the Si-Blurry papers, whose key loss never
reaches the keys: what an image takes stays what random keys gave. The official JAX code has ten tokens a prompt, four
picks, weight 1, no position code and small initial values: `prompt_length=10 selection_size=4 key_loss=1.0
position_code=false init=small`; its tanh form of GELU belongs to the backbone.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT, TokenPrompts
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.losses import similarity_pull_loss
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.selection import batch_vote, key_similarity, select_prompts
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings, model_validator
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class L2PSettings(StrategySettings):
    """Settings of L2P; `null` switches follow the variant."""

    needs: ClassVar[Needs] = Needs(replay="optional", query_pass=True, multi_label=True)

    variant: Literal["paper", "released", "siblurry"] = Field(
        "paper", description="the paper; its PyTorch port, where batches vote; or Si-Blurry's, whose keys never learn"
    )
    pool_size: int = Field(10, ge=1, description="prompts in the pool, each with a key")
    prompt_length: int = Field(5, ge=1, description="tokens of a prompt")
    selection_size: int = Field(5, ge=1, description="prompts an image takes")
    key_loss: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of the loss that pulls keys to queries; 0: keys stay"
    )
    choice: Literal["image", "batch"] | None = Field(
        None, description="each image for itself, or one vote of the batch, in evaluation too (only as released)"
    )
    position_code: bool = Field(True, description="add the class token's position code to each prompt token")
    init: Literal["uniform", "small"] = Field("uniform", description="first prompts and keys: in -1..1, or in 0..0.01")
    head_reads: Literal["prompts", "class_and_prompts"] = Field(
        "prompts", description="mean of the prompt tokens, or of these and the class token"
    )
    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")

    @model_validator(mode="after")
    def _check_combinations(self) -> "L2PSettings":  # noqa: UP037 -- also evaluated without this file's imports
        """Refuse values that exclude each other: one line `key=value: advice` for each."""
        problems = []
        if self.selection_size > self.pool_size:
            problems.append(f"selection_size={self.selection_size}: at most strategy.pool_size={self.pool_size}")
        if self.choice == "batch" and self.variant != "released":
            problems.append("choice=batch: predictions would depend on the batch; set strategy.variant=released for it")
        if self.variant == "siblurry" and self.key_loss is not None and self.key_loss > 0:
            problems.append(f"key_loss={self.key_loss}: it never acts in variant=siblurry; leave it null, or use paper")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def deviations(self) -> list[str]:
        """Predictions by vote depend on the evaluation batch; keys that never learn are a defect."""
        sentences = []
        if self.variant == "released" and self.choice != "image":
            sentences.append("a prediction depends on the other images of its evaluation batch, which vote for prompts")
        if self.variant == "siblurry":
            sentences.append("keys stay random, as in the Si-Blurry code, where the key loss never reaches them")
        return sentences


class Switches(NamedTuple):
    """The switches a variant decides where the settings leave them open."""

    key_loss: float
    choice: str


VARIANTS = {
    "paper": Switches(0.5, "image"),
    "released": Switches(0.1, "batch"),
    "siblurry": Switches(0.0, "image"),
}
RANGES = {"uniform": (-1.0, 1.0), "small": (0.0, 0.01)}


def resolve_switches(settings: L2PSettings) -> Switches:
    """Settings with the variant's choice in place of every null."""
    chosen = VARIANTS[settings.variant]
    return Switches(
        chosen.key_loss if settings.key_loss is None else settings.key_loss,
        chosen.choice if settings.choice is None else settings.choice,
    )


class L2PMethod(Method):
    """The learner: `prompts` (pool, length, width), `keys` (pool, width), trained where their loss acts, and `head`.

    Buffers: `usage_counts` (pool,), how often each prompt was taken in training; `frequency` (pool,), what training in
    `variant=siblurry` multiplies distances by, all ones, as nothing in that code ever refreshes it.

    Raises:
        StrategyError: a position code that the backbone lacks.
    """

    settings_class = L2PSettings
    settings: L2PSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: L2PSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        if settings.position_code and backbone.position_of_class_token is None:
            raise StrategyError(
                "strategy.position_code=true: this backbone has no position code for a class token; set it to false"
            )
        self.switches = resolve_switches(settings)
        pool, width = settings.pool_size, backbone.width

        def uniform(*shape: int) -> Tensor:
            return torch.empty(*shape).uniform_(*RANGES[settings.init], generator=generator)

        self.prompts = nn.Parameter(uniform(pool, settings.prompt_length, width))
        self.keys = nn.Parameter(uniform(pool, width), requires_grad=self.switches.key_loss > 0)
        self.head = make_head(settings.head, width, num_classes, settings.temperature, generator)
        self.usage_counts: Tensor
        self.frequency: Tensor
        self.register_buffer("usage_counts", torch.zeros(pool))
        self.register_buffer("frequency", torch.ones(pool))

    def query(self, images: Tensor) -> Tensor:
        """The frozen backbone's feature, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes)."""
        tokens = self.backbone.tokens(images)
        query = self.backbone.query(tokens=tokens) if query is None else query
        choice = self._choose(key_similarity(query, self.keys))
        return apply_head(self.head, self._features(tokens, choice))

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's losses: `classification`, and `prompt`, which pulls the chosen keys to the queries."""
        tokens = self.backbone.tokens(batch.images)
        query = self.backbone.query(tokens=tokens) if batch.query is None else batch.query
        similarity = key_similarity(query, self.keys)
        choice = self._choose(similarity, balanced=self.settings.variant == "siblurry")
        taken = choice.flatten()
        self.usage_counts.index_add_(0, taken, self.usage_counts.new_ones(taken.shape))
        features = self._features(tokens, choice)
        logits = apply_head(self.head, features)
        losses = {"classification": label_kind(batch.targets).loss(logits, batch.targets, batch.allowed)}
        similarity = similarity.gather(1, choice)
        if self.switches.key_loss > 0:
            losses["prompt"] = self.switches.key_loss * similarity_pull_loss(similarity)
        diagnostics = {"key_similarity": similarity.detach().mean()}
        return TrainingOutputs(losses, mask_logits(logits, batch.allowed), features, diagnostics)

    def prompt_usage(self) -> Tensor:
        """How often each prompt was taken in training, (pool,)."""
        return self.usage_counts

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the variant's choice in place of every null."""
        return super().effective_settings() | self.switches._asdict()

    def _choose(self, similarity: Tensor, *, balanced: bool = False) -> Tensor:
        """The prompts each image takes, (batch, size) int64."""
        distance = 1 - similarity.detach()
        if balanced:
            distance = distance * (self.frequency / self.frequency.sum())
        choice = select_prompts(distance, None, self.settings.selection_size)
        return batch_vote(choice, self.settings.pool_size) if self.switches.choice == "batch" else choice

    def _features(self, tokens: Tensor, choice: Tensor) -> Tensor:
        rows = self.prompts[choice].flatten(1, 2)
        code = self.backbone.position_of_class_token
        if self.settings.position_code and code is not None:
            rows = rows + code
        reads_class = self.settings.head_reads == "class_and_prompts"
        states = self.backbone.prompt_states(
            None, {0: [TokenPrompts(rows, keep=True)]}, tokens=tokens, class_token=reads_class
        )
        return self.backbone.model.fc_norm(states.mean(1))


class L2P(ContinualStrategy):
    """L2P as an Avalanche strategy; `settings` is an `L2PSettings`."""

    method_class = L2PMethod
