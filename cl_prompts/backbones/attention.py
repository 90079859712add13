"""One frozen timm `Block` whose attention also sees prompts: pure functions, no state, no change to the block.

Every function computes what the stock block would compute on a longer sequence, but only for the rows that are read:
a row that is cut off after the block, or never read by the head, still gives keys and values and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from cl_prompts.backbones.insertions import Prefix


def run_block(
    block: Block,
    states: Tensor,
    *,
    context: Sequence[Tensor] = (),
    prefixes: Sequence[Prefix] = (),
    rows: slice | list[int] | None = None,
) -> Tensor:
    """A frozen block on `states` with extra keys and values.

    Args:
        block: the stock block; used as it is, never changed.
        states: token states, float `(batch, tokens, width)`.
        context: token prompts `(batch or 1, prompts, width)` that pass the block's first norm and give keys and
            values; their own output rows, which T* prompts cut off, are not computed.
        prefixes: keys and values that skip the first norm.
        rows: compute only these rows of the output, in this order; None: all of them.

    Returns:
        float `(batch, rows or tokens, width)`; without context, prefixes and rows the very output of `block`.
    """
    if rows is None and not context and not prefixes:
        return block(states)
    normed_context = [block.norm1(prompt) for prompt in context]
    attended = _attend(cast("Attention", block.attn), block.norm1(states), normed_context, prefixes, rows)
    states = states if rows is None else states[:, rows]
    states = states + block.drop_path1(block.ls1(attended))
    return states + block.drop_path2(block.ls2(block.mlp(block.norm2(states))))


def _attend(
    attention: Attention,
    normed: Tensor,
    context: Sequence[Tensor],
    prefixes: Sequence[Prefix],
    rows: slice | list[int] | None,
) -> Tensor:
    batch = normed.shape[0]
    query, key, value = _project_rows(attention, normed, rows)
    keys, values = [key], [value]
    for prompt in context:
        key, value = _project_keys_values(attention, prompt)
        keys.append(key)
        values.append(value)
    for prefix in prefixes:
        key, value = _prefix_keys_values(attention, prefix)
        keys.append(key)
        values.append(value)
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2), _join(keys, batch), _join(values, batch), scale=attention.scale
    )
    attended = attended.transpose(1, 2).flatten(2)
    return attention.proj_drop(attention.proj(attention.norm(attended)))


def _join(parts: Sequence[Tensor], batch: int) -> Tensor:
    """Keys or values of all parts, `(batch or 1, rows, heads, head width)` each, as `(batch, heads, rows, head width)`.

    Prompts are brought to the precision of the sequence, which mixed precision lowers.
    """
    if len(parts) == 1:
        return parts[0].transpose(1, 2)
    dtype = parts[0].dtype
    return torch.cat([part.to(dtype).expand(batch, -1, -1, -1) for part in parts], dim=1).transpose(1, 2)


def _project_rows(
    attention: Attention, normed: Tensor, rows: slice | list[int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the asked rows, keys and values of all rows, each `(batch, rows, heads, head width)`."""
    if rows is not None:
        query = F.linear(normed[:, rows], *projection_weights(attention, 0, 1))
        query = query.unflatten(-1, (attention.num_heads, attention.head_dim))
        return attention.q_norm(query), *_project_keys_values(attention, normed)
    projected = attention.qkv(normed).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, key, value = projected.unbind(2)
    return attention.q_norm(query), attention.k_norm(key), value


def _project_keys_values(attention: Attention, normed: Tensor) -> tuple[Tensor, Tensor]:
    projected = F.linear(normed, *projection_weights(attention, 1, 3))
    key, value = projected.unflatten(-1, (2, attention.num_heads, attention.head_dim)).unbind(2)
    return attention.k_norm(key), value


def _prefix_keys_values(attention: Attention, prefix: Prefix) -> tuple[Tensor, Tensor]:
    heads = (attention.num_heads, attention.head_dim)
    if prefix.space == "projected":
        return prefix.key.unflatten(-1, heads), prefix.value.unflatten(-1, heads)
    key = F.linear(prefix.key, *projection_weights(attention, 1, 2)).unflatten(-1, heads)
    value = F.linear(prefix.value, *projection_weights(attention, 2, 3)).unflatten(-1, heads)
    return attention.k_norm(key), value


def projection_weights(attention: Attention, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the query (0), key (1) and value (2) thirds `start` to `stop` of the joint projection."""
    width = attention.num_heads * attention.head_dim
    part = slice(start * width, stop * width)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    return weight[part], None if bias is None else bias[part]
