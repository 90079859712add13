"""Readers: learned tokens that see the frozen sequence and themselves, while nothing sees them.

The sequence stays what it is without them, so it needs no graph, and what one reader finds does not depend on which
others are there. Source: class prompts of Prompt-CAM (CVPR 2025), kept from seeing each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from cl_prompts.backbones.attention import projection_weights
from cl_prompts.backbones.attention_input import AttentionInput
from cl_prompts.backbones.frozen_vit import FrozenViT
from cl_prompts.backbones.insertions import Insertion


def reader_states(backbone: FrozenViT, images: Tensor, readers: Tensor, *, first: int = 0) -> Tensor:
    """The readers behind the last block and the final norm, float `(batch, readers, width)`.

    Args:
        backbone: whose blocks they pass.
        images: float `(batch, channels, height, width)`.
        readers: float `(readers, width)`, the same for all images.
        first: block that they enter.
    """
    return backbone.model.norm(_through(backbone, images, readers, first, backbone.depth))


class LastBlock(NamedTuple):
    """What the last block is given, where some rows read the others: the input of `row_heads`.

    Attributes:
        block: the block.
        states: float `(batch, tokens, width)`, every row that may be seen and is not a reader.
        readers: float `(batch, readers, width)`.
        isolated: a reader sees `states` and itself; otherwise all readers, too.
    """

    block: Block
    states: Tensor
    readers: Tensor
    isolated: bool


@torch.no_grad()
def last_block_of_readers(backbone: FrozenViT, images: Tensor, readers: Tensor, *, first: int = 0) -> LastBlock:
    """What the last block is given by `reader_states`; arguments as there. Without gradient."""
    *_, states, _ = backbone.stream(images)
    entering = _through(backbone, images, readers, first, backbone.depth - 1).expand(len(images), -1, -1)
    return LastBlock(backbone.blocks[-1], states, entering, isolated=True)


@torch.no_grad()
def last_block_of_kept(backbone: FrozenViT, images: Tensor, insertions: Mapping[int, Sequence[Insertion]]) -> LastBlock:
    """What the last block is given by `FrozenViT.prompt_states`, its kept prompts as readers that see all rows."""
    block, given = backbone.blocks[-1], []
    hook = block.norm1.register_forward_hook(lambda module, inputs, result: given.append(inputs[0]))
    try:
        kept = backbone.prompt_states(images, insertions).shape[1]
    finally:
        hook.remove()
    return LastBlock(block, given[-1][:, :-kept], given[-1][:, -kept:], isolated=False)


def _through(backbone: FrozenViT, images: Tensor, readers: Tensor, first: int, stop: int) -> Tensor:
    """The readers in front of block `stop`, `(batch or 1, readers, width)`; they entered block `first`."""
    states = readers[None]
    mask: Tensor | None = None
    for index, (block, seen) in enumerate(zip(backbone.blocks, backbone.normed_stream(images), strict=True)):
        if first <= index < stop:
            if mask is None:
                mask = isolation(seen.normed.shape[1], len(readers), readers.device)
            states = _read_block(block, states, seen, mask)
    return states


def isolation(tokens: int, readers: int, device: torch.device) -> Tensor:
    """Which keys a reader sees, bool `(readers, tokens + readers)`: every token, and of the readers itself."""
    every = torch.ones(readers, tokens, dtype=torch.bool, device=device)
    return torch.cat([every, torch.eye(readers, dtype=torch.bool, device=device)], dim=1)


def _read_block(block: Block, readers: Tensor, seen: AttentionInput, mask: Tensor) -> Tensor:
    attention = cast("Attention", block.attn)
    projected = attention.qkv(block.norm1(readers)).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, own_key, own_value = projected.transpose(1, 3).unbind(2)
    query, own_key = attention.q_norm(query), attention.k_norm(own_key)
    key, value = seen.keys_and_values() or _keys_and_values(attention, seen.normed)
    batch = len(key)
    attended = F.scaled_dot_product_attention(
        query.expand(batch, -1, -1, -1),
        torch.cat([key, own_key.to(key.dtype).expand(batch, -1, -1, -1)], dim=2),
        torch.cat([value, own_value.to(value.dtype).expand(batch, -1, -1, -1)], dim=2),
        attn_mask=mask,
        scale=attention.scale,
    )
    return _finish(block, readers, attended.transpose(1, 2).flatten(2))


def _keys_and_values(attention: Attention, normed: Tensor) -> tuple[Tensor, Tensor]:
    projected = F.linear(normed, *projection_weights(attention, 1, 3))
    key, value = projected.unflatten(-1, (2, attention.num_heads, attention.head_dim)).transpose(1, 3).unbind(2)
    return attention.k_norm(key), value


def _finish(block: Block, rows: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block behind its heads, which lie side by side in `attended`."""
    attention = cast("Attention", block.attn)
    rows = rows + block.ls1(attention.proj(attention.norm(attended)))
    return rows + block.ls2(block.mlp(block.norm2(rows)))


# --- what a reader looks at -----------------------------------------------------------------------------------------


class RowHeads(NamedTuple):
    """One reader in the last block, head by head.

    Attributes:
        weights: attention over the rows it sees, float `(batch, heads, seen)`, the sum is 1: tokens first, then itself
            or, where readers see each other, all readers.
        attended: what each head reads, float `(batch, heads, head width)`.
        blurred: what it would read with its attention spread evenly, likewise.
    """

    weights: Tensor
    attended: Tensor
    blurred: Tensor


@torch.no_grad()
def row_heads(given: LastBlock, reader: int) -> RowHeads:
    """The attention of one reader in the last block, and what each head makes of it."""
    attention = cast("Attention", given.block.attn)
    own = given.readers[:, reader : reader + 1]
    rows = given.block.norm1(torch.cat([given.states, own if given.isolated else given.readers], dim=1))
    query = F.linear(given.block.norm1(own), *projection_weights(attention, 0, 1))
    query = attention.q_norm(query.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2))
    key, value = _keys_and_values(attention, rows)
    weights = torch.softmax(query @ key.transpose(-1, -2) * attention.scale, dim=-1)
    return RowHeads(weights[:, :, 0], (weights @ value)[:, :, 0], value.mean(2))


@torch.no_grad()
def finished_row(given: LastBlock, reader: int, heads: Tensor) -> Tensor:
    """The reader behind the last block, `(batch, width)`, where its heads read `(batch, heads, head width)`."""
    return _finish(given.block, given.readers[:, reader], heads.flatten(1))
