"""Lanes: small pathways beside one frozen stream, each with selectors, prompts and a class token of its own.

The mathematics of MULTI-LANE (De Min et al., CoLLAs 2024) as pure functions, in two forms of equal results: `fast`,
the default, and `token`, the definition taken literally. `LaneSet` holds the lanes of a learner.
"""

from cl_prompts.lanes.design import LaneDesign
from cl_prompts.lanes.fast import fast_class_tokens, selector_path, selector_weights
from cl_prompts.lanes.inputs import DROP_AND_REPLACE, LaneInputs
from cl_prompts.lanes.lane import Lane
from cl_prompts.lanes.lane_set import LaneSet
from cl_prompts.lanes.merging import merge_tokens
from cl_prompts.lanes.token import token_class_tokens

__all__ = [
    "DROP_AND_REPLACE",
    "Lane",
    "LaneDesign",
    "LaneInputs",
    "LaneSet",
    "fast_class_tokens",
    "merge_tokens",
    "selector_path",
    "selector_weights",
    "token_class_tokens",
]
