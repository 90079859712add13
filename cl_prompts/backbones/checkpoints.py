"""Weight files into timm models, all or nothing: every key is accounted for, and no file can execute code."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from cl_prompts.backbones.jax_checkpoints import load_jax_checkpoint
from cl_prompts.backbones.layouts import unwrapped
from cl_prompts.backbones.settings import WEIGHT_SUFFIXES, has_weight_suffix
from cl_prompts.backbones.weight_checks import (
    misfit,
    one_line,
    refuse_broken_numbers,
    refuse_misfits,
    shortened,
    unreadable,
)
from cl_prompts.errors import BackboneError

DROPPED = (r"head\..*", r"head_dist\..*", r"pre_logits\..*", r"mask_token", r"masked_embed")
"""Keys (regular expressions) that a frozen feature extractor does not use: classifiers, mask tokens of DINOv2, iBOT."""


def load_checkpoint(model: VisionTransformer, path: Path | str) -> None:
    """Fill `model` from a weight file; a file that does not fit in every key is an error, never a partial load.

    `.safetensors`, or `.pth`, `.pt`, `.bin`, `.pth.tar` (read with torch's `weights_only`; nested under `state_dict` or
    `model` if need be; averaged weights first, as timm does), or the original JAX `.npz`. Any floating precision is
    read, into the model's own. Position embeddings are resampled to the model's input size by timm, and published
    layouts that timm converts are converted, as are those of `layouts.py`. The keys in `DROPPED` are left out.

    Raises:
        BackboneError: no such file, an unknown kind, an unreadable file, or missing, unexpected or mis-shaped keys.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"no weight file at {str(path)!r}; check backbone.checkpoint")
    if not has_weight_suffix(path):
        raise BackboneError(
            f"{str(path)!r} is not a known kind of weight file; use one of {', '.join(WEIGHT_SUFFIXES)}"
        )
    if path.suffix.lower() == ".npz":
        load_jax_checkpoint(model, path)
        return
    weights = _converted(_read(path), model, path)
    expected = model.state_dict()
    refuse_misfits(path, _shapes(weights), _shapes(expected))
    refuse_broken_numbers(path, weights)
    model.load_state_dict({key: value.to(expected[key].dtype) for key, value in weights.items()})


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        # Training checkpoints often hold their command line; a Namespace is data and runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise unreadable(path, error) from error
    state = unwrapped(state)
    strangers = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strangers:
        raise BackboneError(
            f"{path.name} holds entries that are not weights ({shortened(strangers)}); "
            "save the model's state_dict alone, or under the key 'state_dict'"
        )
    return state


def _converted(state: dict[str, Any], model: VisionTransformer, path: Path) -> dict[str, Tensor]:
    """Timm's own conversion of a state to this model, after checks of what it would change in silence."""
    for key, value in state.items():
        if key.endswith("patch_embed.proj.weight"):
            _refuse_other_patches(key, value, model, path)
        elif key.endswith("pos_embed"):
            _refuse_odd_positions(key, value, model, path)
    try:
        with torch.no_grad():
            state = checkpoint_filter_fn(state, model, adapt_layer_scale=True)
    except Exception as error:  # its conversions index and reshape without checks
        raise misfit(path, one_line(error)) from error
    dropped = re.compile("|".join(DROPPED))
    return {key: value for key, value in state.items() if not dropped.fullmatch(key)}


def _refuse_other_patches(key: str, kernel: Tensor, model: VisionTransformer, path: Path) -> None:
    expected = model.patch_embed.proj.weight
    if kernel.ndim == 4 and kernel.shape != expected.shape:  # timm would resample the kernel to another patch size
        refuse_misfits(path, {key: tuple(kernel.shape)}, {key: tuple(expected.shape)})


def _refuse_odd_positions(key: str, positions: Tensor, model: VisionTransformer, path: Path) -> None:
    if model.pos_embed is None or positions.shape == model.pos_embed.shape:
        return
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    patches = positions.shape[1] - prefix if positions.ndim == 3 else 0
    square = patches > 0 and math.isqrt(patches) ** 2 == patches
    if not square or positions.shape[0] != 1 or positions.shape[2] != model.embed_dim:
        raise misfit(
            path,
            f"of another shape: {key} {tuple(positions.shape)} instead of "
            f"(1, {prefix} + a square number, {model.embed_dim})",
        )
