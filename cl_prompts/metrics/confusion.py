"""Confusion matrix of single-label predictions, the one array every accuracy here is read from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.labels import require_one_label

IntArray = npt.NDArray[np.int64]


def confusion_matrix(targets: npt.ArrayLike, predictions: npt.ArrayLike, num_classes: int) -> IntArray:
    """Count how often class i was predicted as class j.

    Args:
        targets: true classes, integers `(n,)` in 0..num_classes-1.
        predictions: predicted classes, integers `(n,)` in the same range.
        num_classes: number of classes of the data set, C.

    Returns:
        int64 `(C, C)`; row = true class, column = predicted class; row sums count test samples, the diagonal counts
        the correct ones.

    Raises:
        MetricError: multi-hot targets (several labels an image), a dtype that is not an integer, unequal lengths, or
            a class out of range.

    >>> confusion_matrix([0, 0, 1, 2], [0, 1, 1, 1], 3)
    array([[1, 1, 0],
           [0, 1, 0],
           [0, 1, 0]])
    """
    true = single_label_classes(targets, num_classes, "targets")
    predicted = single_label_classes(predictions, num_classes, "predictions")
    if len(true) != len(predicted):
        raise MetricError(
            f"confusion_matrix: {len(true)} targets but {len(predicted)} predictions; give one prediction a target"
        )
    flat = np.bincount(true * num_classes + predicted, minlength=num_classes * num_classes)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def single_label_classes(values: npt.ArrayLike, num_classes: int, what: str) -> IntArray:
    """Check class numbers for a single-label metric and return them as int64 `(n,)`.

    Raises:
        MetricError: see `confusion_matrix`.
    """
    array = require_one_label(values, "top-1 accuracy and the confusion matrix", what=what)
    if array.size == 0:
        return np.zeros(0, np.int64)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= num_classes:
        raise MetricError(
            f"{what}: class {low if low < 0 else high} is outside 0..{num_classes - 1}; give data-set class ids"
        )
    return array.astype(np.int64, copy=False)
