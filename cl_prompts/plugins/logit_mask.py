"""`LogitMask`: only the classes that a policy allows compete, under any Avalanche strategy."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from cl_prompts.errors import StrategyError
from cl_prompts.masks import FINITE_FILL, MASK_POLICIES, ClassTracker, mask_logits


class LogitMask(SupervisedPlugin):
    """Masks `strategy.mb_output` before the loss is computed, and at evaluation.

    This project's own strategies take `train_mask=...` instead; the rule behind both is `cl_prompts.masks`.

    Args:
        policy: none, exposed (seen in the stream), task (announced for the experience), batch, or session (seen since
            the experience began).
        eval_policy: none or exposed.

    Raises:
        StrategyError: unknown policy; `task` on a stream without class timeline.
    """

    def __init__(self, policy: str = "exposed", *, eval_policy: str = "exposed") -> None:
        super().__init__()
        if policy not in MASK_POLICIES:
            raise StrategyError(f"LogitMask policy {policy!r} is unknown; choose one of {', '.join(MASK_POLICIES)}")
        if eval_policy not in ("none", "exposed"):
            raise StrategyError(f"LogitMask eval_policy {eval_policy!r} is unknown; choose none or exposed")
        self.policy = policy
        self.eval_policy = eval_policy
        self.classes: ClassTracker | None = None
        self._task_classes: torch.Tensor | None = None

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """A new session begins."""
        announced = getattr(strategy.experience, "classes_in_this_experience", None)
        self._task_classes = None if announced is None else torch.tensor(sorted(announced))
        if self.classes is not None:
            self.classes.begin_session(self._task_classes)

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Mask the training logits."""
        tracker = self._tracker(strategy.mb_output)
        tracker.observe(strategy.mb_y)
        allowed = tracker.allowed(self.policy, strategy.mb_y)
        strategy.mb_output = mask_logits(strategy.mb_output, allowed, FINITE_FILL)

    def after_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Mask the evaluation logits; the labels are not looked at."""
        if self.eval_policy == "exposed" and self.classes is not None:
            exposed = self._tracker(strategy.mb_output).exposed
            strategy.mb_output = mask_logits(strategy.mb_output, exposed, FINITE_FILL)

    def _tracker(self, logits: torch.Tensor) -> ClassTracker:
        columns = logits.shape[-1]
        if self.classes is None:
            self.classes = ClassTracker(columns, logits.device)
            self.classes.begin_session(self._task_classes)
        elif columns > self.classes.num_classes:
            self._grow(columns)
        return self.classes

    def _grow(self, columns: int) -> None:
        """Follow a head that gained columns."""
        assert self.classes is not None
        grown = ClassTracker(columns, self.classes.exposed.device)
        grown.begin_session(self._task_classes)
        grown.exposed[: self.classes.num_classes] = self.classes.exposed
        grown.session[: self.classes.num_classes] = self.classes.session
        self.classes = grown
