"""Calibration: whether labels with a predicted probability of 0.7 are positive seven times out of ten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.multi_label import evaluated_part
from cl_prompts.metrics.ranking import sigmoid32

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationReport:
    """Calibration error and reliability table of the probabilities of single labels.

    Bin b of B holds the probabilities in [b/B, (b + 1)/B), the last one those up to 1.
    """

    bins: int
    """Number of bins of equal width, B."""
    ece: float
    """Expected calibration error over all labels, 0 to 1; NaN if nothing was evaluated."""
    class_ece: FloatArray
    """Expected calibration error of each class, `(C,)`; NaN outside the columns."""
    count: IntArray
    """Known labels in each bin, `(B,)`."""
    mean_probability: FloatArray
    """Mean predicted probability in each bin, `(B,)`; NaN in an empty one."""
    positive_share: FloatArray
    """Share of positives in each bin, `(B,)`; NaN in an empty one."""

    def rows(self) -> list[dict[str, float]]:
        """The reliability table, one row a bin: `lower`, `upper`, `count`, `mean_probability`, `positive_share`."""
        return [
            {
                "lower": b / self.bins,
                "upper": (b + 1) / self.bins,
                "count": int(self.count[b]),
                "mean_probability": float(self.mean_probability[b]),
                "positive_share": float(self.positive_share[b]),
            }
            for b in range(self.bins)
        ]


def calibration(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    columns: npt.ArrayLike,
    bins: int = 15,
    *,
    known: npt.ArrayLike | None = None,
) -> CalibrationReport:
    """Calibration of the float32 sigmoids of the columns; every known label of every image counts once.

    ECE = sum_b n_b / n |share of positives in bin b - mean probability in bin b| over bins of equal width, for the
    two-sided probability of a label (not for the confidence in a decision). Source: Guo et al. (ICML 2017), for binary
    probabilities. The value depends on the number of bins, which is part of the report. With few positives most labels
    fall into the lowest bin and the overall value is small for any model; look at the table and at single classes.

    Args:
        logits: `(n, C)`; columns that are not evaluated may hold anything.
        targets: 0/1 `(n, C)`; NaN = not known.
        columns: bool `(C,)`, the seen classes.
        bins: number of bins, at least 1.
        known: bool `(n, C)`, False where a label is not known; None for all.

    Raises:
        MetricError: shapes that differ, NaN in an evaluated column, fewer than one bin, targets that are no multi-hot
            rows.

    >>> report = calibration([[0.0], [0.0], [0.0], [20.0]], [[1], [0], [0], [1]], [True], bins=2)
    >>> report.ece, report.count
    (0.125, array([0, 4]))
    """
    if bins < 1:
        raise MetricError(f"bins={bins}: give at least 1")
    table, positive, known_entries, chosen = evaluated_part(logits, targets, columns, known, "calibration of labels")
    probabilities = sigmoid32(table).astype(np.float64)
    bin_of = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    # One row a class, one column a bin.
    cell = np.broadcast_to(np.arange(table.shape[1]), table.shape) * bins + bin_of

    def per_cell(weights: npt.NDArray[Any] | None) -> FloatArray:
        weighted = None if weights is None else weights[known_entries]
        summed = np.bincount(cell[known_entries], weighted, minlength=table.shape[1] * bins)
        return summed.reshape(table.shape[1], bins).astype(np.float64)

    count, hits, mass = per_cell(None), per_cell(positive), per_cell(probabilities)
    class_ece = np.full(len(chosen), np.nan)
    class_ece[chosen] = _error(count, hits, mass)
    count, hits, mass = count.sum(axis=0), hits.sum(axis=0), mass.sum(axis=0)
    return CalibrationReport(
        bins=bins,
        ece=float(_error(count, hits, mass)),
        class_ece=class_ece,
        count=count.astype(np.int64),
        mean_probability=_share(mass, count),
        positive_share=_share(hits, count),
    )


def _error(count: FloatArray, hits: FloatArray, mass: FloatArray) -> FloatArray:
    """sum_b n_b / n |hits_b / n_b - mass_b / n_b| over the last axis, in which n_b cancels; NaN without labels."""
    return _share(np.abs(hits - mass).sum(axis=-1), count.sum(axis=-1))


def _share(part: npt.ArrayLike, whole: npt.ArrayLike) -> FloatArray:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
