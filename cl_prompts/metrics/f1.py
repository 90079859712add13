"""F1 at a threshold for several labels a sample: of each class, over classes (CF1, two meanings), over all (OF1)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.labels import split_labels
from cl_prompts.metrics.ranking import score_table

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PUBLISHED_THRESHOLD = 0.8
"""Threshold of CF1 and OF1 in the releases of MULTI-LANE (De Min et al., CoLLAs 2024) and KRT (ICCV 2023)."""

CF1Kind = Literal["mean_f1", "from_mean_pr"]
"""Mean of the class F1 values; or F1 of the mean precision and the mean recall over classes."""


class ClassCounts(NamedTuple):
    """Right predictions, all predictions and positives of each class at one threshold, int64 `(C,)` each."""

    hits: IntArray
    predicted: IntArray
    positives: IntArray
    samples: int
    """Samples they were counted on; of none, every value below is NaN."""

    @property
    def precision(self) -> FloatArray:
        """Share of the predictions that are right, `(C,)`; 0 without a prediction."""
        return self._ratio(self.hits, self.predicted)

    @property
    def recall(self) -> FloatArray:
        """Share of the positives that are predicted, `(C,)`; 0 without a positive."""
        return self._ratio(self.hits, self.positives)

    @property
    def f1(self) -> FloatArray:
        """2 hits / (predicted + positives), `(C,)`; 0 where both are 0."""
        return self._ratio(2 * self.hits, self.predicted + self.positives)

    def cf1(self, kind: CF1Kind) -> float:
        """CF1 in one of its two meanings, see the function `cf1`; NaN without classes."""
        if kind not in _CF1:
            raise MetricError(f"cf1={kind!r}: choose one of {', '.join(get_args(CF1Kind))}")
        return _CF1[kind](self) if len(self.hits) else math.nan

    def of1(self) -> float:
        """F1 over all entries, see the function `of1`; NaN without classes."""
        hits, predicted, positives = self.hits.sum(), self.predicted.sum(), self.positives.sum()
        return float(self._ratio(2 * hits, predicted + positives)) if len(self.hits) else math.nan

    def _ratio(self, part: IntArray, whole: IntArray) -> FloatArray:
        return part / np.maximum(whole, 1) if self.samples else np.full(np.shape(part), np.nan)


def _f1_of_means(counts: ClassCounts) -> float:
    precision, recall = float(counts.precision.mean()), float(counts.recall.mean())
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


_CF1 = {"mean_f1": lambda counts: float(counts.f1.mean()), "from_mean_pr": _f1_of_means}


def class_counts(
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    threshold: float = PUBLISHED_THRESHOLD,
    *,
    known: npt.ArrayLike | None = None,
) -> ClassCounts:
    """Count predictions and positives of each class; predicted is probability > threshold, strictly, in float32.

    Args:
        probabilities: `(n, C)`, usually of `sigmoid32`.
        targets, known: as in `average_precision`.
        threshold: where predictions begin.

    Raises:
        MetricError: see `average_precision`.
    """
    positive, known_entries = split_labels(targets, known, "CF1 and OF1")
    scores = score_table(probabilities, positive.shape).astype(np.float32, copy=False)
    predicted = (scores > np.float32(threshold)) & known_entries
    hits, predictions, positives = (array.sum(axis=0) for array in (predicted & positive, predicted, positive))
    return ClassCounts(hits, predictions, positives, len(scores))


def class_f1(
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    threshold: float = PUBLISHED_THRESHOLD,
    *,
    known: npt.ArrayLike | None = None,
) -> FloatArray:
    """F1 of each class, float64 `(C,)`; 0 without predictions or positives. Arguments as in `class_counts`.

    >>> class_f1([[0.9, 0.8], [0.9, 0.1]], [[1, 1], [0, 0]], 0.8)
    array([0.66666667, 0.        ])
    """
    return class_counts(probabilities, targets, threshold, known=known).f1


def cf1(
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    threshold: float = PUBLISHED_THRESHOLD,
    *,
    kind: CF1Kind = "mean_f1",
    known: npt.ArrayLike | None = None,
) -> float:
    """F1 over classes, in one of the two meanings in use; arguments as in `class_counts`.

    `mean_f1` is the mean of the class F1 values, as MULTI-LANE and KRT publish it. `from_mean_pr` is the classical
    2 CP CR / (CP + CR) of the mean precision CP and the mean recall CR over classes. They differ; name the one used.

    >>> cf1([[0.9, 0.9], [0.9, 0.1]], [[1, 1], [0, 1]], 0.5, kind="from_mean_pr")
    0.75
    """
    return class_counts(probabilities, targets, threshold, known=known).cf1(kind)


def of1(
    probabilities: npt.ArrayLike,
    targets: npt.ArrayLike,
    threshold: float = PUBLISHED_THRESHOLD,
    *,
    known: npt.ArrayLike | None = None,
) -> float:
    """F1 over all entries (micro F1): 2 hits / (predicted + positives); 0 where both are 0. As in `class_counts`.

    >>> of1([[0.9, 0.9], [0.9, 0.1]], [[1, 1], [0, 1]], 0.5).__round__(6)
    0.666667
    """
    return class_counts(probabilities, targets, threshold, known=known).of1()


class BestThreshold(NamedTuple):
    """The threshold with the highest OF1, found on the evaluated labels themselves: an oracle, not a result."""

    threshold: float
    of1: float


def best_threshold(
    probabilities: npt.ArrayLike, targets: npt.ArrayLike, *, known: npt.ArrayLike | None = None
) -> BestThreshold:
    """The one threshold for all classes that maximises OF1, exact over all distinct float32 scores: an ORACLE.

    It reads the labels it is measured on, so it bounds what any choice of a threshold can reach; never report it
    without saying so. Of equally good thresholds the one with the fewest predictions is taken, and of its equivalents
    the highest score that is not predicted (just below the lowest score if everything is).

    Args:
        probabilities, targets, known: as in `class_counts`.

    Returns:
        `of1(probabilities, targets, threshold)` is exactly the value returned; NaN and NaN if nothing was evaluated.

    Raises:
        MetricError: see `average_precision`.

    >>> best_threshold([[0.75, 0.25], [0.5, 0.125]], [[1, 0], [1, 0]])
    BestThreshold(threshold=0.25, of1=1.0)
    """
    positive, known_entries = split_labels(targets, known, "OF1")
    table = score_table(probabilities, positive.shape).astype(np.float32, copy=False)
    scores, labels = table[known_entries], positive[known_entries]
    if not len(scores):
        return BestThreshold(math.nan, math.nan)
    order = np.argsort(-scores)
    scores = scores[order]
    ends = np.append(scores[:-1] != scores[1:], True)
    predicted = np.concatenate([[0], np.flatnonzero(ends) + 1])
    hits = np.concatenate([[0], np.cumsum(labels[order])[ends]])
    values = 2 * hits / np.maximum(predicted + labels.sum(), 1)
    best = int(np.argmax(values))
    number = predicted[best]
    threshold = scores[number] if number < len(scores) else np.nextafter(scores[-1], np.float32(-np.inf))
    return BestThreshold(float(threshold), float(values[best]))
