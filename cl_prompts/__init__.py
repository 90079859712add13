"""Continual learning with prompts on frozen Vision Transformers, on Avalanche's training loop.

Importing this package imports neither torch nor Avalanche: its rooms are loaded when they are first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = ("backbones", "errors", "logging", "losses", "masks", "metrics", "plugins", "prompts", "runs", "strategies")
_FUNCTIONS = {"load_run": "runs.loading"}

__all__ = ["__version__", *_FUNCTIONS, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
