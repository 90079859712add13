"""A second, slow Vision Transformer with prompts: one sample, one head, one row at a time. Shares no code with ours.

Prompts are placed in front here (behind the prefix tokens), ours are behind the sequence: without positions the place
must not matter.
"""

from __future__ import annotations

import torch

from cl_prompts.backbones import TokenPrompts


def features(model, images, insertions):
    """Features `(batch, width)` of the prompted model, by explicit loops."""
    return model.forward_head(model.norm(tokens_after_blocks(model, images, insertions)), pre_logits=True)


def tokens_after_blocks(model, images, insertions):
    """States of the original tokens after the last block, `(batch, tokens, width)`."""
    entering = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    return torch.stack([_one_sample(model, entering[i], insertions, i) for i in range(len(images))])


def _one_sample(model, states, insertions, sample):
    front = model.num_prefix_tokens
    kept = 0
    for index, block in enumerate(model.blocks):
        cut, keys, values = [], [], []
        for insertion in insertions.get(index, ()):
            if not isinstance(insertion, TokenPrompts):
                key, value = _row(insertion.key, sample), _row(insertion.value, sample)
                keys.append(_input_space(block.attn, key, 1) if insertion.space == "input" else _heads(block, key))
                values.append(
                    _input_space(block.attn, value, 2) if insertion.space == "input" else _heads(block, value)
                )
            elif insertion.keep:
                prompt = _row(insertion.tokens, sample)
                states = torch.cat([states[:front], prompt, states[front:]])
                kept += len(prompt)
            else:
                cut.append(_row(insertion.tokens, sample))
        joined = torch.cat([*cut, states])
        joined = joined + block.ls1(_attention(block.attn, block.norm1(joined), keys, values))
        joined = joined + block.ls2(block.mlp(block.norm2(joined)))
        states = joined[sum(len(prompt) for prompt in cut) :]
    return torch.cat([states[:front], states[front + kept :]])


def _row(prompts, sample):
    return prompts[sample if len(prompts) > 1 else 0]


def _heads(block, rows):
    """`(heads, rows, head width)`, head 0 first in the width."""
    width = block.attn.head_dim
    return torch.stack([rows[:, head * width : (head + 1) * width] for head in range(block.attn.num_heads)])


def _input_space(attention, rows, part):
    """Keys (part 1) or values (part 2) of rows that pass the block's own projection."""
    width = attention.num_heads * attention.head_dim
    weight = attention.qkv.weight[part * width : (part + 1) * width]
    projected = rows @ weight.T
    if attention.qkv.bias is not None:
        projected = projected + attention.qkv.bias[part * width : (part + 1) * width]
    heads = [projected[:, h * attention.head_dim : (h + 1) * attention.head_dim] for h in range(attention.num_heads)]
    return torch.stack([attention.k_norm(head) if part == 1 else head for head in heads])


def _attention(attention, normed, extra_keys, extra_values):
    outputs = []
    for row in range(len(normed)):
        heads = []
        for head in range(attention.num_heads):
            width = attention.num_heads * attention.head_dim
            rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            bias = attention.qkv.bias
            part = [
                normed @ attention.qkv.weight[p * width : (p + 1) * width][rows].T
                + (0 if bias is None else bias[p * width : (p + 1) * width][rows])
                for p in range(3)
            ]
            query = attention.q_norm(part[0])[row]
            keys = torch.cat([*(extra[head] for extra in extra_keys), attention.k_norm(part[1])])
            values = torch.cat([*(extra[head] for extra in extra_values), part[2]])
            weights = torch.exp(keys @ query / attention.head_dim**0.5)
            heads.append((weights[:, None] * values).sum(0) / weights.sum())
        outputs.append(torch.cat(heads))
    return attention.proj(attention.norm(torch.stack(outputs)))
