"""Choosing prompts by distance between query and key, balanced by usage or not."""

from __future__ import annotations

import torch
from torch import Tensor


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
