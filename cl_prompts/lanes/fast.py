"""Lanes in their exact fast form: all lanes in one call, nothing computed whose result is dropped.

Four facts make it exact. The stream ignores the lanes. Only a lane's class token reaches the head, so summaries serve
as keys and values alone. A summary is a weighted mean of the stream's tokens and its key is linear in it, so projection
and mean change places: the class token's query asks every token of the stream once a head, the selectors' weights A
average the answers into the scores of the summaries, and the value is (p A) V. No summary is formed. The path of the
selectors contains no image, so it is computed once for all of them.

Evaluation reads the keys and values that the stream's own attention computes. A lane then costs
12 D^2 + S N D + 2 N D + 2 H S N + 2 (1 + K) D multiplications a block and image. In training, and in the last block,
whose attention the stream never runs, weights are folded into query and value instead (`summaries`), at
14 D^2 + S N D + 2 H N D + 2 H S N + 2 (1 + K) D. Of the last block of the stream only the first norm is left. Where
keys are normalised (`qk_norm`) scores are not linear: use the token form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cl_prompts.backbones.attention import run_block
from cl_prompts.backbones.attention_input import AttentionInput
from cl_prompts.backbones.insertions import Prefix
from cl_prompts.errors import BackboneError
from cl_prompts.lanes.inputs import DROP_AND_REPLACE, LaneInputs
from cl_prompts.lanes.merging import merge_tokens
from cl_prompts.lanes.summaries import summaries_of


def fast_class_tokens(
    blocks: Sequence[Block], stream: Iterable[AttentionInput], inputs: LaneInputs, path: Sequence[Tensor] | None = None
) -> Tensor:
    """The class token of each lane after the last block, before the final norm, float `(batch, lanes, width)`.

    The stream is read block by block and nothing of it is kept, so memory does not grow with the depth.

    Args:
        blocks: the frozen blocks.
        stream: what each block's attention reads: `FrozenViT.normed_stream`.
        inputs: the lanes.
        path: the result of `selector_path`, where it is known already.

    Raises:
        BackboneError: a backbone that normalises its keys.
    """
    if any(not isinstance(cast("Attention", block.attn).k_norm, nn.Identity) for block in blocks):
        raise BackboneError("this backbone normalises its keys, where the fast form is not exact; use form=token")
    if inputs.merged_tokens:
        return _through_merged_tokens(blocks, stream, inputs)
    if inputs.drop_and_replace == "off" or not inputs.num_selectors:
        return _through_tokens(blocks, stream, inputs)
    path = selector_path(blocks, inputs) if path is None else path
    class_token = inputs.class_token[None, None]
    for index, (block, seen) in enumerate(zip(blocks, stream, strict=True)):
        attended = _attend_summaries(block, class_token, path[index], seen, inputs.prompts.get(index))
        class_token = _finish(block, class_token, attended)
    return class_token


def selector_path(blocks: Sequence[Block], inputs: LaneInputs) -> list[Tensor]:
    """The normed selectors that each block reads with, one `(lanes, selectors, width)` a block; no image is in it."""
    move = DROP_AND_REPLACE[inputs.drop_and_replace]
    selectors, path = inputs.selectors, []
    for index, block in enumerate(blocks):
        path.append(block.norm1(selectors))
        if index < len(blocks) - 1:
            selectors = move(block, selectors, path[-1])
    return path


def selector_weights(selectors: Tensor, seen: Tensor) -> Tensor:
    """Attention of normed selectors over the tokens of the stream, float `(batch, lanes, selectors, tokens)`."""
    # The scale goes to the side without images: a pass over all weights less.
    flat = selectors.flatten(0, 1).to(seen.dtype) * seen.shape[-1] ** -0.5
    return _softmax(flat @ seen.transpose(1, 2)).unflatten(1, selectors.shape[:2])


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, in float32 at least: mixed precision gives scores of fewer digits."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _summarise(selectors: Tensor, seen: Tensor) -> Tensor:
    """What the selectors see: weighted means of the stream's tokens, `(batch, lanes, selectors, width)`."""
    weights = selector_weights(selectors, seen).flatten(1, 2)
    return (weights.to(seen.dtype) @ seen).unflatten(1, selectors.shape[:2])


def _attend_summaries(
    block: Block, class_token: Tensor, selectors: Tensor, seen: AttentionInput, prompts: Tensor | None
) -> Tensor:
    """Attention output for class tokens `(batch or 1, lanes or 1, width)`, `(batch, lanes, width)`."""
    attention = cast("Attention", block.attn)
    query, key, value = _project(attention, block.norm1(class_token))
    query = query * attention.scale
    averaging = selector_weights(selectors, seen.normed).to(seen.normed.dtype)
    batch, lanes = averaging.shape[:2]

    summaries = summaries_of(attention, seen)
    scores = [(query * key).sum(-1, keepdim=True).expand(batch, lanes, -1, -1), summaries.scores(query, averaging)]
    if prompts is not None:
        every = query.expand(-1, lanes, -1, -1)
        of_prompts = torch.einsum("bthd,tkhd->bthk", every, prompts[:, 0].to(query.dtype))
        scores.append(of_prompts.expand(batch, -1, -1, -1))
    weights = _softmax(torch.cat(scores, dim=-1)).to(averaging.dtype)
    own, read, prompted = weights.tensor_split([1, 1 + selectors.shape[1]], dim=-1)

    attended = own * value + summaries.values(read, averaging)
    if prompts is not None:
        attended = attended + torch.einsum("bthk,tkhd->bthd", prompted, prompts[:, 1].to(prompted.dtype))
    return attention.proj(attention.norm(attended.flatten(2)))


def _project(attention: Attention, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    projected = attention.qkv(normed).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, key, value = projected.unbind(-3)
    return attention.q_norm(query), key, value


def _finish(block: Block, tokens: Tensor, attended: Tensor) -> Tensor:
    tokens = tokens + block.ls1(attended)
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


def _through_tokens(blocks: Sequence[Block], stream: Iterable[AttentionInput], inputs: LaneInputs) -> Tensor:
    """Without drop-and-replace: the image enters in the first block, then each lane is a short sequence of its own.

    Without selectors no image enters at all: one image is computed and stands for all.
    """
    first = next(iter(stream)).normed
    lanes, selectors, width = inputs.selectors.shape
    batch = first.shape[0] if selectors else 1
    start = inputs.class_token.expand(batch, lanes, 1, width)
    tokens = torch.cat([start, inputs.selectors.expand(batch, -1, -1, -1)], dim=2)
    if selectors:
        summaries = _summarise(blocks[0].norm1(inputs.selectors), first)
        normed = torch.cat([blocks[0].norm1(start).to(summaries.dtype), summaries], dim=2)
        attended = _attend_sequence(blocks[0], normed, inputs.prompts.get(0))
        tokens = _finish(blocks[0], tokens, attended)
    states = tokens.flatten(0, 1)
    for index in range(1 if selectors else 0, len(blocks)):
        rows = slice(1) if index == len(blocks) - 1 else None
        states = run_block(blocks[index], states, prefixes=_prefixes(inputs.prompts.get(index), batch), rows=rows)
    class_tokens = states[:, 0].unflatten(0, (batch, lanes))
    return class_tokens.expand(first.shape[0], -1, -1)


def _attend_sequence(block: Block, normed: Tensor, prompts: Tensor | None) -> Tensor:
    """Self-attention of normed `(batch, lanes, tokens, width)` with each lane's prompts in front, same shape."""
    attention = cast("Attention", block.attn)
    query, key, value = (part.flatten(0, 1).transpose(1, 2) for part in _project(attention, normed))
    if prompts is not None:
        every = prompts.to(key.dtype).repeat(normed.shape[0], 1, 1, 1, 1).transpose(2, 3)
        key, value = torch.cat([every[:, 0], key], dim=2), torch.cat([every[:, 1], value], dim=2)
    attended = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    attended = attended.transpose(1, 2).flatten(2).unflatten(0, normed.shape[:2])
    return attention.proj(attention.norm(attended))


def _prefixes(prompts: Tensor | None, batch: int) -> list[Prefix]:
    """A block's prompts for sequences that run through images first and lanes second."""
    if prompts is None:
        return []
    every = prompts.flatten(3).repeat(batch, 1, 1, 1)
    return [Prefix(every[:, 0], every[:, 1], space="projected")]


def _through_merged_tokens(blocks: Sequence[Block], stream: Iterable[AttentionInput], inputs: LaneInputs) -> Tensor:
    """Token merging: the stream's class token asks, prompts and merged tokens answer; lanes share all but prompts."""
    class_token = inputs.class_token[None, None]
    for index, (block, seen) in enumerate(zip(blocks, stream, strict=True)):
        attention = cast("Attention", block.attn)
        with torch.no_grad():
            merged = merge_tokens(seen.normed, inputs.merged_tokens)
            query = _project(attention, seen.normed[:, :1])[0][:, 0]
            _, key, value = _project(attention, merged)
            of_merged = torch.einsum("bhd,bnhd->bhn", query, key)[:, None]
        prompts = inputs.prompts.get(index)
        if prompts is None:
            weights = _softmax(of_merged * attention.scale).to(value.dtype)
            attended = torch.einsum("bthn,bnhd->bthd", weights, value)
        else:
            of_prompts = torch.einsum("bhd,tkhd->bthk", query, prompts[:, 0].to(query.dtype))
            scores = torch.cat([of_merged.expand(-1, inputs.lanes, -1, -1), of_prompts], dim=-1)
            weights = _softmax(scores * attention.scale).to(value.dtype)
            read, prompted = weights.tensor_split([of_merged.shape[-1]], dim=-1)
            attended = torch.einsum("bthn,bnhd->bthd", read, value)
            attended = attended + torch.einsum("bthk,tkhd->bthd", prompted, prompts[:, 1].to(value.dtype))
        class_token = _finish(block, class_token, attention.proj(attention.norm(attended.flatten(2))))
    return class_token.expand(-1, inputs.lanes, -1)
