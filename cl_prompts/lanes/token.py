"""Lanes computed as they are defined: every token of every lane through every block, one lane after the other.

Kept as the oracle of the fast form and as `strategy.form=token`. Source: De Min et al., CoLLAs 2024, as released.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from cl_prompts.backbones.attention import projection_weights
from cl_prompts.backbones.attention_input import AttentionInput
from cl_prompts.lanes.inputs import DROP_AND_REPLACE, LaneInputs
from cl_prompts.lanes.merging import merge_tokens


def token_class_tokens(blocks: Sequence[Block], stream: Iterable[AttentionInput], inputs: LaneInputs) -> Tensor:
    """The class token of each lane after the last block, before the final norm, float `(batch, lanes, width)`.

    Args:
        blocks: the frozen blocks.
        stream: what each block's attention reads: `FrozenViT.normed_stream`.
        inputs: the lanes.
    """
    states = [seen.normed for seen in stream]
    lanes = [_one_lane(blocks, states, inputs, lane) for lane in range(inputs.lanes)]
    return torch.stack(lanes, dim=1)


def _one_lane(blocks: Sequence[Block], stream: Sequence[Tensor], inputs: LaneInputs, lane: int) -> Tensor:
    batch = stream[0].shape[0]
    class_token = inputs.class_token.expand(batch, 1, -1)
    selectors = inputs.selectors[lane].expand(batch, -1, -1)
    keeps_summaries = inputs.drop_and_replace == "off"
    for index, (block, seen) in enumerate(zip(blocks, stream, strict=True)):
        prompts = inputs.prompts[index][lane] if index in inputs.prompts else None
        if inputs.merged_tokens:
            merged = merge_tokens(seen, inputs.merged_tokens)
            class_token = _finish(block, class_token, _attend(block, seen[:, :1], merged, prompts))
            continue
        normed = block.norm1(class_token)
        normed_selectors = block.norm1(selectors)
        reads_image = index == 0 or not keeps_summaries
        summaries = _summarise(normed_selectors, seen) if reads_image else normed_selectors
        tokens = torch.cat([normed, summaries], dim=1)
        attended = _attend(block, tokens, tokens, prompts)
        class_token = _finish(block, class_token, attended[:, :1])
        if keeps_summaries:
            selectors = _finish(block, selectors, attended[:, 1:])
        else:
            selectors = DROP_AND_REPLACE[inputs.drop_and_replace](block, selectors, normed_selectors)
    return class_token[:, 0]


def _summarise(selectors: Tensor, seen: Tensor) -> Tensor:
    weights = torch.softmax(selectors @ seen.transpose(1, 2) * seen.shape[-1] ** -0.5, dim=-1)
    return weights.to(seen.dtype) @ seen


def _finish(block: Block, tokens: Tensor, attended: Tensor) -> Tensor:
    tokens = tokens + block.ls1(attended)
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


def _attend(block: Block, asking: Tensor, answering: Tensor, prompts: Tensor | None) -> Tensor:
    """Multi-head attention of `asking` over prompts and `answering`, both normed, `(batch, tokens, width)`."""
    attention = cast("Attention", block.attn)

    def heads(tokens: Tensor, part: int) -> Tensor:
        projected = F.linear(tokens, *projection_weights(attention, part, part + 1))
        return projected.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)

    query = attention.q_norm(heads(asking, 0))
    key, value = attention.k_norm(heads(answering, 1)), heads(answering, 2)
    if prompts is not None:
        batch = asking.shape[0]
        key = torch.cat([prompts[0].to(key.dtype).transpose(0, 1).expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([prompts[1].to(value.dtype).transpose(0, 1).expand(batch, -1, -1, -1), value], dim=2)
    weights = torch.softmax(query @ key.transpose(2, 3) * attention.scale, dim=-1)
    attended = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
    return attention.proj(attention.norm(attended))
