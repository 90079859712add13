"""`AttentionInput`: what a block's attention reads and, for who asks, the keys and values it makes of it."""

from __future__ import annotations

import torch
from timm.layers import Attention
from torch import Tensor


class AttentionInput:
    """The states of one block behind its first norm, as an item of `NormedStream`.

    Args:
        normed: kept as `.normed`, float `(batch, tokens, width)`, without gradient.
        attention: the block's own; None: it will not run, so there are no keys and values to be had.
    """

    def __init__(self, normed: Tensor, attention: Attention | None) -> None:
        self.normed = normed
        self._attention = attention
        self._attended: Tensor | None = None

    @torch.no_grad()
    def keys_and_values(self) -> tuple[Tensor, Tensor] | None:
        """What the attention compares and averages, float `(batch, heads, tokens, head width)` each, or None.

        The attention runs now instead of when the stream goes on: asking before the next item costs no operation. Who
        does not ask keeps no key and no value.
        """
        if self._attention is None:
            return None
        attention, projections = self._attention, []
        # timm's own pass hands out neither; its numbers are read, not computed a second time.
        hook = attention.qkv.register_forward_hook(lambda module, given, result: projections.append(result))
        try:
            self._attended = attention(self.normed)
        finally:
            hook.remove()
        projected = projections[0].unflatten(-1, (3, attention.num_heads, attention.head_dim)).transpose(1, 3)
        return attention.k_norm(projected[:, :, 1]), projected[:, :, 2]

    def take_attended(self) -> Tensor:
        """What the attention makes of the states, float `(batch, tokens, width)`; for the stream, once."""
        assert self._attention is not None
        attended, self._attended = self._attended, None
        return self._attention(self.normed) if attended is None else attended
