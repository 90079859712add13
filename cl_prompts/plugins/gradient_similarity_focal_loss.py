"""`GradientSimilarityFocalLoss`: MVP's focal term for any model with a linear head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from torch import Tensor

from cl_prompts.errors import StrategyError
from cl_prompts.losses import FOCAL_LOSSES, gradient_dissimilarity
from cl_prompts.masks import FINITE_FILL
from cl_prompts.plugins.head_inputs import HeadHook, refuse_own


class GradientSimilarityFocalLoss(SupervisedPlugin):
    """Replaces the mean cross-entropy in `strategy.loss` by the focal one; penalties of other plugins stay.

    Works beside `LogitMask` and `AdaptiveFeatureScaling` in any order: it reads the unscaled features.

    Args:
        mode: `batch` (a factor on the mean, as released) or `sample` (a weight a sample, as in the paper).
        alpha: share of the focal term, in [0, 1].
        gamma: exponent.
        head: name of the classifier in the model; its last trained `nn.Linear` if None.

    Raises:
        StrategyError: unknown mode, a model without such a head, or a method of this project that has this part itself.
    """

    def __init__(self, mode: str = "batch", *, alpha: float = 0.5, gamma: float = 2.0, head: str | None = None) -> None:
        super().__init__()
        if mode not in FOCAL_LOSSES:
            raise StrategyError(f"focal mode {mode!r} is unknown; choose one of {', '.join(FOCAL_LOSSES)}")
        self.mode, self.alpha, self.gamma = mode, alpha, gamma
        self._features: Tensor | None = None
        self._hook = HeadHook(head, self._keep_features, first=True)

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse a model that does the same."""
        refuse_own(strategy.model, "focal", type(self).__name__)

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Watch what the head will read."""
        self._hook.attach(strategy.model)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Exchange the cross-entropy inside the loss for its focal form."""
        features, head = self._features, self._hook.head
        if features is None or head is None:
            raise StrategyError("GradientSimilarityFocalLoss: the head was not used in this forward pass")
        logits, targets = strategy.mb_output, strategy.mb_y
        with torch.no_grad():
            competing = logits > FINITE_FILL / 2
            unscaled = head(features.detach()).masked_fill(~competing, float("-inf"))
        dissimilarity = gradient_dissimilarity(features.detach(), unscaled, targets)
        cross_entropy = F.cross_entropy(logits, targets, reduction="none")
        focal = FOCAL_LOSSES[self.mode](cross_entropy, dissimilarity, self.alpha, self.gamma)
        strategy.loss = strategy.loss + (focal - cross_entropy.mean())
        self._features = None

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        self._hook.detach()

    def _keep_features(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # The call inside before_backward must not overwrite what the training pass read.
        if torch.is_grad_enabled():
            self._features = inputs[0]
