"""GACL: generalized analytic continual learning (Zhuang et al., NeurIPS 2024, arXiv 2403.15706), without gradient.

Frozen features are expanded by fixed random weights and a ReLU; the head is the ridge regression of the labels on all
samples so far, for one constant gamma. The paper keeps it current by a recursion (`solver=recursive`); the sums of
`solver=gram` give the same head, cheaper for each batch and solved when a prediction is asked for. Either is exact:
neither the order of the stream nor its sessions change more than rounding in float64.

`variant=released` counts every sample three times, as the published code does, which equals a third of gamma.

With several labels an image the targets are rows of 0 and 1, and a hidden label counts as 0: see
`closed_form.ridge.target_rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.closed_form.expansion import RandomExpansion
from cl_prompts.closed_form.ridge import GramRidge, RecursiveRidge
from cl_prompts.closed_form.ridge_choice import FixedRidge
from cl_prompts.closed_form.ridge_classifier import RidgeClassifier
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch

REPETITIONS = {"paper": 1, "released": 3}
"""Variant -> how often each sample counts."""


class GACLSettings(StrategySettings):
    """Settings of GACL; `null` follows the variant."""

    needs: ClassVar[Needs] = Needs(gradient=False, trains="nothing", multi_label=True, order_invariant=True)
    # As small beside the features of a toy stream as 100 is beside those of a real one.
    toy_settings: ClassVar[dict[str, Any]] = {"gamma": 0.1}

    variant: Literal["paper", "released"] = Field(
        "paper", description="each sample once, or three times as in the published code"
    )
    expansion: int = Field(2000, ge=1, description="random features, the paper has 5000")
    gamma: float = Field(100.0, gt=0, allow_inf_nan=False, description="constant of the ridge regression")
    repetitions: int | None = Field(
        None, ge=1, description="how often each sample counts; null: 1 (paper), 3 (released); the same as gamma over it"
    )
    solver: Literal["gram", "recursive"] = Field(
        "gram", description="sums, solved for each prediction; or the head kept current by the paper's recursion"
    )

    def deviations(self) -> list[str]:
        """What a table says of these settings."""
        found = ["gacl: images as evaluation prepares them; the published code fits on augmented ones"]
        if self.variant == "released" and self.repetitions is None:
            found.append("gacl: each sample counts three times, as published, which equals a third of gamma")
        return found


class GACLMethod(Method):
    """The learner: `classifier`, a `RidgeClassifier` in float64, filled by `fit`."""

    settings_class = GACLSettings
    settings: GACLSettings
    predicts_from_query = True

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: GACLSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.repetitions = settings.repetitions or REPETITIONS[settings.variant]
        expansion = RandomExpansion(backbone.width, settings.expansion, "uniform", generator)
        ridge = settings.gamma / self.repetitions
        solvers: dict[str, Callable[[], GramRidge | RecursiveRidge]] = {
            "gram": lambda: GramRidge(settings.expansion, num_classes),
            "recursive": lambda: RecursiveRidge(settings.expansion, num_classes, ridge),
        }
        self.classifier = RidgeClassifier(expansion, solvers[settings.solver](), FixedRidge(ridge, "strategy.gamma"))

    def query(self, images: Tensor) -> Tensor:
        """The features before the expansion, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Scores of all classes (batch, classes) float32: above 0 is nearer to present, below to absent."""
        return self.classifier.scores(self._features(images, query)).float()

    def logits_before_fit(self, images: Tensor, query: Tensor | None) -> Tensor:
        """Scores of a stream batch; from sums, of a head that is up to a tenth of the stream old."""
        return self.classifier.running_scores(self._features(images, query)).float()

    def fit(self, batch: TrainingBatch) -> None:
        """Take up a batch."""
        self.classifier.learn(self._features(batch.images, batch.query), batch.targets)

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the variant's choice in place of null."""
        return super().effective_settings() | {"repetitions": self.repetitions}

    def _features(self, images: Tensor | None, query: Tensor | None) -> Tensor:
        if query is not None:
            return query
        assert images is not None
        return self.query(images)


class GACL(ContinualStrategy):
    """GACL as an Avalanche strategy; `settings` is a `GACLSettings`."""

    method_class = GACLMethod
