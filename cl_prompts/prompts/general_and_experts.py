"""DualPrompt's prompts as the Si-Blurry repository lays them out: one general prompt, and experts in a pool with keys.

Shared by that family's DualPrompt and by MISA: flat rows that are cut over blocks, one expert an image by its nearest
key, and the position code of the class token on prompts that are tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.backbones.insertions import Insertion
from cl_prompts.errors import StrategyError
from cl_prompts.prompts.layout import LAYOUTS, ROWS_PER_LENGTH, merge
from cl_prompts.prompts.selection import key_similarity


class Place(NamedTuple):
    """Where a prompt enters, and how long it is in each of these blocks."""

    layers: Sequence[int]
    length: int


class GeneralAndExperts(nn.Module):
    """The prompts and keys; all start uniform in -1..1.

    Trained are `general_prompt` (1, rows, width), `expert_prompts` (pool, rows, width) and `keys` (pool, width). A flat
    row of tokens is (blocks * length, width); of prefixes (blocks * 2 * length, width), the keys of a block first.

    Args:
        backbone: gives width, depth and position code.
        general: the prompt of all images.
        expert: the prompt an image chooses.
        pool_size: how many experts there are.
        insertion: `prompt_tuning`, tokens that leave the sequence behind each block (T*); `prefix_tuning`, keys and
            values in front of projection (K-); or `projected_prefix`, behind it (K+).
        generator: source of the initial values.

    Raises:
        StrategyError: a block beyond the backbone's depth, or tokens on a backbone whose class token has no position.
    """

    def __init__(
        self,
        backbone: FrozenViT,
        *,
        general: Place,
        expert: Place,
        pool_size: int,
        insertion: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        beyond = [layer for layer in (*general.layers, *expert.layers) if layer >= backbone.depth]
        if beyond:
            raise StrategyError(
                f"strategy.general_layers/expert_layers name block {beyond[0]}: the backbone has blocks 0 to "
                f"{backbone.depth - 1}"
            )
        if insertion == "prompt_tuning" and backbone.position_of_class_token is None:
            raise StrategyError(
                "strategy.insertion=prompt_tuning: adds the class token's position code, which this backbone lacks; "
                "set it to prefix_tuning"
            )
        self.general, self.expert, self.insertion = general, expert, insertion
        rows, width = ROWS_PER_LENGTH[insertion], backbone.width

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).uniform_(-1, 1, generator=generator))

        self.general_prompt = uniform(1, rows * len(general.layers) * general.length, width)
        self.expert_prompts = uniform(pool_size, rows * len(expert.layers) * expert.length, width)
        self.keys = uniform(pool_size, width)

    def distance(self, query: Tensor) -> Tensor:
        """1 - cosine of each query (batch, width) and each key: (batch, pool), with gradient to the keys."""
        return 1 - key_similarity(query, self.keys)

    def insertions(self, experts: Tensor, backbone: FrozenViT) -> dict[int, list[Insertion]]:
        """Where the general prompt and the experts of the images enter.

        Args:
            experts: (batch, rows, width), rows of `expert_prompts`, or what was made of them.
            backbone: whose position code is added to tokens.
        """
        general: Tensor = self.general_prompt
        if self.insertion == "prompt_tuning":
            code = backbone.position_of_class_token
            assert code is not None
            general, experts = general + code, experts + code
        cut = LAYOUTS[self.insertion]
        return merge(cut(general, *self.general), cut(experts, *self.expert))
