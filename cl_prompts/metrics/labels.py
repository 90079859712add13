"""How many labels a metric takes: one class id a sample, or one multi-hot row a sample; mixing them up is an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError

BoolArray = npt.NDArray[np.bool_]

_ONE_LABEL_FAMILY = "accuracy (confusion_matrix, total_accuracy, a_auc, f_last)"
_SEVERAL_LABELS_FAMILY = "mAP, CF1 and OF1 (evaluate_logits, average_precision, cf1, of1)"


def require_one_label(targets: npt.ArrayLike, metric: str, *, what: str = "targets") -> npt.NDArray[Any]:
    """Check that `targets` hold one class id a sample, integers `(n,)`, and return them as an array.

    Args:
        targets: what a single-label metric was given.
        metric: name of that metric, for the error.
        what: name of the argument, for the error.

    Raises:
        MetricError: a table (multi-hot labels, scores), another shape, or a dtype that is not an integer.

    >>> require_one_label([0, 2, 1], "accuracy").shape
    (3,)
    """
    array: npt.NDArray[Any] = np.asarray(targets)
    if array.ndim == 2:
        raise MetricError(
            f"{what}: shape {array.shape} looks multi-hot, but {metric} is defined for one label a sample, shape (n,); "
            f"for several labels a sample use {_SEVERAL_LABELS_FAMILY}"
        )
    if array.ndim != 1:
        raise MetricError(f"{what}: shape {array.shape} is not allowed; give class numbers of shape (n,)")
    if array.size and array.dtype.kind not in "iu":
        raise MetricError(
            f"{what}: dtype {array.dtype} is not allowed for {metric}; give integer class numbers (int64), or for "
            f"scores and multi-hot labels use {_SEVERAL_LABELS_FAMILY}"
        )
    return array


def require_several_labels(targets: npt.ArrayLike, metric: str, *, what: str = "targets") -> npt.NDArray[Any]:
    """Check that `targets` hold one row of 0 and 1 a sample, `(n, C)`, and return them as an array.

    NaN is allowed and means that a label is not known. One-hot rows are allowed: they are multi-label data in which
    every sample happens to have one label.

    Args:
        targets: what a multi-label metric was given.
        metric: name of that metric, for the error.
        what: name of the argument, for the error.

    Raises:
        MetricError: one class id a sample, another shape, or values other than 0, 1 and NaN.

    >>> require_several_labels([[0, 1, 1]], "mAP").shape
    (1, 3)
    """
    array: npt.NDArray[Any] = np.asarray(targets)
    if array.ndim == 1:
        raise MetricError(
            f"{what}: shape {array.shape} looks like one class id a sample, but {metric} is defined for multi-hot "
            f"rows, shape (n, classes); for one label a sample use {_ONE_LABEL_FAMILY}"
        )
    if array.ndim != 2:
        raise MetricError(f"{what}: shape {array.shape} is not allowed; give multi-hot rows of shape (n, classes)")
    if array.dtype.kind not in "biuf":
        raise MetricError(f"{what}: dtype {array.dtype} is not allowed for {metric}; give 0 and 1 (uint8 or float32)")
    strange = ~((array == 0) | (array == 1))
    if array.dtype.kind == "f":
        strange &= ~np.isnan(array)
    if strange.any():
        raise MetricError(
            f"{what}: value {array[strange][0]} is not a label; {metric} takes 1 (positive), 0 (negative) and, in "
            "floats, NaN (not known); class ids and scores do not belong here"
        )
    return array


def split_labels(targets: npt.ArrayLike, known: npt.ArrayLike | None, metric: str) -> tuple[BoolArray, BoolArray]:
    """Positive and known entries of multi-hot targets.

    Args:
        targets: `(n, C)`, see `require_several_labels`.
        known: bool `(n, C)`, False where a label counts neither as positive nor as negative; None for all.
        metric: name of the metric, for the error.

    Returns:
        `positive` and `known`, bool `(n, C)`; positive only where known. A NaN target is not known.

    Raises:
        MetricError: see `require_several_labels`; or `known` of another shape or dtype.
    """
    array = require_several_labels(targets, metric)
    mask = ~np.isnan(array) if array.dtype.kind == "f" else np.ones(array.shape, bool)
    if known is not None:
        given = np.asarray(known)
        if given.shape != array.shape or given.dtype != bool:
            raise MetricError(f"known: {given.dtype} {given.shape}, expected bool {array.shape} as the targets")
        mask &= given
    return (array == 1) & mask, mask
