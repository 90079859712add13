"""Token merging of the frozen stream, as the ablation of MULTI-LANE uses it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def merge_tokens(tokens: Tensor, limit: int) -> Tensor:
    """Merge similar tokens until at most `limit` are left; the first one, the class token, is never merged away.

    In each round every token at an even position, the first one left out, goes to the most similar one (cosine) at an
    odd position, which becomes the plain mean of itself and its arrivals. N tokens become 1 + N // 2, so `limit` is an
    upper bound: 197 -> 99 -> 50 -> 26. Sizes are forgotten between rounds, as released.

    Args:
        tokens: float `(batch, tokens, width)`.
        limit: at least 2.

    Returns:
        float `(batch, at most limit, width)`.
    """
    while tokens.shape[1] > limit:
        senders, receivers = tokens[:, ::2], tokens[:, 1::2]
        similarity = F.normalize(senders, dim=-1) @ F.normalize(receivers, dim=-1).transpose(1, 2)
        target = similarity[:, 1:].argmax(-1)
        arrivals = senders[:, 1:]
        sums = receivers.scatter_add(1, target[..., None].expand_as(arrivals), arrivals)
        counts = torch.ones_like(receivers[..., 0]).scatter_add(1, target, torch.ones_like(arrivals[..., 0]))
        tokens = torch.cat([senders[:, :1], sums / counts[..., None]], dim=1)
    return tokens
