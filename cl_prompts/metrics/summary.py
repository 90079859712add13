"""From evaluation points to the numbers of `summary.json` and the rows of `curves.csv` and `class_accuracy.csv`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from cl_prompts.metrics.accuracy import accuracy_of_kind
from cl_prompts.metrics.anytime import a_auc, a_auc_trapz, a_avg, a_last
from cl_prompts.metrics.forgetting import f_last
from cl_prompts.metrics.records import EvaluationPoint
from cl_prompts.metrics.stream_points import Cell, StreamPoints, class_table, place_cells
from scenarios.plan import BLURRY, DISJOINT

METRICS: Mapping[str, str] = MappingProxyType(
    {
        "a_auc": "anytime accuracy: mean of the periodic evaluations",
        "a_auc_trapz": "area under the accuracy curve, final point included",
        "a_avg": "mean of the accuracies at the session ends",
        "a_last": "accuracy after the last session",
        "a_last_disjoint": "the same, on the disjoint classes",
        "a_last_blurry": "the same, on the blurry classes",
        "f_last": "best earlier accuracy of a class minus its last",
    }
)
"""Names of the metrics in `summary.json` that are fractions, in the order in which they are shown."""


def summarise(
    points: Iterable[EvaluationPoint],
    sessions: Iterable[EvaluationPoint],
    class_kind: npt.ArrayLike,
    *,
    sessions_planned: int | None = None,
) -> dict[str, float | None]:
    """Compute all metrics of a run, finished or not.

    Args:
        points: the periodic points and, at the end of the stream, the final one, in the order of the stream; points of
            kind `session` among them are skipped.
        sessions: the point at the end of each session, in order.
        class_kind: integers `(C,)`: 0 disjoint, 1 blurry, 2 absent.
        sessions_planned: sessions of the whole stream; None takes those measured for all.

    Returns:
        The metrics of `METRICS` (formulas: `anytime`, `accuracy`, `forgetting`) and, as whole numbers, what they rest
        on: `f_last_classes`, `anytime_points`, `sessions_measured`, `exposed_classes`. None where a metric is not
        defined, so that the result is valid JSON. `a_last*` is the state after the last planned session, None before
        that; of a stream without session ends, the final point.
    """
    run = StreamPoints.of(EvaluationPoint, points, sessions, sessions_planned)
    final, last = run.final, run.last
    forgetting = f_last(class_accuracy_matrix(run.ends)) if run.ends else None
    values: dict[str, float] = {
        "a_auc": a_auc([point.accuracy for point in run.periodic], final.accuracy if final else math.nan),
        "a_auc_trapz": a_auc_trapz(
            [point.samples_seen for point in run.anytime], [point.accuracy for point in run.anytime]
        ),
        "a_avg": a_avg([point.accuracy for point in run.ends]),
        "a_last": a_last([last.accuracy]) if last else math.nan,
        "a_last_disjoint": accuracy_of_kind(last.correct, last.count, class_kind, DISJOINT) if last else math.nan,
        "a_last_blurry": accuracy_of_kind(last.correct, last.count, class_kind, BLURRY) if last else math.nan,
        "f_last": forgetting.value if forgetting else math.nan,
        "f_last_classes": forgetting.classes if forgetting else 0,
        "anytime_points": len(run.anytime),
        "sessions_measured": len(run.ends),
        "exposed_classes": run.exposed_classes,
    }
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def class_accuracy_matrix(sessions: Sequence[EvaluationPoint]) -> npt.NDArray[np.float64]:
    """Class accuracies c_{t,k} at the session ends, `(T, C)`; NaN where a class had no test sample or was unexposed."""
    if not sessions:
        return np.zeros((0, 0))
    return np.stack([point.class_accuracy for point in sessions])


CURVE_COLUMNS = (
    "samples_seen",
    "nominal",
    "kind",
    "session",
    "accuracy",
    "loss",
    "exposed_classes",
    "accuracy_disjoint",
    "accuracy_blurry",
    "a_auc",
)


def curve_rows(
    points: Iterable[EvaluationPoint], sessions: Iterable[EvaluationPoint], class_kind: npt.ArrayLike
) -> list[dict[str, Cell]]:
    """One row for each evaluation, in the order of the stream; column names in `CURVE_COLUMNS`.

    `a_auc` is the value so far, NaN before the first periodic point (the final point's own accuracy if there is none);
    `session` is an empty text where no session ended. Arguments as in `summarise`.
    """
    rows: list[dict[str, Cell]] = []
    periodic: list[float] = []
    for point in StreamPoints.of(EvaluationPoint, points, sessions).in_order():
        if point.kind == "periodic":
            periodic.append(point.accuracy)
        rows.append(
            {
                **place_cells(point),
                "accuracy": point.accuracy,
                "loss": point.loss,
                "exposed_classes": int(point.exposed.sum()),
                "accuracy_disjoint": accuracy_of_kind(point.correct, point.count, class_kind, DISJOINT),
                "accuracy_blurry": accuracy_of_kind(point.correct, point.count, class_kind, BLURRY),
                "a_auc": a_auc(periodic, point.accuracy if point.kind == "final" else math.nan),
            }
        )
    return rows


def class_accuracy_rows(
    sessions: Iterable[EvaluationPoint], class_names: Sequence[str] | None = None
) -> tuple[list[str], list[list[Cell]]]:
    """The class accuracy matrix as a table: header and one row a session.

    Returns:
        Header `session, samples_seen, <class>...` and the rows; a class is named by `class_names`, or by its number.
    """
    ends = StreamPoints.of(EvaluationPoint, [], sessions).ends
    return class_table(ends, lambda point: point.class_accuracy, class_names)
