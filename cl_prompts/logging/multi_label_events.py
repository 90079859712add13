"""TensorBoard events of evaluations with several labels an image: mAP, CF1, OF1, and what lies behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cl_prompts.logging.axis_marks import spread
from cl_prompts.logging.event_file import EventFile
from cl_prompts.logging.multi_label_pictures import calibration_picture, class_precision_picture
from cl_prompts.logging.scores import ScoreHistory
from cl_prompts.metrics.calibration import calibration
from cl_prompts.metrics.multi_label import sigmoid32
from cl_prompts.metrics.records import MultiLabelPoint

if TYPE_CHECKING:
    from cl_prompts.evaluation import EvaluatedLogits

PRECISION_RECALL_CLASSES = 10
"""So many classes have a precision-recall curve, evenly spread over all of them and the same all along a run."""


class MultiLabelEvents:
    """Writes `MultiLabelPoint`s.

    Args:
        file: where to.
        class_names: names of the classes; numbers if None.
        evaluated: gives the logits of the latest evaluation; None leaves out what needs them.
    """

    def __init__(
        self,
        file: EventFile,
        class_names: Sequence[str] | None = None,
        evaluated: Callable[[], EvaluatedLogits | None] | None = None,
    ) -> None:
        self._file = file
        self._class_names = class_names
        self._evaluated = evaluated
        self._scores = ScoreHistory()
        self._sessions: list[MultiLabelPoint] = []
        self._last_anytime: int | None = None

    def remember(self, point: MultiLabelPoint) -> None:
        """Take up a point that an earlier run has written already."""
        self._scores.take(point)
        if point.kind == "session":
            self._sessions.append(point)

    def write(self, point: MultiLabelPoint) -> None:
        """Write a point as it is measured."""
        self.remember(point)
        if point.kind == "session":
            self._write_scalars("session", point)
            self._file.scalar("session/map_so_far", self._scores.session_mean, point.samples_seen)
            if point.result.columns.any():
                self._write_classes(point)
                self._write_labels(point)
        elif self._last_anytime != point.samples_seen and (self._scores.periodic or not self._sessions):
            # The final state is not written where a periodic point or, without any, a session end has it already.
            self._last_anytime = point.samples_seen
            self._write_scalars("anytime", point)
            self._file.scalar("anytime/map_so_far", self._scores.mean, point.samples_seen)

    def _write_scalars(self, group: str, point: MultiLabelPoint) -> None:
        seen = point.samples_seen
        self._file.scalar(f"{group}/mAP", point.score, seen)
        for values in point.result.thresholds:
            self._file.scalar(f"{group}/CF1@{values.threshold:g}", values.cf1, seen)
            self._file.scalar(f"{group}/CF1_from_mean_pr@{values.threshold:g}", values.cf1_from_mean_pr, seen)
            self._file.scalar(f"{group}/OF1@{values.threshold:g}", values.of1, seen)
        self._file.scalar(f"{group}/loss", point.loss, seen)
        self._file.scalar(f"{group}/exposed_classes", int(point.exposed.sum()), seen)

    def _write_classes(self, point: MultiLabelPoint) -> None:
        precisions = point.class_average_precision
        for label in np.flatnonzero(point.result.columns).tolist():
            self._file.scalar(f"session_class_AP/{self._name(label)}", float(precisions[label]), point.samples_seen)
        picture = class_precision_picture(
            np.array([session.class_average_precision for session in self._sessions]),
            np.array([session.result.columns for session in self._sessions]),
            self._class_names,
            [session.session for session in self._sessions],
        )
        self._file.picture("class_average_precision", picture, point.samples_seen)

    def _write_labels(self, point: MultiLabelPoint) -> None:
        evaluated = None if self._evaluated is None else self._evaluated()
        if evaluated is None:
            return
        seen = point.samples_seen
        logits, targets = evaluated.logits[evaluated.rows], evaluated.targets[evaluated.rows]
        scores, known = sigmoid32(logits), ~np.isnan(targets)
        for label in spread(len(evaluated.columns), PRECISION_RECALL_CLASSES):
            if evaluated.columns[label]:
                rows = known[:, label]
                name = f"precision_recall/{self._name(label)}"
                self._file.precision_recall(name, targets[rows, label] == 1, scores[rows, label], seen)
        entries = known & evaluated.columns
        self._file.precision_recall("precision_recall/all_columns", targets[entries] == 1, scores[entries], seen)
        report = calibration(logits, targets, evaluated.columns)
        self._file.scalar("session/calibration_error", report.ece, seen)
        self._file.picture("calibration", calibration_picture(report), seen)

    def _name(self, label: int) -> str:
        return str(label) if self._class_names is None else self._class_names[label]
