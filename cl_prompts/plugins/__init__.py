"""Avalanche plugins; each works under this project's strategies and under Avalanche's own.

They read only `mb_x`, `mb_y`, `mb_output`, `loss`, `model` and `experience`, and add to `strategy.loss` in
`before_backward`, so that they combine with Naive, Replay, EWC and LwF.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "AdaptiveFeatureScaling": "adaptive_feature_scaling",
    "AnytimeEvaluation": "anytime_evaluation",
    "GradientSimilarityFocalLoss": "gradient_similarity_focal_loss",
    "LogitMask": "logit_mask",
    "PromptUsage": "prompt_usage",
    "Reservoir": "reservoir",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
