"""Forgetting: how much of a class's best earlier accuracy is gone. At least four meanings are in use; this is one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError

FloatArray = npt.NDArray[np.float64]


class LastForgetting(NamedTuple):
    """`f_last` and the number of classes it averages over."""

    value: float
    classes: int


def f_last(class_accuracy: npt.ArrayLike) -> LastForgetting:
    """Forgetting at the end of the stream, per class, against the best earlier session.

    F_last = mean over classes k with max_{t<T} c_{t,k} > 0 of (max_{t<T} c_{t,k} - c_{T,k}).

    Left out are classes that were never right before the last session, among them all that first appear in it: their
    number differs between streams, so it is returned as well. Values may be negative (the class got better). Source:
    the Si-Blurry release (Moon et al., ICCV 2023).

    Args:
        class_accuracy: c `(T, C)`, row t measured at the end of session t; NaN where a class has no test sample or is
            not exposed yet (0 means the same to this metric).

    Returns:
        Value and number of classes; NaN and 0 if no class qualifies, as always for T = 1.

    Raises:
        MetricError: an array that is not `(T, C)`.

    >>> f_last([[1.0, float("nan"), float("nan")], [0.5, 0.5, float("nan")], [0.25, 0.75, 1.0]])
    LastForgetting(value=0.25, classes=2)
    """
    matrix = _matrix(class_accuracy)
    if len(matrix) < 2:
        return LastForgetting(float("nan"), 0)
    lost = _lost(matrix, len(matrix) - 1)
    entered = ~np.isnan(lost)
    number = int(entered.sum())
    return LastForgetting(float(lost[entered].mean()) if number else float("nan"), number)


class APForgetting(NamedTuple):
    """`ap_forgetting`, the number of classes it averages over, and on which images it was measured."""

    value: float
    classes: int
    eval_images: str


def ap_forgetting(class_average_precision: npt.ArrayLike, *, eval_images: str) -> APForgetting:
    """Forgetting of average precision at the end of the stream, per class, against the best earlier session.

    Mean over classes k with an AP before and after the last session of (max_{t<T} AP_{t,k} - AP_{T,k}). Classes first
    exposed in the last session have none before and are left out. Own definition, the formula of `f_last`. It means
    nothing without `eval_images`: where the evaluated images grow with the seen classes (`seen`, as published), the AP
    of an old class falls although its logits stay, because more negatives arrive; under `all` it does not.

    Args:
        class_average_precision: `(T, C)`, row t measured at the end of session t; NaN where a class has no positive or
            is not exposed yet.
        eval_images: which images were evaluated: `seen`, `all` or `final_seen`; goes with the value.

    Returns:
        Value, number of classes (NaN and 0 if no class qualifies) and `eval_images`.

    Raises:
        MetricError: an array that is not `(T, C)`.

    >>> ap_forgetting([[1.0, float("nan")], [0.75, 0.5]], eval_images="all")
    APForgetting(value=0.25, classes=1, eval_images='all')
    """
    value, classes = f_last(class_average_precision)
    return APForgetting(value, classes, eval_images)


def session_forgetting(class_accuracy: npt.ArrayLike, session_of_class: npt.ArrayLike) -> FloatArray:
    """`f_last` after every session, separately for the classes of each session.

    F_{t,s} = mean over classes k of session s with max_{u<t} c_{u,k} > 0 of (max_{u<t} c_{u,k} - c_{t,k}). With all
    classes in one session, the last row is `f_last`. Own definition.

    Args:
        class_accuracy: c `(T, C)` as in `f_last`.
        session_of_class: integers `(C,)`, home session of each class; negative = in none.

    Returns:
        float64 `(T, T)`: row = after session t, column = classes of session s; NaN where no class qualifies, as in all
        of the first row.

    Raises:
        MetricError: shapes that do not fit, or a session outside 0..T-1.

    >>> session_forgetting([[1.0, float("nan")], [0.5, 0.5]], [0, 1])
    array([[nan, nan],
           [0.5, nan]])
    """
    matrix = _matrix(class_accuracy)
    home = np.asarray(session_of_class, np.int64)
    sessions = len(matrix)
    if home.shape != matrix.shape[1:]:
        raise MetricError(f"session_of_class: shape {home.shape}, but class_accuracy has {matrix.shape[1]} classes")
    if np.any(home >= sessions):
        raise MetricError(f"session_of_class: session {int(home.max())} is outside 0..{sessions - 1}")
    result = np.full((sessions, sessions), np.nan)
    for row in range(1, sessions):
        lost = _lost(matrix, row)
        for session in range(sessions):
            values = lost[(home == session) & ~np.isnan(lost)]
            if len(values):
                result[row, session] = values.mean()
    return result


def _lost(matrix: FloatArray, row: int) -> FloatArray:
    """Best accuracy before `row` minus that of `row`, `(C,)`; NaN for classes that were never right before."""
    best = np.fmax.reduce(matrix[:row], axis=0)
    return np.where(best > 0, best - matrix[row], np.nan)


def _matrix(class_accuracy: npt.ArrayLike) -> FloatArray:
    given = np.asarray(class_accuracy)
    if given.size and given.dtype.kind in "iub":
        raise MetricError(
            f"class_accuracy: dtype {given.dtype} looks like labels; give fractions in floats, one row a session; "
            "for multi-hot labels use ap_forgetting on the average precisions of evaluate_logits"
        )
    matrix = given.astype(np.float64)
    if matrix.ndim != 2:
        raise MetricError(f"class_accuracy: shape {matrix.shape} is not allowed; give one row a session, (T, C)")
    return matrix
