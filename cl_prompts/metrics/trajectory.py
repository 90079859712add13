"""The whole trajectory from one pass: results after every task from logits stored after the last one.

Exact for models whose finished parts never change: a column of the logits, once its class has been learnt, stays what
it was when its task ended, and a column that is not seen yet is not read. A model that goes on changing old columns has
to be evaluated after every task instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.confusion import single_label_classes
from cl_prompts.metrics.f1 import PUBLISHED_THRESHOLD
from cl_prompts.metrics.labels import split_labels
from cl_prompts.metrics.multi_label import MultiLabelResult, ScoreKind, evaluate_logits
from scenarios.mlcil import evaluation_images

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def trajectory(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    seen_after: npt.ArrayLike,
    *,
    eval_images: str = "seen",
    thresholds: Sequence[float] = (PUBLISHED_THRESHOLD, 0.5),
    scores: ScoreKind = "sigmoid",
    known: npt.ArrayLike | None = None,
    similarities: npt.ArrayLike | None = None,
) -> list[MultiLabelResult]:
    """Results after every task, bit for bit those of evaluating after each of them.

    Args:
        logits: float32 `(n, C)` of all test images after the last task; with `similarities`, those of every lane,
            `(n, T, C)`.
        targets: 0/1 `(n, C)`; NaN = not known.
        seen_after: bool `(T, C)`, classes seen at the end of each task; once seen, always seen.
        eval_images: test images of task t: `seen` (with a class seen by then; published, the set grows), `all` (with
            any class), `final_seen` (with a class seen by the end).
        thresholds, scores, known: as in `evaluate_logits`.
        similarities: `(n, T)`, how well the key of each lane fits an image, for methods that choose one lane an image:
            after task t the best of the first t + 1 lanes, the first of equally good ones.

    Raises:
        MetricError: shapes that do not fit, a class that is unseen again, or what `evaluate_logits` refuses.
        PlanError: an unknown `eval_images`.
    """
    positive, known_entries = split_labels(targets, known, "mAP, CF1 and OF1")
    seen = _seen_table(seen_after, positive.shape[1])
    results = []
    for task, columns in enumerate(seen):
        rows = evaluation_images(positive, columns, eval_images, seen[-1])
        table = _logits_after(task, logits, similarities, len(seen), positive.shape)
        results.append(
            evaluate_logits(
                table[rows], positive[rows], columns, thresholds=thresholds, scores=scores, known=known_entries[rows]
            )
        )
    return results


class TaskAccuracies(NamedTuple):
    """Accuracies of a class-incremental stream with one label a sample, float64."""

    of_task: FloatArray
    """Row = after task t, column = test samples of task i, `(T, T)`; NaN for i > t and for tasks without samples."""
    average: FloatArray
    """Unweighted mean over the tasks so far, `(T,)`: the published average accuracy."""
    total: FloatArray
    """Over all test samples of the tasks so far, `(T,)`."""


def task_accuracies(
    logits: npt.ArrayLike,
    targets: npt.ArrayLike,
    seen_after: npt.ArrayLike,
    *,
    similarities: npt.ArrayLike | None = None,
) -> TaskAccuracies:
    """Accuracy of task i after task t for all (i, t), the prediction being the largest logit of a seen column.

    Of equally large logits the first column wins. The classes of task i are those first seen in it.

    Args:
        logits, seen_after, similarities: as in `trajectory`.
        targets: class ids, integers `(n,)`.

    Raises:
        MetricError: multi-hot targets, shapes that do not fit, NaN in a seen column, or a class that is unseen again.

    >>> result = task_accuracies([[2.0, 3.0], [0.0, 1.0]], [0, 1], [[True, False], [True, True]])
    >>> result.of_task
    array([[ 1., nan],
           [ 0.,  1.]])
    >>> result.average, result.total
    (array([1. , 0.5]), array([1. , 0.5]))
    """
    classes = np.asarray(seen_after).shape[-1]
    true = single_label_classes(targets, classes, "targets")
    seen = _seen_table(seen_after, classes)
    task_of_class = np.where(seen.any(axis=0), seen.argmax(axis=0), len(seen))
    task_of_sample = task_of_class[true]
    of_task, total = np.full((len(seen), len(seen)), np.nan), np.full(len(seen), np.nan)
    for task, columns in enumerate(seen):
        table = _logits_after(task, logits, similarities, len(seen), (len(true), classes))
        rows = task_of_sample <= task
        if np.isnan(table[rows][:, columns]).any():
            raise MetricError(f"logits: NaN in a column seen after task {task}; the model gave no number there")
        predicted = np.where(columns, table, -np.inf).argmax(axis=1) if columns.any() else np.full(len(true), -1)
        right = predicted == true
        for earlier in range(task + 1):
            samples = task_of_sample == earlier
            if samples.any():
                of_task[task, earlier] = right[samples].mean()
        if rows.any():
            total[task] = right[rows].mean()
    measured = ~np.isnan(of_task)
    average = np.where(measured.any(axis=1), np.nansum(of_task, axis=1) / np.maximum(measured.sum(axis=1), 1), np.nan)
    return TaskAccuracies(of_task, average, total)


def _seen_table(seen_after: npt.ArrayLike, classes: int) -> BoolArray:
    seen: npt.NDArray[Any] = np.asarray(seen_after)
    if seen.ndim != 2 or seen.shape[1] != classes or not len(seen) or seen.dtype != bool:
        raise MetricError(f"seen_after: {seen.dtype} {seen.shape}, expected bool (tasks, {classes})")
    if np.any(seen[:-1] & ~seen[1:]):
        raise MetricError("seen_after: a class that was seen is unseen after a later task; give what was seen so far")
    return seen


def _logits_after(
    task: int, logits: npt.ArrayLike, similarities: npt.ArrayLike | None, tasks: int, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """The logits `(n, C)` as they were after a task."""
    table: npt.NDArray[Any] = np.asarray(logits)
    if similarities is None:
        if table.shape != shape:
            raise MetricError(
                f"logits: shape {table.shape}, expected {shape}; lanes (n, T, C) need similarities (n, T)"
            )
        return table
    fit: npt.NDArray[Any] = np.asarray(similarities)
    if fit.shape != (shape[0], tasks) or table.shape != (shape[0], tasks, shape[1]) or np.isnan(fit).any():
        raise MetricError(
            f"similarities {fit.shape}, logits {table.shape}: expected {(shape[0], tasks)} without NaN and "
            f"{(shape[0], tasks, shape[1])}"
        )
    chosen = fit[:, : task + 1].argmax(axis=1)
    return table[np.arange(len(table)), chosen]
