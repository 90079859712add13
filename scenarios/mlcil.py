"""Multi-label class-incremental streams (MLCIL): every task labels its own classes, images return in several tasks.

A task trains on every image that has one of its classes and shows no label of any other class: those are missing,
neither positive nor negative. Source: the protocol of the published multi-label class-incremental benchmarks (`B0-C10`
is base=0, increment=10; `B40-C10` is base=40, increment=10), with the class order by name.
"""

from __future__ import annotations

import math
import platform
import random
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from scenarios._arguments import (
    LARGEST_SEED,
    ClassIds,
    checked,
    class_order,
    names_of_classes,
    order_setting,
    whole_number,
)
from scenarios._label_matrix import label_matrix
from scenarios._plan_measures import DISJOINT
from scenarios.errors import PlanError
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.multi_label_settings import MultiLabelEvaluationSettings
from scenarios.plan import StreamPlanWarning

__all__ = [
    "MLCILSettings",
    "check_task_division",
    "evaluation_images",
    "mlcil_plan",
    "multi_label_plan",
    "task_indices",
]

GENERATOR_VERSION = "1"
"""Rises whenever the same arguments give another stream."""

_NAMED_ORDERS = ("alphabetical", "random")
_OTHER_ORDERS = "alphabetical, random (drawn with the seed, which is set apart)"


class MLCILSettings(MultiLabelEvaluationSettings):
    """What shapes a multi-label class-incremental stream, beside the labels and the seed."""

    base: int = Field(0, ge=0, description="classes of the first task; 0: as many as every other task")
    increment: int = Field(2, ge=1, description="classes of every later task")
    order: Literal["alphabetical", "random"] | ClassIds = Field(
        "alphabetical",
        description="classes by name (published), random (Python's random.shuffle with the seed of the plan, as"
        " released), or a list of all class ids",
    )

    @field_validator("order", mode="before")
    @classmethod
    def _one_order(cls, value: Any) -> str | tuple[int, ...]:
        return value if isinstance(value, str) and value in _NAMED_ORDERS else order_setting(value, _OTHER_ORDERS)


def multi_label_plan(
    num_classes: int,
    base: int,
    increment: int,
    order: str | tuple[str, int] | Sequence[int] = "alphabetical",
    *,
    class_names: Sequence[str] | None = None,
) -> list[list[int]]:
    """Divide the classes among tasks; a list of class ids a task, in class order.

    Args:
        num_classes: classes of the data set; class ids are its label columns.
        base: classes of the first task; 0 means `increment`.
        increment: classes of every later task.
        order: `"alphabetical"` (by name in Python's string order: upper case before lower case; by id without names),
            a permutation of all class ids, or `("random", seed)` for Python's `random.shuffle` of the ids.
        class_names: one name a class, for the alphabetical order.

    Raises:
        PlanError: classes that cannot be divided so, or an order that is no permutation.
    """
    ends = _task_ends(num_classes, base, increment)
    classes = _ordered_classes(num_classes, order, names_of_classes(class_names, num_classes))
    return [classes[start:end] for start, end in pairwise([0, *ends])]


def check_task_division(num_classes: int, base: int, increment: int) -> None:
    """Refuse what `multi_label_plan` would refuse of these numbers, before any data is loaded.

    Args:
        num_classes: classes of the data set.
        base: classes of the first task; 0 means `increment`.
        increment: classes of every later task.

    Raises:
        PlanError: classes that cannot be divided so; names all increments that the base allows.
    """
    _task_ends(num_classes, base, increment)


def _task_ends(num_classes: int, base: int, increment: int) -> list[int]:
    """Classes of the tasks up to each of them; the last number is `num_classes`."""
    num_classes = whole_number("num_classes", num_classes, 1, 2**31)
    increment = whole_number("increment", increment, 1, 2**31)
    first = whole_number("base", base, 0, num_classes) or increment
    advice = f"choose increment={_divisors(num_classes - base)}, or another base"
    if first > num_classes:
        raise PlanError(
            f"base=0 with increment={increment}: the first task would have more than the {num_classes} classes;"
            f" {advice}"
        )
    if (num_classes - first) % increment:
        raise PlanError(
            f"base={base} with increment={increment}: the {num_classes - first} classes after the first task cannot be"
            f" divided into tasks of {increment}; {advice}"
        )
    return list(range(first, num_classes + 1, increment))


def _divisors(number: int) -> str:
    """All divisors in words: `1, 2 or 4`."""
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    *most, last = map(str, sorted({*small, *(number // one for one in small)} or {1}))
    return f"{', '.join(most)} or {last}" if most else last


def _ordered_classes(num_classes: int, order: Any, names: tuple[str, ...] | None) -> list[int]:
    classes = list(range(num_classes))
    if isinstance(order, str) and order == "alphabetical":
        return classes if names is None else sorted(classes, key=names.__getitem__)
    if isinstance(order, tuple) and len(order) == 2 and order[0] == "random":
        random.Random(whole_number("order: seed", order[1], 0, LARGEST_SEED)).shuffle(classes)
        return classes
    return class_order(order, num_classes, '"alphabetical", ("random", seed)')


def task_indices(labels: Any, classes: Sequence[int], *, task: int | None = None) -> npt.NDArray[np.int64]:
    """Images that have at least one of these classes, as increasing int64 indices.

    Args:
        labels: 0/1 `(samples, classes)`.
        classes: class ids of the task.
        task: number of the task, for the error.

    Raises:
        PlanError: no image has any of them.
    """
    rows = np.flatnonzero(np.asarray(labels)[:, list(classes)].any(axis=1))
    if not rows.size:
        name = "task" if task is None else f"task {task}"
        raise PlanError(
            f"{name}: no training image has a label of its classes {list(classes)}; give the task more classes (larger"
            " base or increment), another order, or images of these classes"
        )
    return rows.astype(np.int64)


_EVALUATION_COLUMNS: dict[str, Callable[[npt.NDArray[np.bool_], npt.NDArray[np.bool_]], npt.NDArray[np.bool_]]] = {
    "seen": lambda seen, final: seen,
    "all": lambda seen, final: np.ones_like(seen),
    "final_seen": lambda seen, final: final,
}


def evaluation_images(labels: Any, seen: Any, rule: str = "seen", final: Any = None) -> npt.NDArray[np.bool_]:
    """Which images are evaluated, bool `(samples,)`; an image without any label never is.

    Args:
        labels: 0/1 `(samples, classes)`.
        seen: bool `(classes,)`, classes seen so far.
        rule: `seen`: images with a seen class (published; the set grows), `all`: images with any class, `final_seen`:
            images with a class seen by the end of the stream.
        final: bool `(classes,)`, classes seen by the end of the stream; needed for `final_seen`.

    Raises:
        PlanError: unknown rule, `final_seen` without `final`, or classes given other than as one bool each.
    """
    if rule not in _EVALUATION_COLUMNS:
        raise PlanError(f"eval_images={rule!r}: choose {', '.join(_EVALUATION_COLUMNS)}")
    if rule == "final_seen" and final is None:
        raise PlanError(
            "eval_images='final_seen' needs final, the classes seen by the end of the stream, bool per class"
        )
    labels, seen = np.asarray(labels) == 1, np.asarray(seen)
    final = seen if final is None else np.asarray(final)
    for name, columns in (("seen", seen), ("final", final)):
        if columns.dtype != np.bool_ or columns.shape != labels.shape[1:]:
            raise PlanError(
                f"{name} is {columns.dtype} {columns.shape}: give one bool a class, shape {labels.shape[1:]}, such as a"
                " row of plan.seen_after"
            )
    columns = _EVALUATION_COLUMNS[rule](seen, final)
    return np.asarray(labels[:, columns].any(axis=1))


def mlcil_plan(
    targets: Any,
    *,
    base: int = 0,
    increment: int = 2,
    order: str | Sequence[int] = "alphabetical",
    seed: int = 1,
    class_names: Sequence[str] | None = None,
    dataset_name: str = "",
    known: Any = None,
) -> MultiLabelPlan:
    """Decide a multi-label class-incremental stream: session t holds every image with a class of task t, by index.

    Args:
        targets: 0/1 `(samples, classes)` in data set order.
        base: classes of the first task; 0: as many as every other task.
        increment: classes of every later task.
        order: `alphabetical`, `random` (shuffled by `seed`), or a list of all class ids; see `multi_label_plan`.
        seed: of a random class order; nothing else is drawn. No global random state is read or changed.
        class_names: one name a class, for the alphabetical order, kept with the plan.
        dataset_name: kept with the plan.
        known: bool `(samples, classes)`, False where a label is neither positive nor negative; None: all are known.

    Raises:
        PlanError: an argument out of range, unusable targets, or a task without an image.
    """
    settings = checked(MLCILSettings, "MLCIL", base=base, increment=increment, order=order)
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    labels = label_matrix(targets)
    names = names_of_classes(class_names, labels.shape[1])
    if not isinstance(settings.order, str):
        class_order(settings.order, labels.shape[1], _OTHER_ORDERS)
    asked = ("random", seed) if settings.order == "random" else settings.order
    tasks = multi_label_plan(labels.shape[1], settings.base, settings.increment, asked, class_names=names)

    columns = np.zeros((len(tasks), labels.shape[1]), dtype=np.bool_)
    home = np.empty(labels.shape[1], dtype=np.int64)
    for task, classes in enumerate(tasks):
        columns[task, classes], home[classes] = True, task
    sessions = tuple(task_indices(labels, classes, task=task) for task, classes in enumerate(tasks))
    plan = MultiLabelPlan(
        sessions=sessions,
        block_sizes=np.array([len(rows) for rows in sessions], dtype=np.int64),
        block_columns=columns,
        targets=labels,
        known=known,
        drawn_kind=np.full(labels.shape[1], DISJOINT, dtype=np.int8),
        drawn_home=home,
        requested={
            "mode": "mlcil",
            "base": settings.base,
            "increment": settings.increment,
            "order": settings.order if isinstance(settings.order, str) else list(settings.order),
            "n_sessions": len(tasks),
            "seed": seed,
        },
        provenance={
            "generator": "scenarios.mlcil",
            "generator_version": GENERATOR_VERSION,
            "libraries": {"python": platform.python_version(), "numpy": np.__version__},
            "dataset": dataset_name,
            "num_samples": len(labels),
        },
        class_names=names,
    )
    if plan.warnings:
        warnings.warn(f"MLCIL stream: {'; '.join(plan.warnings)}", StreamPlanWarning, stacklevel=2)
    return plan
