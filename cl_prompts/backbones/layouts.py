"""Where training checkpoints keep the Vision Transformer among other networks: what to read and what to leave.

Sources: the training and evaluation code of MoCo v3 (linear evaluation reads the base encoder), of DINO and of iBOT
(evaluation reads the backbone of the teacher).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WRAPPERS = ("model", "state_dict", "teacher")
"""Keys under which a file may keep its weights, one after another: some are wrapped twice."""

_DISTRIBUTED = "module."


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors of a Vision Transformer and its neighbours.

    Attributes:
        prefix: how the names of the Vision Transformer start.
        neighbours: how the names of networks start that are trained beside it and not read.
    """

    prefix: str
    neighbours: tuple[str, ...]


LAYOUTS = (
    Layout("base_encoder.", ("momentum_encoder.", "predictor.")),  # MoCo v3
    Layout("backbone.", ("head.",)),  # DINO, iBOT
)
"""Layouts that timm does not know; a file is of the first whose patch embedding it holds."""


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint that belong to its Vision Transformer, under their plain names.

    What is neither the Vision Transformer nor a known neighbour stays, so that it is found to be unexpected.
    """
    for wrapper in WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if state and all(str(key).startswith(_DISTRIBUTED) for key in state):
        state = {key.removeprefix(_DISTRIBUTED): value for key, value in state.items()}
    for layout in LAYOUTS:
        if f"{layout.prefix}patch_embed.proj.weight" in state:
            kept = {key: value for key, value in state.items() if not key.startswith(layout.neighbours)}
            return {key.removeprefix(layout.prefix): value for key, value in kept.items()}
    return dict(state)
