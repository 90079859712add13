"""`LaneDesign`: what every lane is made of, how it starts and learns; `LaneShape`: the backbone's part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from timm.layers import Attention

from cl_prompts.backbones import FrozenViT


@dataclass(frozen=True, kw_only=True)
class LaneDesign:
    """Choices that all lanes of a learner share.

    Attributes:
        num_selectors: selectors of a lane; 0 is allowed.
        num_prompts: keys and values in each prompted block.
        prompt_layers: the first blocks, which get prompts.
        prompt_init: a key of `lane.PROMPT_INITS`.
        init_tasks: tasks that the scale of orthogonal first values is made for.
        lane_init: `copy` of the last lane, or `fresh`.
        has_keys: each lane has a key.
        lane_policy: `owner`: lanes learn on when their classes return; `current`: only the newest lane learns.
        drop_and_replace: see `LaneInputs`.
        merged_tokens: see `LaneInputs`.
    """

    num_selectors: int
    num_prompts: int
    prompt_layers: int
    prompt_init: str = "orthogonal"
    init_tasks: int = 10
    lane_init: str = "copy"
    has_keys: bool = False
    lane_policy: str = "owner"
    drop_and_replace: str = "released"
    merged_tokens: int = 0


@dataclass(frozen=True)
class LaneShape:
    """What the shapes of a lane take from the backbone.

    Attributes:
        width: numbers in a token.
        heads: attention heads.
        head_width: numbers in a head.
    """

    width: int
    heads: int
    head_width: int

    @classmethod
    def of(cls, backbone: FrozenViT) -> LaneShape:
        """The shape for lanes beside `backbone`."""
        attention = cast("Attention", backbone.blocks[0].attn)
        return cls(backbone.width, attention.num_heads, attention.head_dim)
