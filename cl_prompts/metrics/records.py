"""What one evaluation of the model measured, and at which place of the stream.

`EvaluationPoint` for one label a sample, `MultiLabelPoint` for several. What plots and tables need of either is the
same: `samples_seen`, `nominal`, `kind`, `session`, `exposed`, `loss`, and `score` with its name `score_name`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.accuracy import class_accuracy, total_accuracy
from cl_prompts.metrics.multi_label import MultiLabelResult

Kind = Literal["periodic", "session", "final"]
"""Every K samples; at the end of a session; after the last sample of the stream."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationPoint:
    """One evaluation on the test samples of the classes exposed so far. Labels are data-set class ids.

    Raises:
        MetricError: arrays that contradict each other (shapes, more correct than counted, samples of unexposed
            classes, a confusion matrix with other sums).
    """

    score_name: ClassVar[str] = "accuracy"
    """What `score` is."""

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
    def score(self) -> float:
        """The one number of the evaluation: the accuracy."""
        return self.accuracy

    @property
    def class_accuracy(self) -> npt.NDArray[np.float64]:
        """Accuracy of each class, `(C,)`; NaN where there is no test sample or the class is not exposed."""
        return class_accuracy(self.correct, self.count)


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabelPoint:
    """One multi-label evaluation on the columns of the classes exposed so far. Columns are data-set class ids.

    Raises:
        MetricError: a result with columns of classes that are not exposed, or with another number of classes.
    """

    score_name: ClassVar[str] = "mAP"
    """What `score` is."""

    samples_seen: int
    """Presentations of stream samples so far, replay not counted: the x axis."""
    nominal: int
    """The multiple of the period that caused the evaluation (`samples_seen` outside periodic points)."""
    kind: Kind
    session: int | None
    """The session that ended, from 0; None where it is not the end of one."""
    exposed: npt.NDArray[np.bool_]
    """Classes with at least one training label so far, `(C,)`."""
    loss: float
    """Mean evaluation loss over the known entries of the columns; NaN if nothing was evaluated."""
    result: MultiLabelResult
    """Average precisions, CF1 and OF1."""

    def __post_init__(self) -> None:
        if self.exposed.shape != self.result.columns.shape:
            raise MetricError(
                f"MultiLabelPoint.exposed: shape {self.exposed.shape}, expected {self.result.columns.shape} as columns"
            )
        if np.any(self.result.columns & ~self.exposed):
            raise MetricError(
                "MultiLabelPoint.result: has columns of classes not exposed yet; evaluate exposed classes"
            )

    @classmethod
    def from_result(
        cls,
        result: MultiLabelResult,
        *,
        samples_seen: int,
        kind: Kind,
        loss: float,
        exposed: npt.NDArray[np.bool_],
        nominal: int | None = None,
        session: int | None = None,
    ) -> MultiLabelPoint:
        """Build a point from what `evaluate_logits` returned; `nominal` defaults to `samples_seen`."""
        return cls(
            samples_seen=samples_seen,
            nominal=samples_seen if nominal is None else nominal,
            kind=kind,
            session=session,
            exposed=exposed,
            loss=loss,
            result=result,
        )

    @property
    def score(self) -> float:
        """The one number of the evaluation: mAP; NaN if no evaluated class has a positive."""
        return self.result.mean_average_precision

    @property
    def class_average_precision(self) -> npt.NDArray[np.float64]:
        """Average precision of each class, `(C,)`; NaN where there is no positive or the class is not exposed."""
        return self.result.average_precision


Point = EvaluationPoint | MultiLabelPoint
"""An evaluation of either kind."""
