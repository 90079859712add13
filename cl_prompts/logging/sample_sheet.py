"""A sheet of small images: what a session presents, as evaluated and as trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cl_prompts.logging.axis_marks import DPI, shortened
from cl_prompts.logging.glyphs import drawable

INCHES = 0.95
"""Side of an image on the sheet."""
_GAP, _BETWEEN, _BELOW = 0.06, 0.3, 0.42
"""Space within a pair, between pairs, and for the caption below, in sides of an image."""
_LEFT, _TOP = 1.4, 0.75


@dataclass(frozen=True, eq=False)
class SheetRow:
    """Images of one session.

    Attributes:
        label: what stands before the row; lines of about 20 letters.
        captions: one an image.
        evaluated: uint8 `(n, 3, height, width)`.
        trained: the same images as trained on, uint8 `(n, 3, height, width)`; None where they are not changed.
    """

    label: str
    captions: Sequence[str]
    evaluated: npt.NDArray[np.uint8]
    trained: npt.NDArray[np.uint8] | None


def sample_sheet(rows: Sequence[SheetRow], *, title: str) -> Figure:
    """One row a session; each image beside its augmented self, its classes below.

    Args:
        rows: at least one.
        title: what is shown, in one line.
    """
    pairs = any(row.trained is not None for row in rows)
    across = (2 + _GAP if pairs else 1) + _BETWEEN
    width = _LEFT + across * max(len(row.captions) for row in rows)
    height = _TOP + len(rows) * (1 + _BELOW)
    figure = Figure(figsize=(INCHES * width, INCHES * height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(0.1, 0.1, title, va="top", fontsize="medium")
    letters, families = drawable([caption for row in rows for caption in row.captions])
    can_be_drawn = iter(letters)
    for number, row in enumerate(rows):
        top = _TOP + number * (1 + _BELOW)
        axes.text(0.1, top + 0.5, row.label, va="center", fontsize="small")
        for column, caption in enumerate(row.captions):
            left = _LEFT + column * across
            _place(axes, row.evaluated[column], left, top)
            if row.trained is not None:
                _place(axes, row.trained[column], left + 1 + _GAP, top)
            if pairs and number == 0:
                _head(axes, left, top)
            shown = shortened(caption, 24 if pairs else 13) if next(can_be_drawn) else ""
            middle = left + (across - _BETWEEN) / 2
            text = axes.text(middle, top + 1.04, shown, ha="center", va="top", fontsize="x-small")
            if families:
                text.set_fontfamily(families)
    return figure


def _head(axes: Axes, left: float, top: float) -> None:
    """What the two images of a pair are."""
    for place, word in ((left, "evaluated"), (left + 1 + _GAP, "trained on")):
        axes.text(place + 0.5, top - 0.05, word, ha="center", va="bottom", fontsize="x-small", color="tab:gray")


def _place(axes: Axes, image: npt.NDArray[np.uint8], left: float, top: float) -> None:
    # Nothing is smoothed where pixels are enlarged: they are what is to be seen.
    enlarged = image.shape[-1] < DPI * INCHES
    axes.imshow(
        image.transpose(1, 2, 0),
        extent=(left, left + 1, top + 1, top),
        interpolation="nearest" if enlarged else "antialiased",
        aspect="auto",
        zorder=2,
    )
