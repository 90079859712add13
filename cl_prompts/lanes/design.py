"""`LaneDesign`: what every lane is made of, how it starts and when it learns."""

from __future__ import annotations

from dataclasses import dataclass


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
