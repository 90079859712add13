"""Which heads of the last block a class needs: blurred one after another, greedily (Prompt-CAM, CVPR 2025)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def rank_heads(probability: Callable[[Tensor], Tensor], batch: int, heads: int) -> Tensor:
    """The heads of each image in the order in which they can be spared.

    In every step the head is blurred, that is, made to attend evenly, that leaves the class the most probable; it stays
    blurred. So the last head of a row is the one that the class needs most. Takes heads (heads + 1) / 2 evaluations.

    Args:
        probability: blurred heads, bool `(batch, heads)`, to the probability of the class, float `(batch,)`.
        batch: images.
        heads: of the block.

    Returns:
        int64 `(batch, heads)` on the CPU; equal probabilities go by number.
    """
    order = torch.empty(batch, heads, dtype=torch.int64)
    blurred = torch.zeros(batch, heads, dtype=torch.bool)
    images = torch.arange(batch)
    for step in range(heads):
        left = torch.full((batch, heads), float("-inf"), dtype=torch.float64)
        for head in range(heads):
            candidate = ~blurred[:, head]
            if bool(candidate.any()):
                tried = blurred.clone()
                tried[:, head] = True
                left[candidate, head] = probability(tried).double().cpu()[candidate]
        order[:, step] = left.argmax(1)
        blurred[images, order[:, step]] = True
    return order
