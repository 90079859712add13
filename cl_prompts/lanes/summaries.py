"""Summaries that are never formed: how their scores and their values follow from the tokens they are means of.

A summary is a mean of the stream's tokens by weights A, whose rows sum to one, and key and value are linear in it. So
projection and mean change places, in one of two ways of equal results:

* `Projected`: keys and values of the tokens are there, as the stream's own attention computed them; A averages them.
* `Folded`: they are not. The query, folded into the key weights, asks the tokens themselves, and the value weights are
  applied to what each head has averaged: 2 D^2 + 2 (H - 1) N D more multiplications a lane, block and image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from timm.layers import Attention
from torch import Tensor

from cl_prompts.backbones.attention import projection_weights
from cl_prompts.backbones.attention_input import AttentionInput


class Summaries(Protocol):
    """The summaries of one block; `averaging` is A, float `(batch, lanes, summaries, tokens)`."""

    def scores(self, query: Tensor, averaging: Tensor) -> Tensor:
        """Products of keys with the scaled query `(batch or 1, lanes or 1, heads, head width)`.

        Returns float `(batch, lanes, heads, summaries)`.
        """

    def values(self, weights: Tensor, averaging: Tensor) -> Tensor:
        """Values summed by `weights` `(batch, lanes, heads, summaries)`: `(batch, lanes, heads, head width)`."""


def summaries_of(attention: Attention, seen: AttentionInput) -> Summaries:
    """The cheaper way: without a gradient the stream's own keys and values, where it has any.

    With one, keys and values of every block would stay in memory for the backward pass.
    """
    known = None if torch.is_grad_enabled() else seen.keys_and_values()
    return Folded(attention, seen.normed) if known is None else Projected(*known)


@dataclass(frozen=True)
class Projected:
    """From keys and values of the tokens, `(batch, heads, tokens, head width)` each; biases are in them."""

    keys: Tensor
    values_of_tokens: Tensor

    def scores(self, query: Tensor, averaging: Tensor) -> Tensor:
        """See `Summaries`."""
        # The product copies strided keys; copying before transposing takes half the time.
        of_tokens = query.to(self.keys.dtype).transpose(1, 2) @ self.keys.contiguous().transpose(2, 3)
        return of_tokens.transpose(1, 2) @ averaging.transpose(2, 3).to(of_tokens.dtype)

    def values(self, weights: Tensor, averaging: Tensor) -> Tensor:
        """See `Summaries`."""
        of_tokens = (weights @ averaging).transpose(1, 2)
        return (of_tokens.to(self.values_of_tokens.dtype) @ self.values_of_tokens).transpose(1, 2)


@dataclass(frozen=True)
class Folded:
    """From the normed tokens themselves, `(batch, tokens, width)`."""

    attention: Attention
    tokens: Tensor

    def scores(self, query: Tensor, averaging: Tensor) -> Tensor:
        """See `Summaries`."""
        weight, bias = self._projection(1)
        folded = _each_head(query, weight)
        of_tokens = folded.flatten(1, 2).to(self.tokens.dtype) @ self.tokens.transpose(1, 2)
        scores = of_tokens.unflatten(1, folded.shape[1:3]) @ averaging.transpose(2, 3).to(of_tokens.dtype)
        return scores if bias is None else scores + (query * bias).sum(-1, keepdim=True)

    def values(self, weights: Tensor, averaging: Tensor) -> Tensor:
        """See `Summaries`."""
        weight, bias = self._projection(2)
        of_tokens = weights @ averaging
        averaged = (of_tokens.flatten(1, 2) @ self.tokens.to(of_tokens.dtype)).unflatten(1, of_tokens.shape[1:3])
        values = _each_head(averaged, weight.transpose(1, 2))
        return values if bias is None else values + weights.sum(-1, keepdim=True) * bias

    def _projection(self, part: int) -> tuple[Tensor, Tensor | None]:
        heads = (self.attention.num_heads, self.attention.head_dim)
        weight, bias = projection_weights(self.attention, part, part + 1)
        return weight.view(*heads, -1), None if bias is None else bias.view(heads)


def _each_head(vectors: Tensor, matrices: Tensor) -> Tensor:
    """A matrix a head: `(batch, lanes, heads, a)` times `(heads, a, b)` gives `(batch, lanes, heads, b)`."""
    batch, lanes, heads, width = vectors.shape
    rows = vectors.permute(2, 0, 1, 3).reshape(heads, batch * lanes, width)
    return (rows @ matrices.to(rows.dtype)).unflatten(1, (batch, lanes)).permute(1, 2, 0, 3)
