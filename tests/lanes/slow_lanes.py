"""Lanes by explicit loops: one image, one lane, one block, one head, one row at a time. Shares no code with ours."""

from __future__ import annotations

import math

import torch


def class_tokens(model, images, inputs):
    """Class tokens `(batch, lanes, width)` after the last block, as the method is defined."""
    with torch.no_grad():
        entering = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        streams = [_stream(model, states) for states in entering]
    rows = [
        torch.stack([_lane(model, stream, inputs, lane) for lane in range(len(inputs.selectors))]) for stream in streams
    ]
    return torch.stack(rows)


def _stream(model, states):
    """What each block's attention sees of one image, `(tokens, width)` a block."""
    seen = []
    for block in model.blocks:
        seen.append(block.norm1(states))
        states = states + block.ls1(_attention(block.attn, seen[-1], seen[-1], None))
        states = states + block.ls2(block.mlp(block.norm2(states)))
    return seen


def _lane(model, stream, inputs, lane):
    class_token, selectors = inputs.class_token[None], inputs.selectors[lane]
    for index, (block, seen) in enumerate(zip(model.blocks, stream, strict=True)):
        prompts = inputs.prompts[index][lane] if index in inputs.prompts else None
        if inputs.merged_tokens:
            merged = _merged(seen, inputs.merged_tokens)
            class_token = _after(block, class_token, _attention(block.attn, seen[:1], merged, prompts))
            continue
        normed_selectors = block.norm1(selectors)
        summaries = normed_selectors
        if index == 0 or inputs.drop_and_replace != "off":
            summaries = _summaries(normed_selectors, seen)
        tokens = torch.cat([block.norm1(class_token), summaries])
        attended = _attention(block.attn, tokens, tokens, prompts)
        class_token = _after(block, class_token, attended[:1])
        if inputs.drop_and_replace == "off":
            selectors = _after(block, selectors, attended[1:])
        elif inputs.drop_and_replace == "released":
            selectors = _after(block, selectors, normed_selectors)
    return class_token[0]


def _after(block, tokens, attended):
    tokens = tokens + block.ls1(attended)
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))


def _weights(scores):
    """Softmax of a list of numbers."""
    largest = max(float(score.detach()) for score in scores)
    powers = [torch.exp(score - largest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def _summaries(selectors, seen):
    rows = [
        sum(
            weight * token
            for weight, token in zip(
                _weights([selector @ token / math.sqrt(len(token)) for token in seen]), seen, strict=True
            )
        )
        for selector in selectors
    ]
    return torch.stack(rows) if rows else selectors


def _attention(attention, asking, answering, prompts):
    """Heads one after the other; prompts are `(2, prompts, heads, head width)` keys and values as they are."""
    width, head_width = attention.num_heads * attention.head_dim, attention.head_dim
    bias = torch.zeros(3 * width, dtype=asking.dtype) if attention.qkv.bias is None else attention.qkv.bias
    outputs = []
    for head in range(attention.num_heads):
        query, key, value = (
            tokens @ attention.qkv.weight[start : start + head_width].T + bias[start : start + head_width]
            for part, tokens in enumerate((asking, answering, answering))
            for start in [part * width + head * head_width]
        )
        if prompts is not None:
            key, value = torch.cat([key, prompts[0, :, head]]), torch.cat([value, prompts[1, :, head]])
        scores = query @ key.T / math.sqrt(head_width)
        powers = torch.exp(scores - scores.detach().max(dim=1, keepdim=True).values)
        outputs.append((powers / powers.sum(dim=1, keepdim=True)) @ value)
    return attention.proj(attention.norm(torch.cat(outputs, dim=1)))


def _merged(tokens, limit):
    """At most `limit` tokens: even places but the first go to the most similar odd place, which takes the mean."""
    rows = list(tokens)
    while len(rows) > limit:
        groups = [[row] for row in rows[1::2]]
        for row in rows[2::2]:
            alike = [float(row @ other[0] / row.norm() / other[0].norm()) for other in groups]
            groups[alike.index(max(alike))].append(row)
        rows = [rows[0], *(sum(group) / len(group) for group in groups)]
    return torch.stack(rows)
