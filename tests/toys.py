"""The contract's toys, and strategies with settings that fit the deeper backbones of tests."""

from __future__ import annotations

from typing import Any

from torch import nn

from cl_prompts.contract.toys import (
    CLASSES,
    SIZE,
    Pictures,
    TrainNormalise,
    assert_same,
    build_strategy,
    fingerprint,
    labels,
    learned,
    normalise,
    plan_of,
    stream_of,
    train,
)
from cl_prompts.strategies import load_strategy
from cl_prompts.strategies.declaration import read_settings

__all__ = [
    "CLASSES",
    "SETTINGS",
    "SIZE",
    "Pictures",
    "TrainNormalise",
    "assert_same",
    "fingerprint",
    "labels",
    "learned",
    "make_strategy",
    "normalise",
    "plan_of",
    "stream_of",
    "train",
]

SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"prompt_layers": 3, "prompt_length": 2} for name in ("er", "er_ace", "derpp", "lwf", "ewc")},
    "coda_prompt": {"components": 6, "prompt_length": 2, "prompt_layers": 3},
    "dualprompt": {"pool_size": 4, "general_length": 2, "expert_length": 3},
    "l2p": {"pool_size": 4, "prompt_length": 2, "selection_size": 3, "init": "small"},
    "misa": {"pool_size": 4, "general_length": 2, "expert_length": 3},
    "gacl": {"expansion": 64, "gamma": 0.1},
    "mvp": {"pool_size": 4, "general_length": 2, "expert_length": 3},
    "ranpac": {"projection": 64},
    "single_prompt": {"prompt_layers": 3, "prompt_length": 2},
}
"""Method -> settings that fit a tiny backbone; methods not named take their defaults."""


def make_strategy(name: str, backbone: nn.Module, **keywords: Any):
    """The strategy `name` with toy settings and images; `settings` is a dict of changes, the rest is its own."""
    settings = SETTINGS.get(name, {}) | keywords.pop("settings", {})
    assert set(settings) <= set(read_settings(name).model_fields)
    return build_strategy(load_strategy(name), backbone, settings, **keywords)
