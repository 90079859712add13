"""What each lane looks at, as a pure function: images and attention over their patches in, a Matplotlib figure out."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cl_prompts.logging.axis_marks import DPI, spread
from cl_prompts.logging.glyphs import drawable

SHOWN_LANES = 8
"""Columns of lanes that stay readable beside each other."""
CELL = 1.75
"""Inches of an image."""
LETTERS = 24
"""Letters of small text that fit above an image."""
TITLE_LETTERS_PER_INCH = 10
DIMMED = 0.5
"""Brightness of an image below the overlay."""
SMALLEST_TOP = 2.0
"""The colour scale reaches at least this many times the mean, so that even attention does not look picked."""


def attention_picture(
    images: npt.NDArray[np.uint8],
    attention: npt.NDArray[np.floating],
    grid: tuple[int, int],
    lane_names: Sequence[str],
    captions: Sequence[str],
    *,
    note: str = "",
) -> Figure:
    """Rows are images with their captions; columns are lanes: the image, dimmed, and over it the lane's attention.

    Colour is attention as a multiple of its mean over the patches, on one scale for the whole picture; what gets no
    more than the mean stays uncoloured. Of more than `SHOWN_LANES` lanes some are shown, evenly spread, and named in
    the title.

    Args:
        images: uint8 `(n, 3, height, width)`.
        attention: float `(n, lanes, patches)`, not negative, rows with the sum 1; patches row by row.
        grid: rows and columns of patches.
        lane_names: one name a lane; of two lines at most.
        captions: what is on each image.
        note: more words for the title.

    Raises:
        ValueError: shapes that contradict each other.
    """
    count, lanes, patches = attention.shape
    if (len(images), grid[0] * grid[1]) != (count, patches) or (len(captions), len(lane_names)) != (count, lanes):
        raise ValueError(
            f"attention {attention.shape} does not fit {len(images)} images, {len(captions)} captions, "
            f"{len(lane_names)} lane names and a grid of {grid[0]} x {grid[1]} patches"
        )
    shown = spread(lanes, SHOWN_LANES)
    heat = np.asarray(attention[:, shown], np.float64) * patches
    top = max(SMALLEST_TOP, float(heat.max(initial=0)))
    height, breadth = images.shape[-2:]
    inches = CELL * (len(shown) + 1) + 1.2
    which = "" if len(shown) == lanes else f"; shown are lanes {', '.join(map(str, shown))} of {lanes}"
    title = wrap(
        f"attention of each lane over the patches{which}{note and '; ' + note}", int(TITLE_LETTERS_PER_INCH * inches)
    )
    figure = Figure(
        figsize=(inches, (CELL * height / breadth + 0.4) * count + 0.2 * len(title) + 0.2),
        dpi=DPI,
        layout="constrained",
    )
    figure.suptitle("\n".join(title), fontsize="medium")
    axes = figure.subplots(count, len(shown) + 1, squeeze=False)
    _, families = drawable([text.replace("\n", "") for text in (*captions, *lane_names)])
    overlay = None
    for row, picture in enumerate(images.transpose(0, 2, 3, 1)):
        _bare(axes[row, 0], captions[row], families)
        axes[row, 0].imshow(picture)
        for column, lane in enumerate(shown):
            place = axes[row, column + 1]
            _bare(place, lane_names[lane] if row == 0 else "", families)
            place.imshow((DIMMED * picture.mean(axis=2) / 255).clip(0, 1), cmap="gray", vmin=0, vmax=1)
            values = heat[row, column].reshape(grid)
            overlay = place.imshow(
                values,
                cmap="autumn",
                vmin=1,
                vmax=top,
                alpha=((values - 1) / (top - 1)).clip(0, 1) ** 0.5,
                interpolation="bilinear",
                extent=(-0.5, breadth - 0.5, height - 0.5, -0.5),
            )
    if overlay is not None:
        figure.colorbar(overlay, ax=axes, label="attention, times the mean", fraction=0.03, pad=0.01)
    return figure


def _bare(axes: Axes, title: str, families: Sequence[str]) -> None:
    lines = [part for line in title.split("\n") for part in wrap(line, LETTERS)]
    if len(lines) > 2:
        lines = [lines[0], lines[1][: LETTERS - 1] + "…"]
    axes.set_title("\n".join(lines), fontsize="small", fontfamily=families or None)
    axes.set_xticks([])
    axes.set_yticks([])
