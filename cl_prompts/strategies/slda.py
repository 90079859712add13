"""SLDA: streaming linear discriminant analysis on frozen features (Hayes and Kanan, 2020), without gradient.

Class means and one covariance within the classes, shared by all, from running sums.

`variant=paper` is exact: mean and covariance equal those of all samples together, so that the order of the stream
cannot change the result beyond rounding in float64. `variant=released` is the recursion of the published code
(Avalanche's `StreamingLDA`), whose factor `N / (N + 1)` belongs to a single global mean: the first sample of each class
adds nearly the square of the feature itself to the covariance.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.closed_form.cached import Cached
from cl_prompts.closed_form.scatter import ClassScatter, Discriminant, linear_discriminant
from cl_prompts.masks import FINITE_FILL, mask_logits
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings, model_validator
from cl_prompts.strategies.method import Method, TrainingBatch


class SLDASettings(StrategySettings):
    """Settings of streaming linear discriminant analysis."""

    needs: ClassVar[Needs] = Needs(gradient=False, trains="nothing", order_invariant=True)

    variant: Literal["paper", "released"] = Field(
        "paper", description="the exact covariance within classes, or the published recursion"
    )
    shrinkage: float = Field(1e-4, gt=0, le=1, description="share of the unit matrix in the covariance")
    base_samples: int = Field(
        0, ge=0, description="first samples, whose covariance is replaced by its OAS estimate; 0: no such phase"
    )
    plastic_covariance: bool = Field(True, description="update the covariance after the base phase")

    @model_validator(mode="after")
    def _check_combinations(self) -> "SLDASettings":  # noqa: UP037 -- also evaluated without this file's imports
        """Refuse a covariance that nothing would ever fill."""
        if not self.plastic_covariance and not self.base_samples:
            raise ValueError(
                "plastic_covariance=false: there would be no covariance; set strategy.base_samples, for example 500"
            )
        return self

    def declared_needs(self) -> Needs:
        """Invariant to the order in the exact form; with a base phase its first samples matter."""
        exact = self.variant == "paper" and not self.base_samples
        return self.needs.model_copy(update={"order_invariant": exact})

    def deviations(self) -> list[str]:
        """What a table says of these settings."""
        if self.variant == "released":
            return ["slda: classes without a sample cannot be predicted; in the published code their score is 0"]
        return ["slda: the exact covariance within classes in place of the published recursion"]


class SLDAMethod(Method):
    """The learner: `statistics`, a `ClassScatter` in float64, filled by `fit`."""

    settings_class = SLDASettings
    settings: SLDASettings
    predicts_from_query = True

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: SLDASettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.statistics = ClassScatter(backbone.width, num_classes)
        self._discriminant: Cached[Discriminant] = Cached()

    def query(self, images: Tensor) -> Tensor:
        """The features themselves, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Scores of all classes (batch, classes) float32, the best at 0; `FINITE_FILL` without a sample."""
        if query is None:
            assert images is not None
            query = self.query(images)
        weight, bias = self._discriminant.of(self.statistics.buffers(), self._solved)
        known = self.statistics.counts > 0
        scores = (query.double() @ weight + bias).masked_fill(~known, float("-inf"))
        # Relative to the best: scores of nearly singular covariances lie below any finite fill.
        scores = scores - scores.amax(-1, keepdim=True)
        # The score 0 of a class without a sample may be the largest: it must not attract.
        return mask_logits(scores.float(), known, FINITE_FILL)

    @torch.no_grad()
    def fit(self, batch: TrainingBatch) -> None:
        """Add a batch to the means and the scatter."""
        settings, statistics, targets = self.settings, self.statistics, batch.targets
        features = self.query(batch.images) if batch.query is None else batch.query
        base = 0
        if settings.base_samples:
            seen = int(statistics.counts.sum())
            base = min(max(settings.base_samples - seen, 0), len(targets))
            statistics.add(features[:base], targets[:base])
            if base and seen + base == settings.base_samples:
                statistics.shrink()
        add = statistics.add if settings.variant == "paper" else statistics.add_released
        add(features[base:], targets[base:], scatter=settings.plastic_covariance)

    def _solved(self) -> Discriminant:
        statistics = self.statistics
        return linear_discriminant(statistics.means, statistics.covariance(), self.settings.shrinkage)


class SLDA(ContinualStrategy):
    """Streaming linear discriminant analysis as an Avalanche strategy; `settings` is an `SLDASettings`."""

    method_class = SLDAMethod
