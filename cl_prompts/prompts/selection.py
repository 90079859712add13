"""Choosing prompts by query and key: by distance, balanced by usage or not, or by the vote of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def key_similarity(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine of every query with every key; gradients reach both.

    Args:
        query: (batch, width).
        keys: (..., pool, width); several pools side by side give one table each.

    Returns:
        (batch, ..., pool) in [-1, 1], in full precision also under autocast. Vectors shorter than 1e-6 count as if
        they were that long, as in the codes of L2P and DualPrompt.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, keys = query.to(keys.dtype), F.normalize(keys, dim=-1, eps=1e-6)
        return torch.einsum("bd,...d->b...", F.normalize(query, dim=-1, eps=1e-6), keys)


@torch.no_grad()
def select_prompts(distance: Tensor, usage: Tensor | None, size: int) -> Tensor:
    """The `size` prompts with the smallest distance, or smallest distance times (usage + 1), of each image.

    Args:
        distance: (batch, pool), query to key.
        usage: (pool,) counts that make often-used prompts look farther (MVP's routing); None compares distance alone.
        size: prompts chosen.

    Returns:
        (batch, size) int64, nearest first. Not differentiable.
    """
    score = distance if usage is None else distance * (usage + 1)
    return torch.topk(score, size, dim=-1, largest=False, sorted=True).indices


@torch.no_grad()
def batch_vote(choice: Tensor, pool_size: int) -> Tensor:
    """What the whole batch chose most often, for every image of it (L2P and DualPrompt as released).

    Args:
        choice: (batch, size) int64, the prompts each image would take.
        pool_size: prompts there are.

    Returns:
        (batch, size) int64, equal rows, the most frequent first. Ties at the border fall as `torch.topk` has it.
    """
    chosen = choice.flatten()
    # Not `bincount`: on a GPU it waits for the largest value.
    counts = torch.zeros(pool_size, device=choice.device).index_add(0, chosen, torch.ones_like(chosen).float())
    return torch.topk(counts, choice.shape[1]).indices.expand(len(choice), -1)
