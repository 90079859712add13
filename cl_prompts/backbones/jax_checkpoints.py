"""The original JAX weight files (`.npz`) of Vision Transformers, read by timm's loader after a check of every key.

timm's loader fills what it finds; here the names and shapes it will read are listed first (Flax layout of
google-research/vision_transformer and big_vision), and what it did not fill is found afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from cl_prompts.backbones.weight_checks import (
    Shape,
    misfit,
    one_line,
    refuse_broken_numbers,
    refuse_misfits,
    unreadable,
)
from cl_prompts.errors import BackboneError

DROPPED = ("head/", "pre_logits/")
"""Beginnings of names that a frozen feature extractor does not use: classifiers."""

_PREFIXES = {
    "": (),
    "opt/target/": ("opt/state/",),
    "params/": (),
    "params/img/": ("params/txt/", "params/t", "params/b"),
}
"""Where a file keeps its Vision Transformer, and the neighbours (optimiser, text tower) that are not read."""

_PLAIN_ONLY = "a .npz file fits plain Vision Transformers only; use the .safetensors file of this model"


def load_jax_checkpoint(model: VisionTransformer, path: Path) -> None:
    """Fill `model` from a JAX `.npz` file; positions are resampled to the model's input size by timm.

    Raises:
        BackboneError: an unreadable file, or missing, unexpected or mis-shaped keys, or weights the file cannot hold.
    """
    if model.pos_embed is None or "blocks.0.mlp.fc1.weight" not in model.state_dict():
        raise BackboneError(f"{path.name}: {_PLAIN_ONLY}")
    found = _read_shapes(path)
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}embedding/kernel" in found), "")
    ignored = tuple(f"{prefix}{name}" for name in DROPPED) + _PREFIXES[prefix]
    found = {name: shape for name, shape in found.items() if not name.startswith(ignored)}
    expected = {f"{prefix}{name}": shape for name, shape in _expected(model, found, prefix)}
    refuse_misfits(path, found, expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    try:
        model.load_pretrained(str(path))
    except Exception as error:  # it copies without checks into parameters that a special model may lack
        raise misfit(path, f"{one_line(error)}; {_PLAIN_ONLY}") from error
    unfilled = [name for name, parameter in model.named_parameters() if parameter.isnan().all()]
    if unfilled:
        raise BackboneError(f"{path.name} has no weights for {', '.join(unfilled[:6])}: {_PLAIN_ONLY}")
    refuse_broken_numbers(path, dict(model.named_parameters()))


def _read_shapes(path: Path) -> dict[str, Shape]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name].shape for name in archive.files}
    except Exception as error:  # what a damaged archive raises depends on where the damage is
        raise unreadable(path, error) from error


def _expected(model: VisionTransformer, found: dict[str, Shape], prefix: str) -> Iterator[tuple[str, Shape]]:
    width = model.embed_dim
    height, breadth = model.patch_embed.patch_size
    yield "embedding/kernel", (height, breadth, model.patch_embed.proj.in_channels, width)
    yield "embedding/bias", (width,)
    if model.cls_token is not None:
        yield "cls", (1, 1, width)
    stacked = f"{prefix}Transformer/encoderblock/LayerNorm_0/scale" in found
    big_vision = stacked or f"{prefix}pos_embedding" in found or prefix.startswith("params/")
    positions = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    yield positions, _positions(model, found.get(f"{prefix}{positions}"))
    if hasattr(model.norm, "weight"):
        yield from _norm("Transformer/encoder_norm", width)
    hidden = model.get_parameter("blocks.0.mlp.fc1.weight").shape[0]
    heads = cast("Attention", cast("Block", model.blocks[0]).attn).num_heads
    if stacked:
        for name, shape in _block("Transformer/encoderblock", width, heads, hidden, big_vision):
            yield name, (len(model.blocks), *shape)
    else:
        for index in range(len(model.blocks)):
            yield from _block(f"Transformer/encoderblock_{index}", width, heads, hidden, big_vision)
    if model.attn_pool is not None:
        yield "MAPHead_0/probe", (1, 1, width)
        yield from _attention(
            "MAPHead_0/MultiHeadDotProductAttention_0", cast("Attention", model.attn_pool).num_heads, width
        )
        yield from _norm("MAPHead_0/LayerNorm_0", width)
        yield from _mlp("MAPHead_0/MlpBlock_0", width, hidden)


def _positions(model: VisionTransformer, found: Shape | None) -> Shape:
    """Any square grid of positions will do, because it is resampled; otherwise the model's own shape is expected."""
    own = tuple(cast("Tensor", model.pos_embed).shape)
    patches = found[1] - (0 if model.no_embed_class else model.num_prefix_tokens) if found and len(found) == 3 else 0
    if not found or patches <= 0 or math.isqrt(patches) ** 2 != patches:
        return own
    return (1, found[1], model.embed_dim)


def _block(name: str, width: int, heads: int, hidden: int, big_vision: bool) -> Iterator[tuple[str, Shape]]:
    # The older layout numbers the layers of a block jointly, big_vision each kind for itself.
    attention, mlp, second_norm = (0, 0, 1) if big_vision else (1, 3, 2)
    yield from _norm(f"{name}/LayerNorm_0", width)
    yield from _attention(f"{name}/MultiHeadDotProductAttention_{attention}", heads, width)
    yield from _norm(f"{name}/LayerNorm_{second_norm}", width)
    yield from _mlp(f"{name}/MlpBlock_{mlp}", width, hidden)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}/scale", (width,)
    yield f"{name}/bias", (width,)


def _attention(name: str, heads: int, width: int) -> Iterator[tuple[str, Shape]]:
    for part in ("query", "key", "value"):
        yield f"{name}/{part}/kernel", (width, heads, width // heads)
        yield f"{name}/{part}/bias", (heads, width // heads)
    yield f"{name}/out/kernel", (heads, width // heads, width)
    yield f"{name}/out/bias", (width,)


def _mlp(name: str, width: int, hidden: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}/Dense_0/kernel", (width, hidden)
    yield f"{name}/Dense_0/bias", (hidden,)
    yield f"{name}/Dense_1/kernel", (hidden, width)
    yield f"{name}/Dense_1/bias", (width,)
