"""From multi-label evaluation points to the numbers of `summary.json` and the rows of `curves.csv`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cl_prompts.metrics.anytime import a_auc, a_avg
from cl_prompts.metrics.forgetting import ap_forgetting
from cl_prompts.metrics.multi_label import CF1Kind, MultiLabelResult, ScoreKind, mean_average_precision
from cl_prompts.metrics.records import MultiLabelPoint
from cl_prompts.metrics.stream_points import Cell, StreamPoints, place_cells
from scenarios.plan import ABSENT, BLURRY, DISJOINT

HALF = 0.5
"""The threshold that is always measured beside the chosen one."""


class EvaluationChoices(Protocol):
    """What a multi-label number depends on beside the model; the settings of every multi-label scenario have it."""

    @property
    def eval_images(self) -> str:
        """Which test images are evaluated: `seen`, `all` or `final_seen`."""

    @property
    def threshold(self) -> float:
        """Probability above which a class is predicted."""

    @property
    def scores(self) -> ScoreKind:
        """What average precision ranks."""

    @property
    def cf1(self) -> CF1Kind:
        """The meaning of CF1."""


def multi_label_metrics(choices: EvaluationChoices) -> Mapping[str, str]:
    """Name -> meaning of the metrics that are fractions, in the order in which they are shown."""
    cf1 = {"mean_f1": "mean of class F1", "from_mean_pr": "F1 of mean precision and recall"}[choices.cf1]
    at = f"at {choices.threshold:g}"
    return {
        "map_avg": "mean of mAP at the session ends",
        "map_last": "mAP after the last session",
        "map_anytime": "anytime mAP: mean of the periodic evaluations",
        "map_last_disjoint": "map_last on the disjoint classes",
        "map_last_blurry": "map_last on the blurry classes",
        "cf1_last": f"{cf1} {at}, last session",
        "of1_last": f"F1 over all labels {at}, last session",
        "cf1_last_from_mean_pr": f"F1 of mean precision and recall {at}",
        "cf1_last_050": "cf1_last at 0.5",
        "of1_last_050": "of1_last at 0.5",
        "cf1_last_oracle": "cf1_last at the oracle threshold",
        "of1_last_oracle": "the highest of1_last of any threshold",
        "ap_forgetting": "best earlier AP of a class minus its last",
    }


def summarise_multi_label(
    points: Iterable[MultiLabelPoint],
    sessions: Iterable[MultiLabelPoint],
    class_kind: npt.ArrayLike,
    choices: EvaluationChoices,
    *,
    sessions_planned: int | None = None,
) -> dict[str, float | str | None]:
    """Compute all metrics of a multi-label run, finished or not.

    Args:
        points: the periodic points and, at the end of the stream, the final one, in the order of the stream; points of
            kind `session` among them are skipped.
        sessions: the point at the end of each session, in order.
        class_kind: integers `(C,)`: 0 disjoint, 1 blurry, 2 absent.
        choices: how the points were measured.
        sessions_planned: sessions of the whole stream; None takes those measured for all.

    Returns:
        The metrics of `multi_label_metrics`, fractions; `oracle_threshold`, the threshold of the `_oracle` values,
        found on the test labels; what they rest on, as whole numbers: `ap_forgetting_classes`, `map_last_classes`
        (those with a positive), `map_last_unlabelled_classes` (evaluated although no label in training showed a
        positive), `evaluated_images` (of the last session), `anytime_points` (periodic ones alone),
        `sessions_measured`, `exposed_classes`; and the choices `eval_images`, `threshold`, `scores`, `cf1_kind`. None
        where a metric is not defined, as `map_anytime` without periodic points. `*_last*` is the state after the last
        planned session, None before that; of a stream without session ends, the final point.

    Raises:
        MetricError: single-label points, or points that were not measured at the threshold and at 0.5.
    """
    run = StreamPoints.of(MultiLabelPoint, points, sessions, sessions_planned)
    last = run.last
    forgetting = ap_forgetting(
        [point.class_average_precision for point in run.ends] or np.zeros((0, 0)), eval_images=choices.eval_images
    )
    values: dict[str, float | None] = {
        "map_avg": a_avg([point.score for point in run.ends]),
        "map_anytime": a_auc([point.score for point in run.periodic]),
        "ap_forgetting": forgetting.value,
        **{name: value(last.result, class_kind, choices) if last else None for name, value in _LAST.items()},
        "ap_forgetting_classes": forgetting.classes,
        "anytime_points": len(run.periodic),
        "sessions_measured": len(run.ends),
        "exposed_classes": run.exposed_classes,
    }
    numbers = {name: None if value is None or math.isnan(value) else value for name, value in values.items()}
    in_order = {name: numbers[name] for name in multi_label_metrics(choices)}
    facts: dict[str, str | float] = {
        "eval_images": choices.eval_images,
        "threshold": choices.threshold,
        "scores": choices.scores,
        "cf1_kind": choices.cf1,
    }
    return {**in_order, **numbers, **facts}


def map_of_kind(result: MultiLabelResult, class_kind: npt.ArrayLike, kind: int) -> float:
    """mAP over the evaluated classes of one kind, 0 disjoint or 1 blurry; NaN if none of them has a positive."""
    return mean_average_precision(result.average_precision[np.asarray(class_kind) == kind])


_LAST: Mapping[str, Callable[[MultiLabelResult, npt.ArrayLike, EvaluationChoices], float]] = {
    "map_last": lambda result, kinds, choices: result.mean_average_precision,
    "map_last_disjoint": lambda result, kinds, choices: map_of_kind(result, kinds, DISJOINT),
    "map_last_blurry": lambda result, kinds, choices: map_of_kind(result, kinds, BLURRY),
    "cf1_last": lambda result, kinds, choices: result.at(choices.threshold).cf1_of_kind(choices.cf1),
    "of1_last": lambda result, kinds, choices: result.at(choices.threshold).of1,
    "cf1_last_from_mean_pr": lambda result, kinds, choices: result.at(choices.threshold).cf1_from_mean_pr,
    "cf1_last_050": lambda result, kinds, choices: result.at(HALF).cf1_of_kind(choices.cf1),
    "of1_last_050": lambda result, kinds, choices: result.at(HALF).of1,
    "cf1_last_oracle": lambda result, kinds, choices: result.oracle.cf1_of_kind(choices.cf1),
    "of1_last_oracle": lambda result, kinds, choices: result.oracle.of1,
    "oracle_threshold": lambda result, kinds, choices: result.oracle.threshold,
    "map_last_classes": lambda result, kinds, choices: int((~np.isnan(result.average_precision)).sum()),
    "map_last_unlabelled_classes": lambda result, kinds, choices: int(
        (result.columns & (np.asarray(kinds) == ABSENT)).sum()
    ),
    "evaluated_images": lambda result, kinds, choices: result.images,
}
"""What a summary reads from the result after the last session."""


MULTI_LABEL_CURVE_COLUMNS = (
    "samples_seen",
    "nominal",
    "kind",
    "session",
    "map",
    "cf1",
    "of1",
    "cf1_from_mean_pr",
    "cf1_050",
    "of1_050",
    "of1_oracle",
    "loss",
    "exposed_classes",
    "evaluated_images",
    "map_disjoint",
    "map_blurry",
    "map_anytime",
)


def multi_label_curve_rows(
    points: Iterable[MultiLabelPoint],
    sessions: Iterable[MultiLabelPoint],
    class_kind: npt.ArrayLike,
    choices: EvaluationChoices,
) -> list[dict[str, Cell]]:
    """One row for each evaluation, in the order of the stream; column names in `MULTI_LABEL_CURVE_COLUMNS`.

    `map_anytime` is the value so far, NaN before the first periodic point. Arguments as in `summarise_multi_label`.
    """
    rows: list[dict[str, Cell]] = []
    periodic: list[float] = []
    for point in StreamPoints.of(MultiLabelPoint, points, sessions).in_order():
        if point.kind == "periodic":
            periodic.append(point.score)
        result = point.result
        at, half = result.at(choices.threshold), result.at(HALF)
        rows.append(
            {
                **place_cells(point),
                "map": point.score,
                "cf1": at.cf1_of_kind(choices.cf1),
                "of1": at.of1,
                "cf1_from_mean_pr": at.cf1_from_mean_pr,
                "cf1_050": half.cf1_of_kind(choices.cf1),
                "of1_050": half.of1,
                "of1_oracle": result.oracle.of1,
                "loss": point.loss,
                "exposed_classes": int(point.exposed.sum()),
                "evaluated_images": result.images,
                "map_disjoint": map_of_kind(result, class_kind, DISJOINT),
                "map_blurry": map_of_kind(result, class_kind, BLURRY),
                "map_anytime": a_auc(periodic),
            }
        )
    return rows
