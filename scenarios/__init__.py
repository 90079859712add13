"""Streams and data: which sample comes when, and the Avalanche benchmarks made of it.

Names are imported when first used: importing this package loads neither torch nor Avalanche.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarios.benchmark import PlannedBenchmark, benchmark_from_plan, si_blurry_benchmark
    from scenarios.datasets import ImageDataset, dataset_names, load_dataset, read_dataset_settings
    from scenarios.errors import DataError, PlanError, UserError
    from scenarios.ml_si_blurry import MLSiBlurrySettings, ml_si_blurry_plan
    from scenarios.mlcil import MLCILSettings, evaluation_images, mlcil_plan
    from scenarios.multi_label_benchmark import ml_si_blurry_benchmark, mlcil_benchmark
    from scenarios.multi_label_plan import MultiLabelPlan
    from scenarios.multi_label_settings import MultiLabelEvaluationSettings
    from scenarios.plan import StreamPlan, StreamPlanWarning
    from scenarios.plans import Plan, load_plan
    from scenarios.settings import Settings
    from scenarios.si_blurry import SiBlurrySettings, si_blurry_plan
    from scenarios.transforms import EvalTransform, TrainTransform

_HOMES = {
    "DataError": "errors",
    "EvalTransform": "transforms",
    "ImageDataset": "datasets",
    "MLCILSettings": "mlcil",
    "MLSiBlurrySettings": "ml_si_blurry",
    "MultiLabelEvaluationSettings": "multi_label_settings",
    "MultiLabelPlan": "multi_label_plan",
    "Plan": "plans",
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
    "evaluation_images": "mlcil",
    "load_dataset": "datasets",
    "read_dataset_settings": "datasets",
    "load_plan": "plans",
    "ml_si_blurry_benchmark": "multi_label_benchmark",
    "ml_si_blurry_plan": "ml_si_blurry",
    "mlcil_benchmark": "multi_label_benchmark",
    "mlcil_plan": "mlcil",
    "si_blurry_benchmark": "benchmark",
    "si_blurry_plan": "si_blurry",
}

__all__ = [
    "DataError",
    "EvalTransform",
    "ImageDataset",
    "MLCILSettings",
    "MLSiBlurrySettings",
    "MultiLabelEvaluationSettings",
    "MultiLabelPlan",
    "Plan",
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
    "evaluation_images",
    "load_dataset",
    "load_plan",
    "ml_si_blurry_benchmark",
    "ml_si_blurry_plan",
    "mlcil_benchmark",
    "mlcil_plan",
    "read_dataset_settings",
    "si_blurry_benchmark",
    "si_blurry_plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
