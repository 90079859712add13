"""Several labels an image as one 0/1 matrix: checked, hashed, and compared."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from scenarios.errors import PlanError

LabelMatrix = npt.NDArray[np.uint8]
BoolMatrix = npt.NDArray[np.bool_]


def label_matrix(targets: Any) -> LabelMatrix:
    """Targets as a private uint8 copy `(samples, classes)` of zeros and ones.

    Raises:
        PlanError: empty, not two-dimensional, or with other values than 0 and 1.
    """
    try:
        array = np.asarray(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(f"targets cannot be read as a matrix ({error}): give one row of 0 and 1 a sample") from error
    if array.ndim == 1 and array.size and array.dtype.kind in "iu":
        raise PlanError(
            f"targets have shape {array.shape}, one class id a sample: give rows of 0 and 1, shape (samples, classes),"
            " or use a stream for one label a sample such as si_blurry"
        )
    if array.ndim != 2 or array.size == 0:
        raise PlanError(f"targets have shape {array.shape}: give one row of 0 and 1 a sample, shape (samples, classes)")
    if array.dtype.kind not in "iub" or not np.isin(array, (0, 1)).all():
        raise PlanError(f"targets of type {array.dtype} hold other values than whole 0 and 1: 1 marks a label")
    return np.array(array, dtype=np.uint8, order="C")


def known_matrix(known: Any, targets: LabelMatrix) -> BoolMatrix | None:
    """`known` as a private bool copy `(samples, classes)`, or None where every label is known.

    Raises:
        PlanError: another shape or type, or a label that is both set and unknown.
    """
    if known is None:
        return None
    array = np.array(known, order="C")
    if array.dtype != np.bool_ or array.shape != targets.shape:
        raise PlanError(f"known is {array.dtype} {array.shape}: give one bool a label, shape {targets.shape}, or None")
    contradiction = np.argwhere(~array & (targets == 1))
    if len(contradiction):
        row, column = contradiction[0].tolist()
        raise PlanError(f"sample {row} has label {column} but does not know it: set targets to 0 where known is False")
    return None if array.all() else array


def hash_label_matrix(targets: LabelMatrix, known: BoolMatrix | None) -> str:
    """sha256 of the shape (two little-endian int64), the 0/1 bytes row by row and, where some are unknown, `known`."""
    digest = hashlib.sha256(np.array(targets.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(targets).data)
    if known is not None:
        digest.update(known.astype(np.uint8).data)
    return digest.hexdigest()
