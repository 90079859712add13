"""A pool of prompts in every block from which each token of that block takes its own (TCPA, ICML 2025)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_prompts.prompts.selection import key_similarity, select_prompts


class Picks(NamedTuple):
    """What the tokens of a block took.

    Attributes:
        choice: int64 `(batch, tokens, size)`, nearest first.
        distance: float, likewise: 1 - cosine of token and key, with gradient to the keys alone.
        visible: bool `(batch, tokens, pool * length)`, which prompt tokens a token sees.
    """

    choice: Tensor
    distance: Tensor
    visible: Tensor


class TokenPool(nn.Module):
    """Prompts and keys of a pool, other ones in every block; all start uniform in -1..1.

    Trained are `prompts` (blocks, pool, length, width) and `keys` (blocks, pool, width).

    Args:
        blocks: how many blocks have such a pool.
        pool_size: prompts in each.
        length: tokens of a prompt.
        size: prompts that a token takes.
        width: of a token.
        generator: source of the initial values.
    """

    def __init__(
        self, blocks: int, pool_size: int, length: int, size: int, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.size = size

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).uniform_(-1, 1, generator=generator))

        self.prompts = uniform(blocks, pool_size, length, width)
        self.keys = uniform(blocks, pool_size, width)

    def pick(self, block: int, tokens: Tensor) -> Picks:
        """What `tokens` (batch, tokens, width) take in `block`, of the blocks with a pool, by their states there."""
        batch, (pool, length) = len(tokens), self.prompts.shape[1:3]
        distance = 1 - key_similarity(tokens.detach().flatten(0, 1), self.keys[block])
        choice = select_prompts(distance, None, self.size)
        visible = torch.zeros(distance.shape, dtype=torch.bool, device=tokens.device).scatter_(1, choice, True)
        return Picks(
            choice.unflatten(0, (batch, -1)),
            distance.gather(1, choice).unflatten(0, (batch, -1)),
            visible.reshape(batch, -1, pool, 1).expand(-1, -1, -1, length).flatten(2),
        )
