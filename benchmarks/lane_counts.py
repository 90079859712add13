"""Multiply-accumulates of MULTI-LANE for one image, forward, in the forms it can be computed in.

Products of matrices and vectors are counted, nothing else; what no image enters (the selectors' path) is left out where
it is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes that the counts depend on; `tokens` are those of the stream, the class token included."""

    width: int
    depth: int
    heads: int
    tokens: int = 197
    patch: int = 16
    selectors: int = 20
    prompts: int = 20
    prompt_layers: int = 5
    classes: int = 80

    @property
    def embedding(self) -> int:
        """Of the patches."""
        return (self.tokens - 1) * 3 * self.patch**2 * self.width

    @property
    def block(self) -> int:
        """A frozen block on the stream."""
        return 12 * self.tokens * self.width**2 + 2 * self.tokens**2 * self.width

    @property
    def head(self) -> int:
        """Every class read once."""
        return self.width * self.classes

    def prompts_of(self, block: int) -> int:
        """Prompts that a lane has in this block."""
        return self.prompts if block < self.prompt_layers else 0

    def over_blocks(self, cost: Callable[[int], int]) -> int:
        """Sum over the blocks of `cost(block)`."""
        return sum(cost(block) for block in range(self.depth))


def bare(shape: Shape) -> int:
    """The un-prompted backbone, all tokens in every block."""
    return shape.embedding + shape.depth * shape.block


def _every_token(shape: Shape) -> int:
    """A lane whose selectors and summaries pass through every block as tokens."""
    width, tokens, selectors = shape.width, shape.tokens, shape.selectors
    return shape.over_blocks(
        lambda block: (
            12 * (1 + selectors) * width**2
            + 2 * selectors * tokens * width
            + 2 * (1 + selectors) * (1 + selectors + shape.prompts_of(block)) * width
        )
    )


def official(shape: Shape, lanes: int) -> int:
    """The released code: every token of every lane, and all classes read from every lane."""
    return bare(shape) + lanes * (_every_token(shape) + shape.head)


def token_as_built(shape: Shape, lanes: int) -> int:
    """`form=token`: as released, without the last block of the stream, and each class read from its own lane."""
    return bare(shape) - shape.block + lanes * _every_token(shape) + shape.head


def token(shape: Shape, lanes: int) -> int:
    """Summaries as tokens, computed no further than what is read: the class token's query, projection and MLP."""
    width, tokens, selectors = shape.width, shape.tokens, shape.selectors
    lane = shape.over_blocks(
        lambda block: (
            (12 + 2 * selectors) * width**2
            + 2 * selectors * tokens * width
            + 2 * (1 + selectors + shape.prompts_of(block)) * width
        )
    )
    return bare(shape) - shape.block + lanes * lane + shape.head


def _averaging_keys_and_values(shape: Shape, lanes: int, block: int) -> int:
    """All lanes in one block, keys and values of the stream being there."""
    width, tokens, selectors = shape.width, shape.tokens, shape.selectors
    lane = (
        9 * width**2
        + selectors * tokens * width
        + tokens * width
        + 2 * shape.heads * selectors * tokens
        + 2 * (1 + shape.prompts_of(block)) * width
    )
    # Class tokens are the same for all lanes in the first block, and then contain no image.
    return lanes * lane + (tokens * width if block == 0 else lanes * (3 * width**2 + tokens * width))


def _folding_weights(shape: Shape, lanes: int, block: int) -> int:
    """All lanes in one block, the tokens of the stream averaged, projections at the class token."""
    width, tokens, selectors, heads = shape.width, shape.tokens, shape.selectors, shape.heads
    lane = (
        10 * width**2
        + selectors * tokens * width
        + heads * tokens * width
        + 2 * heads * selectors * tokens
        + 2 * (1 + shape.prompts_of(block)) * width
    )
    query = heads * tokens * width
    return lanes * lane + (query if block == 0 else lanes * (4 * width**2 + query))


def fast(shape: Shape, lanes: int) -> int:
    """Keys and values of the stream averaged in every block, also in the last, where they are computed for it."""
    last = 2 * shape.tokens * shape.width**2
    of_lanes = shape.over_blocks(lambda block: _averaging_keys_and_values(shape, lanes, block))
    return bare(shape) - shape.block + last + of_lanes + shape.head


def fast_evaluation(shape: Shape, lanes: int) -> int:
    """`form=fast` without a gradient: keys and values of the stream, but in the last block, where it has none."""

    def of_block(block: int) -> int:
        way = _folding_weights if block == shape.depth - 1 else _averaging_keys_and_values
        return way(shape, lanes, block)

    return bare(shape) - shape.block + shape.over_blocks(of_block) + shape.head


def fast_training(shape: Shape, lanes: int) -> int:
    """`form=fast` with a gradient: keys and values of no block stay in memory."""
    of_lanes = shape.over_blocks(lambda block: _folding_weights(shape, lanes, block))
    return bare(shape) - shape.block + of_lanes + shape.head


COUNTS: dict[str, Callable[[Shape, int], int]] = {
    "fast, evaluation": fast_evaluation,
    "fast, training": fast_training,
    "fast, K V everywhere": fast,
    "token as built": token_as_built,
    "token, no waste": token,
    "released code": official,
}
"""Name in the tables -> (shape, lanes) -> multiply-accumulates of one image."""
