"""Metrics for several labels a sample: average precision, CF1, OF1, and their values in one `MultiLabelResult`.

Rules that published implementations differ in, as they hold everywhere here:

- **columns**: a metric covers exactly the columns it is given; `evaluate_logits` takes only the seen ones, so that
  nothing in an unseen column can change a value.
- **ties**: equal scores form one threshold; the order of samples never matters.
- **a class without positives**: its average precision is NaN and left out of mAP; its F1 is 0 and stays in the mean.
- **threshold**: predicted is p > threshold, strictly, both in float32; a p of exactly the threshold is negative.
- **nothing predicted**: precision and F1 are 0.
- **labels not known** (`known` False or target NaN) count neither as positive nor as negative.
- **nothing evaluated** (no sample or no column): NaN.

`scores` are float `(n, C)`, `targets` 0/1 `(n, C)`, one row a sample. All values are fractions, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.f1 import PUBLISHED_THRESHOLD, CF1Kind, best_threshold, cf1, class_counts, class_f1, of1
from cl_prompts.metrics.labels import split_labels
from cl_prompts.metrics.ranking import average_precision, mean_average_precision, score_table, sigmoid32

__all__ = [
    "PUBLISHED_THRESHOLD",
    "CF1Kind",
    "MultiLabelResult",
    "ScoreKind",
    "ThresholdScores",
    "average_precision",
    "best_threshold",
    "cf1",
    "class_f1",
    "evaluate_logits",
    "mean_average_precision",
    "of1",
    "sigmoid32",
]

ScoreKind = Literal["sigmoid", "logit"]
"""What average precision ranks: float32 sigmoids, whose saturation makes ties, or the logits themselves."""


class ThresholdScores(NamedTuple):
    """CF1, in both meanings, and OF1 at one threshold."""

    threshold: float
    cf1: float
    """Mean of the class F1 values."""
    cf1_from_mean_pr: float
    """F1 of the mean precision and the mean recall."""
    of1: float

    def cf1_of_kind(self, kind: CF1Kind) -> float:
        """CF1 in the meaning `kind`; see the function `cf1`."""
        return {"mean_f1": self.cf1, "from_mean_pr": self.cf1_from_mean_pr}[kind]


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiLabelResult:
    """What one multi-label evaluation measured: a few numbers and one row of average precisions, no logits."""

    columns: npt.NDArray[np.bool_]
    """Classes that were evaluated, `(C,)`."""
    images: int
    """Images that were evaluated."""
    positives: npt.NDArray[np.int64]
    """Known positive labels of each class among them, `(C,)`; 0 outside the columns."""
    average_precision: npt.NDArray[np.float64]
    """float64 `(C,)`; NaN outside the columns and for a class without positives."""
    scores: ScoreKind
    """What average precision ranked."""
    thresholds: tuple[ThresholdScores, ...]
    """Values at each threshold asked for."""
    oracle: ThresholdScores
    """Values at the threshold that maximises OF1 on these very labels; see `best_threshold`."""

    @property
    def mean_average_precision(self) -> float:
        """mAP over the columns with positives; NaN if there is none."""
        return mean_average_precision(self.average_precision)

    def at(self, threshold: float) -> ThresholdScores:
        """The values at a threshold that was evaluated.

        Raises:
            MetricError: a threshold that was not evaluated.
        """
        for values in self.thresholds:
            if values.threshold == threshold:
                return values
        measured = ", ".join(f"{values.threshold:g}" for values in self.thresholds) or "none"
        raise MetricError(f"threshold={threshold:g} was not evaluated (measured: {measured}); pass it in thresholds=")


def evaluate_logits(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    columns: npt.ArrayLike,
    *,
    thresholds: Sequence[float] = (PUBLISHED_THRESHOLD, 0.5),
    scores: ScoreKind = "sigmoid",
    known: npt.ArrayLike | None = None,
) -> MultiLabelResult:
    """Evaluate the logits of all images given, on the columns given; choosing the images is left to the caller.

    Args:
        logits: `(n, C)`, taken in float32; columns that are not evaluated may hold anything.
        targets: 0/1 `(n, C)`; NaN = not known.
        columns: bool `(C,)`, the seen classes.
        thresholds: probabilities at which CF1 and OF1 are measured.
        scores: what average precision ranks; thresholds always apply to float32 sigmoids.
        known: bool `(n, C)`, False where a label is not known; None for all.

    Raises:
        MetricError: shapes that differ, NaN in an evaluated column, an unknown name, targets that are no multi-hot
            rows (one class id a sample is named as such).

    >>> result = evaluate_logits([[2.0, -1.0, 9.0], [-2.0, 1.0, 9.0]], [[1, 0, 0], [0, 0, 1]], np.array([1, 1, 0]) > 0)
    >>> result.average_precision, result.at(0.8).of1
    (array([ 1., nan, nan]), 1.0)
    """
    if scores not in get_args(ScoreKind):
        raise MetricError(f"scores={scores!r}: choose one of {', '.join(get_args(ScoreKind))}")
    table, positive, known_entries, chosen = evaluated_part(logits, targets, columns, known, "mAP, CF1 and OF1")
    probabilities = sigmoid32(table)
    precisions = np.full(len(chosen), np.nan)
    precisions[chosen] = average_precision(table if scores == "logit" else probabilities, positive, known=known_entries)
    positives = np.zeros(len(chosen), np.int64)
    positives[chosen] = positive.sum(axis=0)

    def at(threshold: float) -> ThresholdScores:
        counts = class_counts(probabilities, positive, threshold, known=known_entries)
        return ThresholdScores(float(threshold), counts.cf1("mean_f1"), counts.cf1("from_mean_pr"), counts.of1())

    return MultiLabelResult(
        columns=chosen.copy(),
        images=len(positive),
        positives=positives,
        average_precision=precisions,
        scores=scores,
        thresholds=tuple(at(threshold) for threshold in thresholds),
        oracle=at(best_threshold(probabilities, positive, known=known_entries).threshold),
    )


class EvaluatedPart(NamedTuple):
    """The columns k of an evaluation: float32 logits, positive and known labels, `(n, k)` each; which, bool `(C,)`."""

    logits: npt.NDArray[np.float32]
    positive: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]
    columns: npt.NDArray[np.bool_]


def evaluated_part(
    logits: npt.ArrayLike, targets: npt.ArrayLike, columns: npt.ArrayLike, known: npt.ArrayLike | None, metric: str
) -> EvaluatedPart:
    """Check what `metric` is given and keep only the evaluated columns; arguments as in `evaluate_logits`.

    Raises:
        MetricError: shapes that differ, NaN in an evaluated column, targets that are no multi-hot rows.
    """
    positive, known_entries = split_labels(targets, known, metric)
    table, chosen = np.asarray(logits, np.float32), np.asarray(columns)
    if table.shape != positive.shape or chosen.shape != positive.shape[1:] or chosen.dtype != bool:
        raise MetricError(
            f"logits {table.shape}, targets {positive.shape}, columns {chosen.dtype} {chosen.shape}: expected (n, C), "
            "(n, C) and bool (C,)"
        )
    seen = score_table(table[:, chosen], (len(table), int(chosen.sum())))
    return EvaluatedPart(seen, positive[:, chosen], known_entries[:, chosen], chosen)
