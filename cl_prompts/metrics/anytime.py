"""Averages over the stream: how good the learner was while it learned.

Evaluated are always the test samples of the classes exposed so far. A NaN accuracy (no such test sample yet) is
left out of every average.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError


def a_auc(periodic: npt.ArrayLike, final: float = float("nan")) -> float:
    """Anytime accuracy: the plain mean of the accuracies measured every K stream samples.

    A_AUC = (1/n) sum_i a(x_i), x_i the periodic points. Equal weights; not an area, and the final state is not among
    the points. Source: the Si-Blurry release (Moon et al., ICCV 2023), after i-Blurry (Koh et al., ICLR 2022).

    Args:
        periodic: accuracies `(n,)` at the periodic points.
        final: accuracy after the last sample; used alone for a stream too short for any periodic point.

    Returns:
        The mean; NaN if nothing was measured.

    >>> a_auc([0.5, 0.25, 0.75], final=1.0)
    0.5
    >>> a_auc([], final=1.0)
    1.0
    """
    values = _measured(periodic)
    return float(np.mean(values)) if len(values) else float(final)


def a_auc_trapz(samples_seen: npt.ArrayLike, accuracy: npt.ArrayLike) -> float:
    """Area under the accuracy curve over the exact number of samples seen, divided by the width of the curve.

    sum_i (x_{i+1} - x_i) (a_i + a_{i+1}) / 2 / (x_n - x_1). Unlike `a_auc` it includes the final point and is not moved
    by unequal gaps. Own definition; compare `a_auc` with published numbers.

    Args:
        samples_seen: x `(n,)`, never decreasing; of points at the same x the last one counts.
        accuracy: a `(n,)` at those points.

    Returns:
        The mean height of the curve; the one value of a single point; NaN if nothing was measured.

    Raises:
        MetricError: unequal lengths, or x that decreases.

    >>> a_auc_trapz([10, 20, 40], [0.0, 1.0, 1.0]).__round__(6)
    0.833333
    """
    x, height = np.asarray(samples_seen, np.float64), np.asarray(accuracy, np.float64)
    if x.shape != height.shape or x.ndim != 1:
        raise MetricError(f"a_auc_trapz: samples_seen {x.shape} and accuracy {height.shape} must both be (n,)")
    if np.any(np.diff(x) < 0):
        raise MetricError("a_auc_trapz: samples_seen decreases; give the points in the order of the stream")
    x, height = x[~np.isnan(height)], height[~np.isnan(height)]
    if len(x) == 0:
        return float("nan")
    last_at_x = np.append(np.diff(x) > 0, True)
    x, height = x[last_at_x], height[last_at_x]
    if len(x) == 1:
        return float(height[0])
    return float(np.sum(np.diff(x) * (height[1:] + height[:-1]) / 2) / (x[-1] - x[0]))


def a_avg(sessions: npt.ArrayLike) -> float:
    """Average of the accuracies at the end of each session: A_Avg = (1/T) sum_t a_t; NaN if nothing was measured.

    Source: Si-Blurry release (Moon et al., ICCV 2023); elsewhere called average incremental accuracy.

    >>> a_avg([0.75, float("nan"), 0.25])
    0.5
    """
    values = _measured(sessions)
    return float(np.mean(values)) if len(values) else float("nan")


def a_last(sessions: npt.ArrayLike) -> float:
    """Accuracy at the end of the last session: A_Last = a_T; NaN without sessions.

    Source: Si-Blurry release (Moon et al., ICCV 2023).

    >>> a_last([0.75, 0.5, 0.25])
    0.25
    """
    values = _curve(sessions)
    return float(values[-1]) if values.size else float("nan")


def _measured(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = _curve(values)
    return array[~np.isnan(array)]


def _curve(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """One value an evaluation; a table of labels would otherwise pass for many."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise MetricError(
            f"anytime metrics: shape {array.shape} is not allowed; give one value an evaluation, shape (n,): its "
            "accuracy, or with several labels a sample its mAP (evaluate_logits)"
        )
    return array
