"""NCM: nearest class mean on frozen features (Mensink et al., 2013), running sums, no gradient.

With cosine similarity this is SimpleCIL (Zhou et al., arXiv 2303.07338).

Sums run over the whole stream, so a class that returns adds to its mean instead of replacing it, and the order of
the stream cannot change the result beyond rounding in float64.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.masks import FINITE_FILL, mask_logits
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch


class NCMSettings(StrategySettings):
    """Settings of the nearest-class-mean learner."""

    needs: ClassVar[Needs] = Needs(gradient=False, trains="nothing", order_invariant=True)

    similarity: Literal["cosine", "euclidean"] = Field("cosine", description="how an image is compared with the means")


def cosine_scores(features: Tensor, means: Tensor) -> Tensor:
    """Cosine of (batch, width) features with (classes, width) means, (batch, classes)."""
    return F.normalize(features, dim=-1) @ F.normalize(means, dim=-1).T


def euclidean_scores(features: Tensor, means: Tensor) -> Tensor:
    """Minus the squared distance of (batch, width) features to (classes, width) means, (batch, classes)."""
    return -torch.cdist(features, means).square()


SCORES = {"cosine": cosine_scores, "euclidean": euclidean_scores}


class NCMMethod(Method):
    """The learner: `sums` (classes, width) and `counts` (classes,), both float64 and filled by `fit`."""

    settings_class = NCMSettings
    predicts_from_query = True

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: NCMSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.scores = SCORES[settings.similarity]
        self.sums: Tensor
        self.counts: Tensor
        self.register_buffer("sums", torch.zeros(num_classes, backbone.width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    def query(self, images: Tensor) -> Tensor:
        """The features themselves, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Scores of all classes (batch, classes) float32, the best at 0; `FINITE_FILL` without a sample."""
        if query is None:
            assert images is not None
            query = self.query(images)
        means = self.sums / self.counts.clamp(min=1)[:, None]
        known = self.counts > 0
        scores = self.scores(query.double(), means).masked_fill(~known, float("-inf"))
        # Relative to the best: squared distances of wide features lie below any finite fill.
        scores = scores - scores.amax(-1, keepdim=True)
        # The zero mean of a class without a sample is a place like any other: it must not attract.
        return mask_logits(scores.float(), known, FINITE_FILL)

    @torch.no_grad()
    def fit(self, batch: TrainingBatch) -> None:
        """Add a batch to the running sums."""
        features = self.query(batch.images) if batch.query is None else batch.query
        self.sums.index_add_(0, batch.targets, features.double())
        self.counts.index_add_(0, batch.targets, torch.ones_like(batch.targets, dtype=torch.float64))


class NCM(ContinualStrategy):
    """Nearest class mean as an Avalanche strategy; `settings` is an `NCMSettings`."""

    method_class = NCMMethod
