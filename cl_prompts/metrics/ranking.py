"""Average precision: how well the scores of a class rank its positives before the rest, for all classes at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.labels import split_labels

FloatArray = npt.NDArray[np.float64]


def sigmoid32(logits: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Sigmoid in float32 arithmetic, 1 / (1 + e) with e = exp(-logit) rounded to float32; keeps the shape.

    It saturates to exactly 1 above about 17, as that of torch does, and so creates ties; exp itself is rounded
    correctly, which makes the values the same on every machine.

    >>> sigmoid32([0.0, 1.3862944, 20.0])
    array([0.5, 0.8, 1. ], dtype=float32)
    """
    exponent = -np.asarray(logits, np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(exponent).astype(np.float32))


def average_precision(scores: npt.ArrayLike, targets: npt.ArrayLike, known: npt.ArrayLike | None = None) -> FloatArray:
    """Average precision of each class: AP = sum_k (R_k - R_{k-1}) P_k over its distinct scores, from high to low.

    Equals scikit-learn's `average_precision_score` for a class with positives. Computed for all classes at once.

    Args:
        scores: `(n, C)`; NaN is not allowed, infinite values are.
        targets: 0/1 `(n, C)`; NaN = not known.
        known: bool `(n, C)`, False where a label is not known; None for all.

    Returns:
        float64 `(C,)`; NaN for a class without positives.

    Raises:
        MetricError: shapes that differ, NaN among the scores, targets that are no multi-hot rows.

    >>> average_precision([[0.9, 0.1], [0.5, 0.2], [0.5, 0.3]], [[1, 0], [1, 0], [0, 0]])
    array([0.83333333,        nan])
    """
    positive, known_entries = split_labels(targets, known, "average precision")
    table = score_table(scores, positive.shape)
    # Last in line, where they count nothing: what a label that is not known scored then moves no other one.
    table = np.where(known_entries, table, -np.inf)
    # One class a row, contiguous: sums then do not depend on how many classes there are.
    table, positive, known_entries = (np.ascontiguousarray(array.T) for array in (table, positive, known_entries))
    samples = table.shape[1]
    totals = positive.sum(axis=1)
    if samples == 0:
        return np.full(len(table), np.nan)
    order = np.argsort(-table, axis=1, kind="stable")
    table, positive, known_entries = (
        np.take_along_axis(array, order, axis=1) for array in (table, positive, known_entries)
    )
    hits, counted = np.cumsum(positive, axis=1), np.cumsum(known_entries, axis=1)
    last_of_tie = np.ones(table.shape, bool)
    last_of_tie[:, :-1] = table[:, :-1] != table[:, 1:]
    # Hits up to the end of the previous tie, at the end of each tie: what the tie itself gains is the difference.
    reached = np.maximum.accumulate(np.where(last_of_tie, hits, 0), axis=1)
    gained = np.where(last_of_tie, hits - np.concatenate([np.zeros_like(hits[:, :1]), reached[:, :-1]], axis=1), 0)
    summed = (gained * (hits / np.maximum(counted, 1))).sum(axis=1)
    return np.where(totals > 0, summed / np.maximum(totals, 1), np.nan)


def mean_average_precision(class_average_precision: npt.ArrayLike) -> float:
    """mAP: mean of the average precisions `(C,)` of the classes that have one; NaN if none has.

    >>> mean_average_precision([1.0, float("nan"), 0.5])
    0.75
    """
    values = np.asarray(class_average_precision, np.float64)
    if values.ndim != 1:
        raise MetricError(
            f"mean_average_precision: shape {values.shape} is not allowed; give the (C,) of average_precision"
        )
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else math.nan


def score_table(scores: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Scores as floats of the expected shape, without NaN."""
    table: npt.NDArray[Any] = np.asarray(scores)
    table = table if table.dtype.kind == "f" else table.astype(np.float64)
    if table.shape != shape:
        raise MetricError(f"scores: shape {table.shape}, but targets {shape}; give one score a label, (n, classes)")
    if np.isnan(table).any():
        raise MetricError(
            "scores: NaN among the evaluated ones; the model gave no number there: look at its loss, or leave the "
            "column out"
        )
    return table
