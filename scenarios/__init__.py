"""Streams and data: which sample comes when, and the Avalanche benchmarks made of it.

Names are imported when first used: importing this package loads neither torch nor Avalanche.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarios.benchmark import PlannedBenchmark, benchmark_from_plan, si_blurry_benchmark
    from scenarios.datasets import ImageDataset, dataset_names, load_dataset
    from scenarios.errors import DataError, PlanError, UserError
    from scenarios.plan import StreamPlan, StreamPlanWarning
    from scenarios.settings import Settings
    from scenarios.si_blurry import SiBlurrySettings, si_blurry_plan
    from scenarios.transforms import EvalTransform, TrainTransform

_HOMES = {
    "DataError": "errors",
    "EvalTransform": "transforms",
    "ImageDataset": "datasets",
    "PlanError": "errors",
    "PlannedBenchmark": "benchmark",
    "Settings": "settings",
    "SiBlurrySettings": "si_blurry",
    "StreamPlan": "plan",
    "StreamPlanWarning": "plan",
    "TrainTransform": "transforms",
    "UserError": "errors",
    "benchmark_from_plan": "benchmark",
    "dataset_names": "datasets",
    "load_dataset": "datasets",
    "si_blurry_benchmark": "benchmark",
    "si_blurry_plan": "si_blurry",
}

__all__ = [
    "DataError",
    "EvalTransform",
    "ImageDataset",
    "PlanError",
    "PlannedBenchmark",
    "Settings",
    "SiBlurrySettings",
    "StreamPlan",
    "StreamPlanWarning",
    "TrainTransform",
    "UserError",
    "benchmark_from_plan",
    "dataset_names",
    "load_dataset",
    "si_blurry_benchmark",
    "si_blurry_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
