"""`EvaluationPoint`: what one evaluation of the model measured, and at which place of the stream."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.accuracy import class_accuracy, total_accuracy

Kind = Literal["periodic", "session", "final"]
"""Every K samples; at the end of a session; after the last sample of the stream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationPoint:
    """One evaluation on the test samples of the classes exposed so far. Labels are data-set class ids.

    Raises:
        MetricError: arrays that contradict each other (shapes, more correct than counted, samples of unexposed
            classes, a confusion matrix with other sums).
    """

    samples_seen: int
    """Stream samples learnt, each once: the x axis."""
    nominal: int
    """The multiple of the period that caused the evaluation (`samples_seen` outside periodic points)."""
    kind: Kind
    session: int | None
    """The session that ended, from 0; None where it is not the end of one."""
    correct: npt.NDArray[np.int64]
    """Correctly classified test samples of each class, `(C,)`."""
    count: npt.NDArray[np.int64]
    """Test samples of each class, `(C,)`; 0 for a class not exposed yet."""
    confusion: npt.NDArray[np.int64]
    """Row = true class, column = prediction, `(C, C)`."""
    loss: float
    """Mean evaluation loss; NaN if nothing was evaluated."""
    exposed: npt.NDArray[np.bool_]
    """Classes with at least one training sample so far, `(C,)`."""

    def __post_init__(self) -> None:
        classes = len(self.exposed)
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)}
        expected = {"correct": (classes,), "count": (classes,), "exposed": (classes,), "confusion": (classes, classes)}
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise MetricError(f"EvaluationPoint.{name}: shape {shapes[name]}, expected {shape}")
        if np.any(self.correct > self.count) or np.any(self.correct < 0):
            raise MetricError("EvaluationPoint.correct: outside 0..count for some class; count every test sample once")
        if np.any(self.count[~self.exposed]):
            raise MetricError(
                "EvaluationPoint.count: test samples of a class not exposed yet; evaluate exposed classes"
            )
        if not (
            np.array_equal(self.confusion.sum(axis=1), self.count)
            and np.array_equal(np.diagonal(self.confusion), self.correct)
        ):
            raise MetricError("EvaluationPoint.confusion: rows must sum to count and its diagonal be correct")

    @classmethod
    def from_confusion(
        cls,
        confusion: npt.NDArray[np.int64],
        *,
        samples_seen: int,
        kind: Kind,
        loss: float,
        exposed: npt.NDArray[np.bool_],
        nominal: int | None = None,
        session: int | None = None,
    ) -> EvaluationPoint:
        """Build a point from its confusion matrix `(C, C)`, row = true class; `nominal` defaults to `samples_seen`."""
        return cls(
            samples_seen=samples_seen,
            nominal=samples_seen if nominal is None else nominal,
            kind=kind,
            session=session,
            correct=np.diagonal(confusion).copy(),
            count=confusion.sum(axis=1),
            confusion=confusion,
            loss=loss,
            exposed=exposed,
        )

    @property
    def accuracy(self) -> float:
        """Share of correct test samples; NaN if none was evaluated."""
        return total_accuracy(self.correct, self.count)

    @property
    def class_accuracy(self) -> npt.NDArray[np.float64]:
        """Accuracy of each class, `(C,)`; NaN where there is no test sample or the class is not exposed."""
        return class_accuracy(self.correct, self.count)
