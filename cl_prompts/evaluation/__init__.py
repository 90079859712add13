"""Evaluation of any model on a fixed test set, leaving no trace in training.

`Evaluator` for one label an image, `MultiLabelEvaluator` for several; `cl_prompts.plugins.AnytimeEvaluation` takes
either. Names are imported when first used: importing this package does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_prompts.evaluation.one_label import EvaluationResult, Evaluator
    from cl_prompts.evaluation.several_labels import EvaluatedLogits, MultiLabelEvaluation, MultiLabelEvaluator

_HOMES = {
    "EvaluatedLogits": "several_labels",
    "EvaluationResult": "one_label",
    "Evaluator": "one_label",
    "MultiLabelEvaluation": "several_labels",
    "MultiLabelEvaluator": "several_labels",
}

__all__ = ["EvaluatedLogits", "EvaluationResult", "Evaluator", "MultiLabelEvaluation", "MultiLabelEvaluator"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
