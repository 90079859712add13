"""`Tables`: the metrics and tables of a run directory, behind one interface for one label a sample and for several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cl_prompts.metrics.multi_label_summary import (
    HALF,
    MULTI_LABEL_CURVE_COLUMNS,
    EvaluationChoices,
    multi_label_curve_rows,
    multi_label_metrics,
    summarise_multi_label,
)
from cl_prompts.metrics.records import EvaluationPoint, MultiLabelPoint
from cl_prompts.metrics.stream_points import Cell, StreamPoints, class_table
from cl_prompts.metrics.summary import CURVE_COLUMNS, METRICS, class_accuracy_rows, curve_rows, summarise
from scenarios.plan import BLURRY, DISJOINT

Summary = Mapping[str, float | str | None]
"""The metrics of `summary.json`."""


class Tables(Protocol):
    """What a run directory and the terminal show of the evaluations of a run.

    `points` are the periodic points and the final one, `sessions` the point at the end of each session, in order.
    """

    @property
    def metrics(self) -> Mapping[str, str]:
        """Name -> meaning of the metrics of the summary that are fractions, in the order in which they are shown."""

    @property
    def headline(self) -> tuple[str, str]:
        """Names of the metric over the whole stream and of the one after the last session."""

    @property
    def curve_columns(self) -> tuple[str, ...]:
        """Columns of `curves.csv`."""

    @property
    def class_file(self) -> str:
        """Name of the file with one value of each class at each session end."""

    def summarise(
        self, points: Iterable[Any], sessions: Iterable[Any], *, sessions_planned: int | None = None
    ) -> dict[str, Any]:
        """The metrics of a run, finished or not, valid JSON; None where one is not defined."""

    def curve_rows(self, points: Iterable[Any], sessions: Iterable[Any]) -> list[dict[str, Cell]]:
        """One row for each evaluation, in the order of the stream, with the cells of `curve_columns`."""

    def class_rows(
        self, sessions: Iterable[Any], class_names: Sequence[str] | None = None
    ) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of `class_file`: one column a class, one row a session."""

    def shown(self, summary: Summary) -> Mapping[str, str]:
        """Those of `metrics` that a table of this summary needs."""

    def counted(self, summary: Summary, sessions_planned: int | None = None) -> tuple[str, str]:
        """How many evaluations there were between session ends and at session ends, in words; empty = not worth one.

        `sessions_planned` is given where more sessions are planned than measured.
        """

    def basis(self, summary: Summary) -> list[str]:
        """What the metrics of a summary rest on, in phrases of a line each, the first a short one."""


class SingleLabelTables:
    """Accuracies: `summary.METRICS`, `curves.csv`, `class_accuracy.csv`.

    Args:
        class_kind: integers `(C,)`: 0 disjoint, 1 blurry, 2 absent.
    """

    metrics = METRICS
    headline = ("a_auc", "a_last")
    curve_columns = CURVE_COLUMNS
    class_file = "class_accuracy.csv"

    def __init__(self, class_kind: npt.ArrayLike) -> None:
        self.class_kind = class_kind

    def summarise(
        self,
        points: Iterable[EvaluationPoint],
        sessions: Iterable[EvaluationPoint],
        *,
        sessions_planned: int | None = None,
    ) -> dict[str, float | None]:
        """See `summary.summarise`."""
        return summarise(points, sessions, self.class_kind, sessions_planned=sessions_planned)

    def curve_rows(
        self, points: Iterable[EvaluationPoint], sessions: Iterable[EvaluationPoint]
    ) -> list[dict[str, Cell]]:
        """See `summary.curve_rows`."""
        return curve_rows(points, sessions, self.class_kind)

    def class_rows(
        self, sessions: Iterable[EvaluationPoint], class_names: Sequence[str] | None = None
    ) -> tuple[list[str], list[list[Any]]]:
        """The accuracy of each class; see `summary.class_accuracy_rows`."""
        return class_accuracy_rows(sessions, class_names)

    def shown(self, summary: Summary) -> Mapping[str, str]:
        """All of them."""
        return self.metrics

    def counted(self, summary: Summary, sessions_planned: int | None = None) -> tuple[str, str]:
        """Anytime evaluations, the final one among them, and sessions."""
        sessions = _part(summary.get("sessions_measured") or 0, sessions_planned)
        return f"{summary.get('anytime_points') or 0} anytime evaluations", f"{sessions} sessions"

    def basis(self, summary: Summary) -> list[str]:
        """Over how many classes forgetting is a mean."""
        return [f"f_last over {summary.get('f_last_classes') or 0} classes"]


class MultiLabelTables:
    """Average precisions and F1: `multi_label_summary`, `curves.csv`, `class_average_precision.csv`.

    Args:
        class_kind: integers `(C,)`: 0 disjoint, 1 blurry, 2 absent.
        settings: how the points were measured: `eval_images`, `threshold`, `scores`, `cf1`.
    """

    headline = ("map_avg", "map_last")
    curve_columns = MULTI_LABEL_CURVE_COLUMNS
    class_file = "class_average_precision.csv"

    def __init__(self, class_kind: npt.ArrayLike, settings: EvaluationChoices) -> None:
        self.class_kind = class_kind
        self.settings = settings

    @property
    def metrics(self) -> Mapping[str, str]:
        """Name -> meaning, with the threshold and the kind of CF1 in it."""
        return multi_label_metrics(self.settings)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds that points must have been measured at, for `evaluate_logits`."""
        return tuple(dict.fromkeys((self.settings.threshold, HALF)))

    def summarise(
        self,
        points: Iterable[MultiLabelPoint],
        sessions: Iterable[MultiLabelPoint],
        *,
        sessions_planned: int | None = None,
    ) -> dict[str, float | str | None]:
        """See `multi_label_summary.summarise_multi_label`."""
        return summarise_multi_label(
            points, sessions, self.class_kind, self.settings, sessions_planned=sessions_planned
        )

    def curve_rows(
        self, points: Iterable[MultiLabelPoint], sessions: Iterable[MultiLabelPoint]
    ) -> list[dict[str, Cell]]:
        """See `multi_label_summary.multi_label_curve_rows`."""
        return multi_label_curve_rows(points, sessions, self.class_kind, self.settings)

    def class_rows(
        self, sessions: Iterable[MultiLabelPoint], class_names: Sequence[str] | None = None
    ) -> tuple[list[str], list[list[Any]]]:
        """The average precision of each class; NaN where there is no positive or the class is not exposed."""
        ends = StreamPoints.of(MultiLabelPoint, [], sessions).ends
        return class_table(ends, lambda point: point.class_average_precision, class_names)

    def shown(self, summary: Summary) -> Mapping[str, str]:
        """Without the parts of mAP where all classes are of one kind, and without an anytime mAP never measured."""
        kinds = np.unique(np.asarray(self.class_kind))
        hidden = () if {DISJOINT, BLURRY} <= set(kinds.tolist()) else ("map_last_disjoint", "map_last_blurry")
        if summary.get("map_anytime") is None:
            hidden = (*hidden, "map_anytime")
        return {name: meaning for name, meaning in self.metrics.items() if name not in hidden}

    def counted(self, summary: Summary, sessions_planned: int | None = None) -> tuple[str, str]:
        """Evaluations between session ends, if there were any, and sessions."""
        between, ended = summary.get("anytime_points") or 0, summary.get("sessions_measured") or 0
        sessions = f"{_part(ended, sessions_planned)} {_plural('session', sessions_planned or ended)}"
        return f"{between} anytime {_plural('evaluation', between)}" if between else "", sessions

    def basis(self, summary: Summary) -> list[str]:
        """Classes behind forgetting and mAP, the evaluated images, and what the values depend on."""
        images = {
            "seen": "with a class seen so far",
            "all": "with any class",
            "final_seen": "with a class seen by the end",
        }[self.settings.eval_images]
        scores = {"sigmoid": "float32 sigmoids", "logit": "logits"}[self.settings.scores]
        forgetting = summary.get("ap_forgetting_classes") or 0
        lines = [
            f"ap_forgetting over {forgetting} {_plural('class', forgetting)}",
            *_evaluated_classes(summary),
            f"test images {images}; AP ranks {scores}",
        ]
        threshold = summary.get("oracle_threshold")
        if isinstance(threshold, float):
            lines.append(f"oracle threshold {threshold:.3f}: chosen on the test labels, only a bound")
        return lines


def classes_in_words(measured: int, seen: int) -> str:
    """Over how many of the classes seen so far mAP is a mean: those with a positive test label."""
    return f"{f'{measured} of ' if measured < seen else ''}{seen} seen {_plural('class', seen)}"


def _evaluated_classes(summary: Summary) -> list[str]:
    if summary.get("map_last_classes") is None:
        return []
    names = ("map_last_classes", "exposed_classes", "map_last_unlabelled_classes")
    measured, seen, unlabelled = (int(summary.get(name) or 0) for name in names)
    words = f"mAP over {classes_in_words(measured, seen)}"
    lines = [f"{words}; the others have no test positive" if measured < seen else words]
    if unlabelled:
        lines.append(f"{unlabelled} seen {_plural('class', unlabelled)} evaluated without a positive label in training")
    return lines


def _part(measured: Any, planned: int | None) -> str:
    return f"{measured}" if planned is None else f"{measured} of {planned}"


def _plural(noun: str, number: Any) -> str:
    return noun if number == 1 else noun + ("es" if noun.endswith("s") else "s")
