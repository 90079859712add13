"""Frozen Vision Transformers over stock timm: the wrapper, the ways to insert prompts, and weight files.

Importing this package is light; torch and timm load when one of the heavy names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cl_prompts.backbones.settings import BackboneSettings, normalisation

if TYPE_CHECKING:
    from cl_prompts.backbones.build import build_backbone, load_backbone
    from cl_prompts.backbones.checkpoints import load_checkpoint
    from cl_prompts.backbones.frozen_vit import FrozenViT
    from cl_prompts.backbones.insertions import Insertion, Prefix, RoutedPrompts, TokenPrompts

_HEAVY = {
    "FrozenViT": "frozen_vit",
    "Insertion": "insertions",
    "Prefix": "insertions",
    "RoutedPrompts": "insertions",
    "TokenPrompts": "insertions",
    "build_backbone": "build",
    "load_backbone": "build",
    "load_checkpoint": "checkpoints",
}

__all__ = [
    "BackboneSettings",
    "FrozenViT",
    "Insertion",
    "Prefix",
    "RoutedPrompts",
    "TokenPrompts",
    "build_backbone",
    "load_backbone",
    "load_checkpoint",
    "normalisation",
]


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(import_module(f"{__name__}.{_HEAVY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
