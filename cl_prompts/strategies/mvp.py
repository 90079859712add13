"""MVP: mask and visual prompt tuning for Si-Blurry streams (Moon et al., ICCV 2023).

One general prompt for all images and a pool of expert prompts, each with a key and a soft logit mask. The frozen
query of an image picks the expert whose key is near and seldom used. Trained are prompts, keys, masks and head.

`variant=released` computes what the published code computes, number for number: the focal term is one factor on the
batch mean, the contrastive loss averages over all pairs of the batch, the query stops before the last block.
`variant=paper` is our reading of the publication (its equations could not be checked): a focal weight for each
sample, one contrastive ratio for each query that trains the chosen key alone, the query through all blocks. Each
switch can be set on its own.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_prompts import losses
from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head, linear_head
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.layout import LAYOUTS, ROWS_PER_LENGTH, merge
from cl_prompts.prompts.selection import select_prompts
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, LayerIndices, Needs, StrategySettings, model_validator
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class MVPSettings(StrategySettings):
    """Settings of MVP; `null` switches follow the variant."""

    needs: ClassVar[Needs] = Needs(replay="optional", query_pass=True)

    variant: Literal["released", "paper"] = Field(
        "released", description="the published code, or our reading of the paper (its equations are unverified)"
    )
    pool_size: int = Field(10, ge=1, description="expert prompts in the pool, each with a key and a logit mask")
    selection_size: int = Field(1, ge=1, description="prompts chosen for one image")
    general_length: int = Field(5, ge=0, description="tokens of the general prompt in each of its blocks")
    general_layers: LayerIndices = Field((0, 1), description="blocks that get the general prompt")
    expert_length: int = Field(20, ge=0, description="tokens of an expert prompt in each of its blocks")
    expert_layers: LayerIndices = Field((2, 3, 4), description="blocks that get the chosen expert prompt")
    insertion: Literal["prompt_tuning", "prefix_tuning"] = Field(
        "prompt_tuning", description="prompts as extra tokens, or as extra keys and values before projection"
    )
    logit_mask: bool = Field(True, description="multiply the logits by the chosen prompt's soft mask")
    contrast: Literal["none", "released", "per_query"] | None = Field(
        None, description="prompt loss: mean distance, the released contrastive one, or one term for each query"
    )
    focal: Literal["none", "batch", "sample"] | None = Field(
        None, description="gradient-similarity focal term: off, a factor on the batch mean, or a weight a sample"
    )
    feature_scaling: bool = Field(True, description="scale features by their angle to the class weight in training")
    alpha: float = Field(0.5, ge=0, le=1, description="share of the focal term in the loss")
    gamma: float = Field(2.0, ge=0, allow_inf_nan=False, description="exponent of the focal term")
    margin: float = Field(0.5, gt=0, allow_inf_nan=False, description="smallest divisor of the feature scaling")
    query_blocks: int | None = Field(
        None, ge=1, description="blocks the query runs through; null: all but the last (released), all (paper)"
    )
    query_norm: bool = Field(False, description="apply the backbone's final norm to the query")
    route: Literal["count", "plain"] = Field(
        "count", description="choose by distance times usage, or by distance alone, in training"
    )
    route_at_test: Literal["count", "plain"] = Field("count", description="the same in evaluation")

    @model_validator(mode="after")
    def _check_combinations(self) -> "MVPSettings":  # noqa: UP037 -- also evaluated without this file's imports
        """Refuse values that exclude each other: one line `key=value: advice` for each."""
        size, pool_size = self.selection_size, self.pool_size
        contrast = self.contrast or {"released": "released", "paper": "per_query"}[self.variant]
        problems = []
        if size > pool_size:
            problems.append(f"selection_size={size}: at most strategy.pool_size={pool_size}")
        elif size > 1 and contrast != "none":
            problems.append(
                f"selection_size={size}: the contrastive loss ({contrast}) is defined for one chosen prompt; "
                "set strategy.contrast=none or strategy.selection_size=1"
            )
        if contrast == "per_query" and pool_size < 2:
            problems.append(
                f"pool_size={pool_size}: strategy.contrast=per_query compares keys; use at least 2, or contrast=none"
            )
        if self.insertion == "prefix_tuning" and size > 1:
            problems.append(
                "insertion=prefix_tuning: defined for one chosen prompt; set strategy.selection_size=1 "
                "or strategy.insertion=prompt_tuning"
            )
        for key, layers in (("general_layers", self.general_layers), ("expert_layers", self.expert_layers)):
            if len(set(layers)) < len(layers):
                listed = ",".join(str(layer) for layer in layers)
                problems.append(f"{key}=[{listed}]: names a block twice; name each once")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Switches(NamedTuple):
    """The switches a variant decides where the settings leave them open."""

    contrast: str
    focal: str
    query_blocks: int


def resolve_switches(settings: MVPSettings, depth: int) -> Switches:
    """Settings with the variant's choice in place of every null; `depth` is the number of blocks."""
    variants = {
        "released": Switches("released", "batch", depth - 1),
        "paper": Switches("per_query", "sample", depth),
    }
    chosen = variants[settings.variant]
    return Switches(
        chosen.contrast if settings.contrast is None else settings.contrast,
        chosen.focal if settings.focal is None else settings.focal,
        chosen.query_blocks if settings.query_blocks is None else settings.query_blocks,
    )


PROMPT_LOSSES = {
    "none": lambda keys, choice, distance, usage: losses.pull_loss(distance),
    "released": lambda keys, choice, distance, usage: losses.released_contrastive_loss(
        keys, choice[:, 0], distance[:, 0], usage
    ),
    "per_query": lambda keys, choice, distance, usage: losses.per_query_contrastive_loss(
        keys, choice[:, 0], distance[:, 0], usage
    ),
}


class Selection(NamedTuple):
    """What the query of each image chose: `choice` (B, S) int64, `distance` (B, S) with gradient to the keys."""

    choice: Tensor
    distance: Tensor


class MVPMethod(Method):
    """The learner: prompts, keys, masks and head on a frozen ViT.

    Trainable: `general_prompt` (1, rows, width), `expert_prompts` (pool, rows, width), `keys` (pool, width),
    `soft_masks` (pool, classes) logits, `head`. Buffer: `usage_counts` (pool,), how often each expert was chosen.

    Raises:
        StrategyError: a block beyond the backbone's depth.
    """

    settings_class = MVPSettings
    settings: MVPSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: MVPSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.switches = resolve_switches(settings, backbone.depth)
        _check(settings, self.switches, backbone.depth)
        rows, pool, width = ROWS_PER_LENGTH[settings.insertion], settings.pool_size, backbone.width

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.general_prompt = normal(1, rows * len(settings.general_layers) * settings.general_length, width)
        self.expert_prompts = normal(pool, rows * len(settings.expert_layers) * settings.expert_length, width)
        self.keys = normal(pool, width)
        self.soft_masks = nn.Parameter(torch.full((pool, num_classes), -1.0), requires_grad=settings.logit_mask)
        self.head = linear_head(width, num_classes, generator)
        self.usage_counts: Tensor
        self.register_buffer("usage_counts", torch.zeros(pool))

    def query(self, images: Tensor) -> Tensor:
        """Class token of the un-prompted backbone after `query_blocks` blocks, (batch, width), no gradient."""
        return self._query(images, None)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes) under the chosen expert's soft mask; counts usage in training mode only."""
        tokens = self._tokens(images) if query is None else None
        if query is None:
            query = self._query(images, tokens)
        selected = self._select(query)
        logits = apply_head(self.head, self._features(images, selected.choice, tokens))
        soft_mask = self._soft_mask(selected.choice)
        if self.training:
            self._count(selected.choice)
        return logits if soft_mask is None else soft_mask * logits

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's losses: `classification` (focal cross-entropy) and `prompt` (key loss)."""
        settings, images, targets = self.settings, batch.images, batch.targets
        tokens = self._tokens(images)
        selected = self._select(self._query(images, tokens) if batch.query is None else batch.query)
        prompt_loss = PROMPT_LOSSES[self.switches.contrast](self.keys, *selected, self.usage_counts)
        self._count(selected.choice)

        features = self._features(images, selected.choice, tokens)
        soft_mask = self._soft_mask(selected.choice)

        def logits_of(inputs: Tensor) -> Tensor:
            raw = apply_head(self.head, inputs)
            return mask_logits(raw if soft_mask is None else soft_mask * raw, batch.allowed)

        unscaled = scaled = logits_of(features)
        if settings.feature_scaling:
            scaled = logits_of(features / losses.feature_divisor(features, self.head.weight, targets, settings.margin))
        cross_entropy = F.cross_entropy(scaled, targets, reduction="none")
        dissimilarity = losses.gradient_dissimilarity(features, unscaled, targets, soft_mask)
        classification = losses.FOCAL_LOSSES[self.switches.focal](
            cross_entropy, dissimilarity, settings.alpha, settings.gamma
        )
        return TrainingOutputs(
            losses={"classification": classification, "prompt": prompt_loss},
            logits=unscaled,
            features=features,
            diagnostics={
                "cross_entropy": cross_entropy.detach().mean(),
                "gradient_dissimilarity": dissimilarity.mean(),
            },
        )

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the variant's choice in place of every null."""
        return super().effective_settings() | self.switches._asdict()

    def prompt_usage(self) -> Tensor:
        """How often each expert was chosen in training, (pool,)."""
        return self.usage_counts

    @torch.no_grad()
    def _tokens(self, images: Tensor) -> Tensor:
        return self.backbone.tokens(images)

    def _query(self, images: Tensor, tokens: Tensor | None) -> Tensor:
        return self.backbone.query(
            images, tokens=tokens, blocks=self.switches.query_blocks, norm=self.settings.query_norm
        )

    def _select(self, query: Tensor) -> Selection:
        settings = self.settings
        distance = losses.cosine_distance(query[:, None], self.keys)
        route = settings.route if self.training else settings.route_at_test
        balanced = route == "count" and self.switches.contrast != "none"
        choice = select_prompts(distance, self.usage_counts if balanced else None, settings.selection_size)
        return Selection(choice, distance.gather(1, choice))

    def _count(self, choice: Tensor) -> None:
        chosen = choice.flatten()
        self.usage_counts.index_add_(0, chosen, self.usage_counts.new_ones(chosen.shape))

    def _features(self, images: Tensor, choice: Tensor, tokens: Tensor | None) -> Tensor:
        settings, cut = self.settings, LAYOUTS[self.settings.insertion]
        # With several choices the published layout reads the rows of the first alone; the others give their masks.
        experts = self.expert_prompts[choice[:, 0]]
        insertions = merge(
            cut(self.general_prompt, settings.general_layers, settings.general_length),
            cut(experts, settings.expert_layers, settings.expert_length),
        )
        return self.backbone(images, insertions, tokens=tokens)

    def _soft_mask(self, choice: Tensor) -> Tensor | None:
        """Factor on the logits, (batch, classes) in (0, 2); None when switched off."""
        if not self.settings.logit_mask:
            return None
        return 2 * torch.sigmoid(self.soft_masks[choice].mean(1))


def _check(settings: MVPSettings, switches: Switches, depth: int) -> None:
    beyond = [layer for layer in (*settings.general_layers, *settings.expert_layers) if layer >= depth]
    if beyond:
        raise StrategyError(
            f"strategy.general_layers/expert_layers name block {beyond[0]}: the backbone has blocks 0 to {depth - 1}"
        )
    if not 1 <= switches.query_blocks <= depth:
        raise StrategyError(
            f"strategy.query_blocks={switches.query_blocks}: the backbone has {depth} blocks; set 1 to {depth}"
        )


class MVP(ContinualStrategy):
    """MVP as an Avalanche strategy; `settings` is an `MVPSettings`, the rest is `ContinualStrategy`'s."""

    method_class = MVPMethod
