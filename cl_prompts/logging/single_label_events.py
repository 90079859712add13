"""TensorBoard events of evaluations with one label an image: accuracy along the stream, confusion at session ends."""

from __future__ import annotations

from collections.abc import Sequence

from cl_prompts.logging.event_file import EventFile
from cl_prompts.logging.pictures import confusion_picture
from cl_prompts.logging.scores import ScoreHistory
from cl_prompts.metrics.records import EvaluationPoint


class SingleLabelEvents:
    """Writes `EvaluationPoint`s.

    Args:
        file: where to.
        class_names: names for the confusion matrix; numbers if None.
    """

    def __init__(self, file: EventFile, class_names: Sequence[str] | None = None) -> None:
        self._file = file
        self._class_names = class_names
        self._scores = ScoreHistory()
        self._last_anytime: int | None = None
        self._last_confusion: int | None = None

    def remember(self, point: EvaluationPoint) -> None:
        """Take up a point that an earlier run has written already."""
        self._scores.take(point)

    def write(self, point: EvaluationPoint) -> None:
        """Write a point as it is measured."""
        self.remember(point)
        if point.kind == "session":
            self._file.scalar("session/accuracy", point.accuracy, point.samples_seen)
        elif self._last_anytime != point.samples_seen:
            # Else it is the final state, already written as a periodic point: one point at one x.
            self._write_anytime(point)
        if point.kind != "periodic":
            self._write_confusion(point)

    def _write_anytime(self, point: EvaluationPoint) -> None:
        seen = self._last_anytime = point.samples_seen
        self._file.scalar("anytime/accuracy", point.accuracy, seen)
        self._file.scalar("anytime/loss", point.loss, seen)
        self._file.scalar("anytime/a_auc_so_far", self._scores.mean, seen)
        self._file.scalar("anytime/exposed_classes", int(point.exposed.sum()), seen)

    def _write_confusion(self, point: EvaluationPoint) -> None:
        if point.count.any() and self._last_confusion != point.samples_seen:
            self._last_confusion = point.samples_seen
            picture = confusion_picture(point.confusion, point.exposed, self._class_names)
            self._file.picture("confusion_matrix", picture, point.samples_seen)
