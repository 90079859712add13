"""MVP: mask and visual prompt tuning for Si-Blurry streams (Moon et al., ICCV 2023)."""

from __future__ import annotations

from cl_prompts.strategies.declaration import ClassVar, Field, LayerIndices, Literal, Needs, StrategySettings


class MVPSettings(StrategySettings):
    """Settings of MVP; `null` switches follow the variant."""

    needs: ClassVar[Needs] = Needs(replay="optional")

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
    gamma: float = Field(2.0, ge=0, description="exponent of the focal term")
    margin: float = Field(0.5, gt=0, description="smallest divisor of the feature scaling")
    query_blocks: int | None = Field(
        None, ge=1, description="blocks the query runs through; null: all but the last (released), all (paper)"
    )
    query_norm: bool = Field(False, description="apply the backbone's final norm to the query")
    route: Literal["count", "plain"] = Field(
        "count", description="choose by distance times usage, or by distance alone, in training"
    )
    route_at_test: Literal["count", "plain"] = Field("count", description="the same in evaluation")
