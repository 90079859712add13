"""`AdaptiveFeatureScaling`: MVP's scaling of training features by their angle to the class weight."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from cl_prompts.losses import feature_divisor
from cl_prompts.plugins.head_inputs import HeadHook, refuse_own


class AdaptiveFeatureScaling(SupervisedPlugin):
    """Divides what the head reads by 1 - cos(w_y, f) + margin, in training only: evaluation has no labels.

    Training accuracy that other plugins report is then that of the scaled features.

    Args:
        margin: smallest divisor; 0.5 as published.
        head: name of the classifier in the model; its last trained `nn.Linear` if None.

    Raises:
        StrategyError: a model without such a head, or a method of this project that has this part itself.
    """

    def __init__(self, margin: float = 0.5, *, head: str | None = None) -> None:
        super().__init__()
        self.margin = margin
        self._training: Any = None
        self._hook = HeadHook(head, self._scale, first=False)

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse a model that does the same."""
        refuse_own(strategy.model, "feature_scaling", type(self).__name__)

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Scale the next pass through the head."""
        self._hook.attach(strategy.model)
        # Its targets are read in the pass itself: a plugin behind this one may still add replayed rows.
        self._training = strategy

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Scale no other pass: evaluation and other plugins see plain features."""
        self._training = None

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        self._hook.detach()

    def _scale(self, module: torch.nn.Linear, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._training is None:
            return None
        features = inputs[0]
        divisor = feature_divisor(features, module.weight, self._training.mb_y, self.margin)
        return (features / divisor, *inputs[1:])
