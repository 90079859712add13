"""`LogitMask`: only the classes that a policy allows compete, under any Avalanche strategy."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from cl_prompts.errors import StrategyError
from cl_prompts.masks import EVAL_MASKS, FINITE_FILL, MASK_POLICIES, ClassTracker, mask_logits
from cl_prompts.plugins.stream_position import StreamPosition


class LogitMask(SupervisedPlugin):
    """Masks `strategy.mb_output` before the loss is computed, and at evaluation.

    This project's own strategies have a mask rule already, `train_mask` and `eval_mask`: there the plugin sets these
    two and does no more, so that plugin and argument mean the same.

    Args:
        policy: none, exposed (seen in the stream), task (announced for the experience), batch, or session (seen since
            the experience began). The classes of the batch itself, replay included, always compete.
        eval_policy: none or exposed.

    Attributes:
        classes: the `ClassTracker`, None before the first batch; replayed samples expose nothing.

    Raises:
        StrategyError: unknown policy; `task` on a stream without class timeline.
    """

    def __init__(self, policy: str = "exposed", *, eval_policy: str = "exposed") -> None:
        super().__init__()
        if policy not in MASK_POLICIES:
            raise StrategyError(f"LogitMask policy {policy!r} is unknown; choose one of {', '.join(MASK_POLICIES)}")
        if eval_policy not in EVAL_MASKS:
            raise StrategyError(
                f"LogitMask eval_policy {eval_policy!r} is unknown; choose one of {', '.join(EVAL_MASKS)}"
            )
        self.policy = policy
        self.eval_policy = eval_policy
        self.classes: ClassTracker | None = None
        self._position = StreamPosition()
        self._announced: torch.Tensor | None = None
        self._session_begins = False

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Hand the rule to a strategy that masks by itself."""
        if _masks_by_itself(strategy):
            strategy.train_mask, strategy.eval_mask = self.policy, self.eval_policy

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """A new session begins; the head may not have its columns yet."""
        if self.policy != "exposed" and hasattr(strategy.experience.dataset, "label_rows"):
            raise StrategyError(
                f"LogitMask policy {self.policy!r} has no effect with several labels an image, where the visible ones "
                "decide; leave the plugin out, or use exposed"
            )
        announced = getattr(strategy.experience, "classes_in_this_experience", None)
        self._announced = None if announced is None else torch.tensor(sorted(announced))
        self._session_begins = True

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count the stream rows of this experience."""
        self._position.begin_epoch(strategy)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Tell stream from replay in this batch."""
        self._position.begin_batch(strategy)

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Mask the training logits."""
        tracker = self._tracker(strategy.mb_output)
        tracker.observe(strategy.mb_y[: self._position.rows])
        if not _masks_by_itself(strategy):
            allowed = tracker.allowed(self.policy, strategy.mb_y)
            strategy.mb_output = mask_logits(strategy.mb_output, allowed, FINITE_FILL)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Move on in the stream."""
        self._position.end_batch()

    def after_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Mask the evaluation logits; the labels are not looked at."""
        if self.eval_policy == "exposed" and self.classes is not None and not _masks_by_itself(strategy):
            exposed = self._tracker(strategy.mb_output).exposed
            strategy.mb_output = mask_logits(strategy.mb_output, exposed, FINITE_FILL)

    def _tracker(self, logits: torch.Tensor) -> ClassTracker:
        columns = logits.shape[-1]
        if self.classes is None:
            self.classes = ClassTracker(columns, logits.device)
        if columns > self.classes.num_classes:
            self.classes.grow(columns)
        if self._session_begins:
            self.classes.begin_session(self._announced)
            self._session_begins = False
        return self.classes


def _masks_by_itself(strategy: Any) -> bool:
    return hasattr(strategy, "train_mask")
