"""`LaneInputs`: what some lanes bring to a forward pass, and the three rules of drop-and-replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from timm.models.vision_transformer import Block
from torch import Tensor


@dataclass(frozen=True)
class LaneInputs:
    """The tensors of `lanes` lanes, stacked in one order.

    Attributes:
        class_token: where every lane starts, `(width,)`: the class token without its position.
        selectors: `(lanes, selectors, width)`; no selectors is allowed.
        prompts: block number -> keys and values behind the projection, `(lanes, 2, prompts, heads, head width)`.
        drop_and_replace: a key of `DROP_AND_REPLACE`, or `off`: only the first block reads the image, and its
            summaries go on as tokens.
        merged_tokens: above 0 the stream's own tokens, merged down to at most so many, take the place of summaries.
    """

    class_token: Tensor
    selectors: Tensor
    prompts: Mapping[int, Tensor]
    drop_and_replace: str = "released"
    merged_tokens: int = 0

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return self.selectors.shape[0]

    @property
    def num_selectors(self) -> int:
        """Selectors of each lane."""
        return self.selectors.shape[1]


def _carried_on(block: Block, selectors: Tensor, normed: Tensor) -> Tensor:
    replaced = selectors + block.ls1(normed)
    return replaced + block.ls2(block.mlp(block.norm2(replaced)))


def _put_back(block: Block, selectors: Tensor, normed: Tensor) -> Tensor:
    return selectors


DROP_AND_REPLACE: dict[str, Callable[[Block, Tensor, Tensor], Tensor]] = {
    "released": _carried_on,
    "reset": _put_back,
}
"""Rule -> (block, selectors, the same after the block's first norm) -> selectors that enter the next block.

`released`: the attention output of the summaries is replaced by the normed selectors; residual and MLP follow as in any
block, so selectors drift. `reset`: the same selectors in every block (a literal reading of the name, unverified).
Neither depends on an image.
"""
