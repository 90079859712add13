"""What the selectors of a model's lanes look at, read from the model and written as a picture at session ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cl_prompts.evaluation.logits import evaluating
from cl_prompts.logging.attention_pictures import attention_picture
from cl_prompts.logging.axis_marks import names_of
from cl_prompts.logging.console import percent
from cl_prompts.logging.event_file import EventFile
from cl_prompts.logging.image_choice import PicturedImages


class PatchAttention(NamedTuple):
    """Attention of lanes over patches.

    Attributes:
        values: float32 `(n, lanes, patches)`, the mean over the selectors of a lane, with the sum 1 over the patches.
        grid: rows and columns of patches.
        prefix_tokens: tokens in front of the patches, which were left out.
        prefix_share: mean attention that they had, a fraction.
    """

    values: npt.NDArray[np.float32]
    grid: tuple[int, int]
    prefix_tokens: int
    prefix_share: float


def patch_attention(model: nn.Module, pictured: PicturedImages) -> PatchAttention | None:
    """Ask a model where its lanes look, leaving no trace in it; None for a model without lanes or selectors.

    Args:
        model: one with `selector_attention(images)` -> `(n, lanes, selectors, tokens)` and a `backbone`.
        pictured: the images.
    """
    read = getattr(model, "selector_attention", None)
    if read is None:
        return None
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        attention = read(pictured.inputs.to(device))
    if attention is None or 0 in attention.shape:
        return None
    backbone: Any = model.backbone
    prefix = int(backbone.num_prefix_tokens)
    rows, columns = backbone.model.patch_embed.grid_size
    patches = attention.float().mean(dim=2)[..., prefix:]
    kept = patches.sum(dim=-1, keepdim=True)
    values = (patches / kept.clamp(min=torch.finfo(kept.dtype).tiny)).cpu().numpy()
    return PatchAttention(values, (int(rows), int(columns)), prefix, 1 - float(kept.mean()))


def lane_names(model: nn.Module, lanes: int, class_names: Sequence[str] | None) -> list[str]:
    """Numbers of lanes, each with its classes on a second line where the model has an `owner`, int64 `(classes,)`."""
    owner = getattr(model, "owner", None)
    names = [f"lane {lane}" for lane in range(lanes)]
    if owner is None:
        return names
    owners = owner.cpu().numpy()
    words = [", ".join(names_of(class_names, np.flatnonzero(owners == lane))[0]) for lane in range(lanes)]
    return [f"{name}\n{classes or 'no class'}" for name, classes in zip(names, words, strict=True)]


def title_note(attention: PatchAttention) -> str:
    """What the attention of a lane is, and the part of it that the picture leaves out."""
    read = "mean over the selectors of a lane, in the last block where they read the image"
    if not attention.prefix_tokens:
        return read
    tokens = (
        "the class token" if attention.prefix_tokens == 1 else f"{attention.prefix_tokens} tokens before the patches"
    )
    return f"{read}; left out: {percent(attention.prefix_share)} that went to {tokens}"


class LaneAttentionEvents:
    """Writes `lane_attention`.

    Args:
        file: where to.
        pictured: the images.
        class_names: names of the classes; numbers if None.
    """

    def __init__(self, file: EventFile, pictured: PicturedImages, class_names: Sequence[str] | None = None) -> None:
        self._file = file
        self._pictured = pictured
        self._class_names = class_names

    def write(self, model: nn.Module, seen: int) -> None:
        """Write the picture of a model as it is now; nothing for a model without lanes."""
        attention = patch_attention(model, self._pictured)
        if attention is None:
            return
        lanes = attention.values.shape[1]
        picture = attention_picture(
            self._pictured.images,
            attention.values,
            attention.grid,
            lane_names(model, lanes, self._class_names),
            self._pictured.captions,
            note=title_note(attention),
        )
        self._file.picture("lane_attention", picture, seen)
