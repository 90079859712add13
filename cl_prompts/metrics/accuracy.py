"""Accuracies read from the number of correct and of all test samples of each class.

`correct` and `count` are integer arrays `(C,)`, or `(T, C)` for T evaluations; a class that was not exposed at the time
of the evaluation has `count` 0, so that every accuracy below is one on exposed classes without further masks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError

FloatArray = npt.NDArray[np.float64]


def total_accuracy(correct: npt.ArrayLike, count: npt.ArrayLike) -> float:
    """Share of all test samples that were classified correctly: sum_k correct_k / sum_k count_k.

    This weighs samples equally, not classes; NaN without test samples. Source: the evaluation of the Si-Blurry release
    (Moon et al., ICCV 2023).

    >>> total_accuracy([3, 0, 1], [4, 0, 4])
    0.5
    """
    hits, samples = _numbers_of_samples(correct, count)
    total = samples.sum()
    return float(hits.sum() / total) if total else float("nan")


def class_accuracy(correct: npt.ArrayLike, count: npt.ArrayLike) -> FloatArray:
    """Accuracy of each class, c_k = correct_k / count_k; NaN for a class without test samples. Keeps the shape.

    >>> class_accuracy([3, 0, 1], [4, 0, 4])
    array([0.75,  nan, 0.25])
    """
    hits, total = _numbers_of_samples(correct, count)
    return np.divide(hits, total, out=np.full(hits.shape, np.nan), where=total > 0)


def official_class_accuracy(correct: npt.ArrayLike, count: npt.ArrayLike) -> FloatArray:
    """Class accuracies exactly as the Si-Blurry release computes them, c_k = correct_k / (count_k + 1e-5), in float32.

    Only for comparing with numbers of that code: every value is slightly too low (a perfect class of 100 test samples
    gets .9999999) and a class without samples gets 0 instead of NaN.

    >>> official_class_accuracy([3, 0], [4, 0]).round(6)
    array([0.749998, 0.      ], dtype=float32)
    """
    hits, total = _numbers_of_samples(correct, count)
    return hits.astype(np.float32) / (total.astype(np.float32) + np.float32(1e-5))


def accuracy_of_kind(correct: npt.ArrayLike, count: npt.ArrayLike, class_kind: npt.ArrayLike, kind: int) -> float:
    """Accuracy over the test samples of the classes of one kind; NaN without any.

    `kind` is `scenarios.plan.DISJOINT` (0) or `BLURRY` (1), compared with `class_kind`, integers `(C,)`. The
    prediction still chooses among all classes; only the true class is restricted, so the two values average to the
    total accuracy with the numbers of test samples as weights. Own definition.

    >>> accuracy_of_kind([3, 2, 1], [4, 4, 4], [0, 1, 1], kind=1)
    0.375
    """
    chosen = np.asarray(class_kind) == kind
    return total_accuracy(np.asarray(correct)[chosen], np.asarray(count)[chosen])


def accuracy_by_training_samples(
    correct: npt.ArrayLike, count: npt.ArrayLike, training_samples: npt.ArrayLike, edges: npt.ArrayLike
) -> FloatArray:
    """Accuracy of classes grouped by how many training samples of them had been seen.

    Args:
        correct, count: integers `(C,)` of one evaluation.
        training_samples: integers `(C,)`, training samples of each class seen until that evaluation.
        edges: increasing numbers `(G + 1,)`; group g holds the classes with edges[g] <= samples < edges[g + 1].

    Returns:
        float64 `(G,)`, total accuracy in each group; NaN for a group without test samples. Own definition: it tells
        "not learnt yet" from "forgotten".

    Raises:
        MetricError: edges that do not increase.

    >>> accuracy_by_training_samples([4, 1, 0], [4, 4, 4], [50, 3, 1], [1, 10, 100])
    array([0.125, 1.   ])
    """
    borders = np.asarray(edges, np.float64)
    if borders.ndim != 1 or len(borders) < 2 or np.any(np.diff(borders) <= 0):
        raise MetricError(f"edges={borders.tolist()}: give at least two increasing numbers, such as [1, 10, 100]")
    group = np.searchsorted(borders, np.asarray(training_samples, np.float64), side="right") - 1
    hits, total = np.asarray(correct), np.asarray(count)
    return np.array([total_accuracy(hits[group == g], total[group == g]) for g in range(len(borders) - 1)])


def _numbers_of_samples(correct: npt.ArrayLike, count: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as float64 arrays; refused where they cannot be numbers of correct and of all samples."""
    hits, total = np.asarray(correct, np.float64), np.asarray(count, np.float64)
    if hits.shape != total.shape or np.any(hits > total) or np.any(hits < 0):
        raise MetricError(
            f"accuracy: correct {hits.shape} must lie in 0..count {total.shape} for each class, the numbers of test "
            "samples; for multi-hot labels and predictions use mAP, CF1 and OF1 (evaluate_logits)"
        )
    return hits, total
