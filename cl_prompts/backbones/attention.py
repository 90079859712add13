"""One frozen timm `Block` whose attention also sees prompts: pure functions, no state, no change to the block.

Every function computes what the stock block would compute on a longer sequence, but only for the rows that are read:
a row that is cut off after the block, or never read by the head, still gives keys and values and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from cl_prompts.backbones.insertions import Prefix


class Routed(NamedTuple):
    """Token prompts that some rows see: what `RoutedPrompts` are once their route is known.

    Attributes:
        tokens: `(batch or 1, prompts, width)`.
        visible: bool `(batch, rows, prompts)`, rows as they are computed.
        before: unseen prompts are left out before the softmax; otherwise behind it, with no new normalisation.
    """

    tokens: Tensor
    visible: Tensor
    before: bool


def run_block(
    block: Block,
    states: Tensor,
    *,
    context: Sequence[Tensor] = (),
    prefixes: Sequence[Prefix] = (),
    routed: Sequence[Routed] = (),
    rows: slice | list[int] | None = None,
) -> Tensor:
    """A frozen block on `states` with extra keys and values.

    Args:
        block: the stock block; used as it is, never changed.
        states: token states, float `(batch, tokens, width)`.
        context: token prompts `(batch or 1, prompts, width)` that pass the block's first norm and give keys and
            values; their own output rows, which T* prompts cut off, are not computed.
        prefixes: keys and values that skip the first norm.
        routed: like `context`, but not every row sees every prompt.
        rows: compute only these rows of the output, in this order; None: all of them.

    Returns:
        float `(batch, rows or tokens, width)`; without context, prefixes, routed and rows the very output of
        `block`.
    """
    if rows is None and not context and not prefixes and not routed:
        return block(states)
    normed_context = [block.norm1(prompt) for prompt in context]
    normed_routed = [prompts._replace(tokens=block.norm1(prompts.tokens)) for prompts in routed]
    attention = cast("Attention", block.attn)
    attended = _attend(attention, block.norm1(states), normed_context, prefixes, normed_routed, rows)
    states = states if rows is None else states[:, rows]
    states = states + block.drop_path1(block.ls1(attended))
    return states + block.drop_path2(block.ls2(block.mlp(block.norm2(states))))


def _attend(
    attention: Attention,
    normed: Tensor,
    context: Sequence[Tensor],
    prefixes: Sequence[Prefix],
    routed: Sequence[Routed],
    rows: slice | list[int] | None,
) -> Tensor:
    batch = normed.shape[0]
    query, key, value = _project_rows(attention, normed, rows)
    parts = [(key, value), *(_project_keys_values(attention, prompt) for prompt in context)]
    parts += [_prefix_keys_values(attention, prefix) for prefix in prefixes]
    parts += [_project_keys_values(attention, prompts.tokens) for prompts in routed]
    key, value = (_join(part, batch) for part in zip(*parts, strict=True))
    query = query.transpose(1, 2)
    if routed:
        attended = _attend_routed(query, key, value, routed, attention.scale)
    else:
        attended = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    attended = attended.transpose(1, 2).flatten(2)
    return attention.proj_drop(attention.proj(attention.norm(attended)))


def _attend_routed(query: Tensor, key: Tensor, value: Tensor, routed: Sequence[Routed], scale: float) -> Tensor:
    """Attention `(batch, heads, rows, head width)` in which the last keys are those of routed prompts."""
    before, after = (_visible(query, key, routed, before=before) for before in (True, False))
    if all(prompts.before for prompts in routed):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=before, scale=scale)
    scores = query @ key.transpose(-1, -2) * scale
    if any(prompts.before for prompts in routed):
        scores = scores.masked_fill(~before, float("-inf"))
    # In float32 at least: mixed precision gives scores of fewer digits.
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights.masked_fill(~after, 0.0).to(value.dtype) @ value


def _visible(query: Tensor, key: Tensor, routed: Sequence[Routed], *, before: bool) -> Tensor:
    """What this side of the softmax lets through, bool `(batch, 1, rows, keys)`: all but prompts routed here."""
    visible = [prompts.visible if prompts.before == before else torch.ones_like(prompts.visible) for prompts in routed]
    others = key.shape[2] - sum(prompts.visible.shape[2] for prompts in routed)
    everything = visible[0].new_ones(len(query), query.shape[2], others)
    return torch.cat([everything, *visible], dim=-1)[:, None]


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
