"""Prompts in a file of their own, to start a method from: safetensors, which cannot execute anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cl_prompts.errors import StrategyError


def save_prompts(path: Path, prompts: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named prompts in float32, with a line of text for each name in `metadata`."""
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in prompts.items()}
    save_file(tensors, path, metadata=dict(metadata))


@torch.no_grad()
def load_prompts(path: str, prompts: Mapping[str, Tensor], *, key: str) -> dict[str, str]:
    """Copy a file's values into `prompts`, all or nothing; returns the file's metadata.

    Args:
        path: of a safetensors file.
        prompts: what is filled; the file must hold these names in these shapes and no other.
        key: of the configuration, for errors.

    Raises:
        StrategyError: no such file, no safetensors, other names or shapes, or values that are not finite.
    """
    if not Path(path).is_file():
        raise StrategyError(f"{key}={path}: there is no such file; give a safetensors file of prompts, or none")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StrategyError(f"{key}={path}: cannot be read as safetensors ({reason}); write it again") from error
    shapes = [{name: tuple(tensor.shape) for name, tensor in group.items()} for group in (found, prompts)]
    if shapes[0] != shapes[1]:
        raise StrategyError(
            f"{key}={path}: holds {_listed(shapes[0])}, these settings need {_listed(shapes[1])}; use the lengths, "
            "blocks and backbone it was made with"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise StrategyError(f"{key}={path}: holds values that are not finite; write it again")
    for name, tensor in prompts.items():
        tensor.copy_(found[name])
    return metadata


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items())) or "nothing"
