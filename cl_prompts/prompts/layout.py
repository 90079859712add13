"""Laying out one flat prompt tensor over the blocks it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from cl_prompts.backbones.insertions import Insertion, Prefix, TokenPrompts


def tokens_by_layer(rows: Tensor, layers: Sequence[int], length: int) -> dict[int, Insertion]:
    """Cut (batch or 1, len(layers) * length, width) into the tokens each block sees and drops again."""
    return {layer: TokenPrompts(rows[:, place * length : (place + 1) * length]) for place, layer in enumerate(layers)}


def input_prefixes_by_layer(rows: Tensor, layers: Sequence[int], length: int) -> dict[int, Insertion]:
    """Cut (batch or 1, 2 * len(layers) * length, width) into key and value rows ahead of each block's projection."""
    return _prefixes_by_layer(rows, layers, length, "input")


def projected_prefixes_by_layer(rows: Tensor, layers: Sequence[int], length: int) -> dict[int, Insertion]:
    """Cut (batch or 1, 2 * len(layers) * length, width) into key and value rows behind each block's projection."""
    return _prefixes_by_layer(rows, layers, length, "projected")


def _prefixes_by_layer(
    rows: Tensor, layers: Sequence[int], length: int, space: Literal["input", "projected"]
) -> dict[int, Insertion]:
    parts = rows.unflatten(1, (len(layers), 2, length))
    return {layer: Prefix(parts[:, place, 0], parts[:, place, 1], space) for place, layer in enumerate(layers)}


def reshaped_axes(rows: Tensor, blocks: int) -> Tensor:
    """Prefixes of a batch as DualPrompt's PyTorch port reads them: the axes key-or-value and image are mixed up.

    That code has (blocks, 2, batch, length, width), wants (blocks, batch, 2, length, width) and reshapes where it would
    have to transpose. Takes and gives (batch, blocks * 2 * length, width); of one image alone nothing changes.
    """
    parts = rows.unflatten(1, (blocks, 2, -1))
    mixed = parts.permute(1, 2, 0, 3, 4).reshape(blocks, len(rows), 2, *parts.shape[3:])
    return mixed.transpose(0, 1).flatten(1, 3)


def merge(*layouts: dict[int, Insertion]) -> dict[int, list[Insertion]]:
    """Join layouts; a block named by several gets its insertions in the order of the arguments."""
    merged: dict[int, list[Insertion]] = {}
    for layout in layouts:
        for layer, insertion in layout.items():
            merged.setdefault(layer, []).append(insertion)
    return merged


ROWS_PER_LENGTH = {"prompt_tuning": 1, "prefix_tuning": 2, "projected_prefix": 2}
"""Rows of the flat tensor for one unit of prompt length in one block."""

LAYOUTS = {
    "prompt_tuning": tokens_by_layer,
    "prefix_tuning": input_prefixes_by_layer,
    "projected_prefix": projected_prefixes_by_layer,
}
"""Insertion named in a configuration -> how the flat tensor is cut."""
