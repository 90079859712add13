"""RanPAC: ridge regression on randomly projected frozen features (McDonnell et al., NeurIPS 2023, arXiv 2307.02251).

Features pass through fixed random weights and a ReLU; the head is the ridge regression of the labels on them, from the
sums `G = H^T H` and `Q = H^T Y`, solved when a prediction is asked for. It is the paper's method without its first
phase, which adapts the backbone on the first task: here the backbone stays as it is.

The paper chooses the ridge on the current task. A stream has no tasks, so that the default is a fixed share of the
scale `tr(G) / M`, which keeps the result invariant to the order; two other rules need no task either.

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
from cl_prompts.closed_form.kept import HeldOut, KeptRows
from cl_prompts.closed_form.ridge import GramRidge
from cl_prompts.closed_form.ridge_choice import CrossValidated, HoldOut, RidgeRule, ShareOfScale, TaskGrid
from cl_prompts.closed_form.ridge_classifier import RidgeClassifier
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch


class RanPACSettings(StrategySettings):
    """Settings of RanPAC."""

    needs: ClassVar[Needs] = Needs(gradient=False, trains="nothing", multi_label=True, order_invariant=True)

    projection: int = Field(
        2000, ge=0, description="random features, the paper has 10000; 0: the backbone's own, without ReLU"
    )
    ridge: Literal["share", "cross_validation", "held_out", "task_grid"] = Field(
        "share",
        description="rule of the constant: a share of the features' scale, generalised cross-validation, the error on "
        "samples of the stream that are held out, or the published grid on each task",
    )
    ridge_share: float = Field(
        0.1, ge=1e-6, allow_inf_nan=False, description="the constant as a share of the mean squared norm tr(G)/M"
    )
    held_out_samples: int = Field(
        200, ge=1, description="samples kept apart by ridge=held_out until the constant is chosen"
    )

    def declared_needs(self) -> Needs:
        """The published grid looks at each task; a held-out sample depends on who came when."""
        changes: dict[str, dict[str, Any]] = {
            "task_grid": {"boundaries": "required", "order_invariant": False},
            "held_out": {"order_invariant": False},
        }
        return self.needs.model_copy(update=changes.get(self.ridge))

    def deviations(self) -> list[str]:
        """What a table says of these settings."""
        found = ["ranpac: without the first phase, which adapts the backbone on the first task"]
        rules = {
            "share": f"{self.ridge_share:g} of the features' scale",
            "cross_validation": "chosen by generalised cross-validation",
            "held_out": f"chosen on {self.held_out_samples} samples of the whole stream",
        }
        if self.ridge in rules:
            found.append(f"ranpac: the ridge is {rules[self.ridge]} instead of the best of a grid on each task")
        return found


class RanPACMethod(Method):
    """The learner: `classifier`, a `RidgeClassifier` in float64, filled by `fit`."""

    settings_class = RanPACSettings
    settings: RanPACSettings
    predicts_from_query = True

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: RanPACSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        expansion = RandomExpansion(backbone.width, settings.projection, "normal", generator)
        sums = GramRidge(expansion.out_width, num_classes)
        self.classifier = RidgeClassifier(expansion, sums, self._rule())

    def _rule(self) -> RidgeRule:
        settings, width, classes = self.settings, self.backbone.width, self.num_classes
        rules: dict[str, Callable[[], RidgeRule]] = {
            "share": lambda: ShareOfScale(settings.ridge_share),
            "cross_validation": CrossValidated,
            "held_out": lambda: HoldOut(
                HeldOut(settings.held_out_samples, width, classes, self.generator), settings.ridge_share
            ),
            "task_grid": lambda: TaskGrid(KeptRows(width, classes), settings.ridge_share),
        }
        return rules[settings.ridge]()

    def begin_session(self, classes: Tensor | None) -> None:
        """The published rule forgets the task before."""
        self.classifier.rule.begin_session()

    def query(self, images: Tensor) -> Tensor:
        """The features before the projection, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Scores of all classes (batch, classes) float32: above 0 is nearer to present, below to absent."""
        return self.classifier.scores(self._features(images, query)).float()

    def logits_before_fit(self, images: Tensor, query: Tensor | None) -> Tensor:
        """Scores of a stream batch from a head that is up to a tenth of the stream old: a fresh one costs a solve."""
        return self.classifier.running_scores(self._features(images, query)).float()

    def fit(self, batch: TrainingBatch) -> None:
        """Add a batch to the sums."""
        self.classifier.learn(self._features(batch.images, batch.query), batch.targets)

    def _features(self, images: Tensor | None, query: Tensor | None) -> Tensor:
        if query is not None:
            return query
        assert images is not None
        return self.query(images)


class RanPAC(ContinualStrategy):
    """RanPAC as an Avalanche strategy; `settings` is a `RanPACSettings`."""

    method_class = RanPACMethod
