"""Which classes may compete: the five mask policies of the field, as pure functions and one small state.

Published codes call four different rules "the mask" and they move results by more than most methods do, so the rule
is named, belongs to the protocol, and is computed here for strategies and plugins alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cl_prompts.errors import StrategyError
from cl_prompts.labels import check_labels_of_batch, label_kind

FINITE_FILL = -1.0e4
"""Fill for logits that foreign code will use again: its exponential is exactly 0 in float32 and bfloat16, while
infinity times a zero probability (distillation in LwF) or a target outside the mask would be NaN or infinite."""


@dataclass
class ClassTracker:
    """The classes met so far: in the stream, since the session began, and announced for the current task.

    Args:
        num_classes: columns of the head.
        device: where the boolean vectors live.
    """

    num_classes: int
    device: torch.device | str = "cpu"
    exposed: Tensor = field(init=False)
    session: Tensor = field(init=False)
    task: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.exposed = torch.zeros(self.num_classes, dtype=torch.bool, device=self.device)
        self.session = self.exposed.clone()

    def begin_session(self, task_classes: Tensor | None = None) -> None:
        """Forget the session's classes; `task_classes` (int64, any length) are those announced for the new task."""
        self.session = torch.zeros_like(self.exposed)
        self.task = None if task_classes is None else _members(task_classes, self.num_classes, self.exposed.device)

    def grow(self, num_classes: int) -> None:
        """Follow a head that gained columns; nothing is forgotten."""
        added = num_classes - self.num_classes
        self.num_classes = num_classes
        self.exposed = torch.nn.functional.pad(self.exposed, (0, added))
        self.session = torch.nn.functional.pad(self.session, (0, added))
        self.task = None if self.task is None else torch.nn.functional.pad(self.task, (0, added))

    def observe(self, targets: Tensor) -> None:
        """Mark the classes that the labels of a stream batch tell about; see `cl_prompts.labels`.

        Raises:
            StrategyError: a label out of range.
        """
        check_labels_of_batch(targets, self.num_classes)
        shown = _shown(self, targets)
        self.exposed |= shown
        self.session |= shown

    def allowed(self, policy: str, targets: Tensor) -> Tensor:
        """Columns that compete in the loss of this batch, bool (classes,).

        The classes of the batch itself (stream and replay together) are always among them, so that no target is ever
        outside its own mask.

        Raises:
            StrategyError: unknown policy, or `task` where no task classes were announced.
        """
        if policy not in MASK_POLICIES:
            raise StrategyError(f"mask policy {policy!r} is unknown; choose one of {', '.join(MASK_POLICIES)}")
        return MASK_POLICIES[policy](self, targets)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores."""
        return {"exposed": self.exposed, "session": self.session, "task": self.task}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        device = self.exposed.device
        self.exposed, self.session = state["exposed"].to(device), state["session"].to(device)
        self.task = None if state["task"] is None else state["task"].to(device)

    def to(self, device: torch.device | str) -> ClassTracker:
        """Move the vectors to `device`."""
        self.exposed, self.session = self.exposed.to(device), self.session.to(device)
        self.task = None if self.task is None else self.task.to(device)
        return self


def _members(classes: Tensor, num_classes: int, device: torch.device) -> Tensor:
    return torch.zeros(num_classes, dtype=torch.bool, device=device).index_fill_(0, classes.to(device), True)


def _shown(tracker: ClassTracker, targets: Tensor) -> Tensor:
    return label_kind(targets).shown(targets.to(tracker.exposed.device), tracker.num_classes)


def _all(tracker: ClassTracker, targets: Tensor) -> Tensor:
    return torch.ones_like(tracker.exposed)


def _batch(tracker: ClassTracker, targets: Tensor) -> Tensor:
    return _shown(tracker, targets)


def _exposed(tracker: ClassTracker, targets: Tensor) -> Tensor:
    return tracker.exposed | _shown(tracker, targets)


def _session(tracker: ClassTracker, targets: Tensor) -> Tensor:
    return tracker.session | _shown(tracker, targets)


def _task(tracker: ClassTracker, targets: Tensor) -> Tensor:
    if tracker.task is None:
        raise StrategyError(
            "mask policy 'task' needs the classes of the current task, which this stream does not announce; "
            "use 'exposed' or 'batch'"
        )
    return tracker.task | _shown(tracker, targets)


MASK_POLICIES: dict[str, Callable[[ClassTracker, Tensor], Tensor]] = {
    "none": _all,
    "exposed": _exposed,
    "task": _task,
    "batch": _batch,
    "session": _session,
}
"""Policy name -> allowed columns: every class; seen in the stream; of the task; of the batch; seen in the session."""


EVAL_MASKS = ("exposed", "none")
"""Classes that compete in a prediction: those seen so far, or all columns of the head."""


def mask_logits(logits: Tensor, allowed: Tensor, fill: float = float("-inf")) -> Tensor:
    """Replace the logits of classes that do not compete.

    Args:
        logits: (batch, classes), float; left unchanged.
        allowed: (classes,) bool.
        fill: minus infinity inside our own losses, `FINITE_FILL` where other code reads the logits.

    Returns:
        (batch, classes), same dtype.
    """
    return logits.masked_fill(~allowed, fill)
