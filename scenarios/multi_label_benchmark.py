"""Multi-label streams as Avalanche benchmarks in one call: plan, data sets, streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scenarios._image_items import Transform
from scenarios.benchmark import ImageSource, PlannedBenchmark, View, benchmark_from_plan
from scenarios.ml_si_blurry import ml_si_blurry_plan
from scenarios.mlcil import mlcil_plan

__all__ = ["ml_si_blurry_benchmark", "mlcil_benchmark"]


def mlcil_benchmark(
    train: ImageSource,
    test: ImageSource,
    *,
    base: int = 0,
    increment: int = 2,
    order: str | Sequence[int] = "alphabetical",
    seed: int = 1,
    class_names: Sequence[str] | None = None,
    dataset_name: str | None = None,
    task_label: int | None = None,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> PlannedBenchmark:
    """A multi-label class-incremental benchmark: `mlcil_plan` on the training labels, then `benchmark_from_plan`.

    Args:
        train: training data set with rows of labels; its `known`, `class_names` and `name`, where it has them, go into
            the plan.
        test: test data set with rows of labels.
        base: see `mlcil_plan`, like all arguments up to `dataset_name`.
        increment: classes of every later task.
        order: `alphabetical`, `random` or a list of all class ids.
        seed: of a random class order.
        class_names: one name a class; None: those of `train`.
        dataset_name: kept with the plan; None: that of `train`.
        task_label: see `benchmark_from_plan`, like all that follow.
        train_transform: applied to every training image.
        eval_transform: applied to every test image.

    Raises:
        PlanError: no such stream can be built.
        DataError: unusable test set.
    """
    plan = mlcil_plan(
        train.targets,
        base=base,
        increment=increment,
        order=order,
        seed=seed,
        known=getattr(train, "known", None),
        **_described(train, class_names, dataset_name),
    )
    return benchmark_from_plan(
        plan,
        train,
        test,
        task_label=task_label,
        train_transform=train_transform,
        eval_transform=eval_transform,
    )


def ml_si_blurry_benchmark(
    train: ImageSource,
    test: ImageSource,
    *,
    n_sessions: int = 5,
    disjoint_class_pct: int = 50,
    blurry_sample_pct: int = 10,
    cuts: str = "stochastic",
    allow_empty_sessions: bool = False,
    order: Sequence[int] | None = None,
    stream_batch: int,
    seed: int = 1,
    class_names: Sequence[str] | None = None,
    dataset_name: str | None = None,
    view: View = "sessions",
    task_label: int | None = None,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> PlannedBenchmark:
    """Multi-label Si-Blurry: `ml_si_blurry_plan` on the training labels, then `benchmark_from_plan`.

    Args:
        train: training data set with rows of labels; its `known`, `class_names` and `name`, where it has them, go into
            the plan.
        test: test data set with rows of labels.
        n_sessions: see `ml_si_blurry_plan`, like all arguments up to `dataset_name`.
        disjoint_class_pct: percent of the classes that are disjoint.
        blurry_sample_pct: percent of the images with a blurry anchor that are moved.
        cuts: `stochastic` or `even` numbers of classes a session.
        allow_empty_sessions: accept sessions without an image.
        order: all class ids, the disjoint ones first; None: drawn.
        stream_batch: images of a batch, which decides the visible labels; train with `train_mb_size=stream_batch`.
        seed: of the plan alone.
        class_names: one name a class; None: those of `train`.
        dataset_name: kept with the plan; None: that of `train`.
        view: see `benchmark_from_plan`, like all that follow.
        task_label: one task label for all samples, or None for none.
        train_transform: applied to every training image.
        eval_transform: applied to every test image.

    Raises:
        PlanError: no such stream can be built.
        DataError: unusable test set.
    """
    plan = ml_si_blurry_plan(
        train.targets,
        n_sessions=n_sessions,
        disjoint_class_pct=disjoint_class_pct,
        blurry_sample_pct=blurry_sample_pct,
        cuts=cuts,
        allow_empty_sessions=allow_empty_sessions,
        order=order,
        stream_batch=stream_batch,
        seed=seed,
        known=getattr(train, "known", None),
        **_described(train, class_names, dataset_name),
    )
    return benchmark_from_plan(
        plan,
        train,
        test,
        view=view,
        task_label=task_label,
        train_transform=train_transform,
        eval_transform=eval_transform,
    )


def _described(train: ImageSource, class_names: Sequence[str] | None, dataset_name: str | None) -> dict[str, Any]:
    """What a plan keeps of a data set beside its labels: given here, or the data set's own."""
    return {
        "class_names": getattr(train, "class_names", None) if class_names is None else class_names,
        "dataset_name": str(getattr(train, "name", "")) if dataset_name is None else dataset_name,
    }
