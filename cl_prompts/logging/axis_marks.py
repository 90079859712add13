"""What the pictures have in common: names on an axis, numbers in cells, how much is shown of how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from cl_prompts.logging.glyphs import drawable

NAMED_TICKS = 30
"""Up to so many classes are named one by one on an axis."""
WRITTEN_CELLS = 15
"""Up to so many columns have their numbers written into the cells."""
DPI = 110


def width(columns: int, smallest: float = 6.0, largest: float = 14.0) -> float:
    """Inches for a picture with so many columns."""
    return float(np.clip(2.5 + 0.4 * columns, smallest, largest))


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..count-1, evenly spread, with the first and the last.

    >>> spread(3, 8), spread(20, 4)
    ([0, 1, 2], [0, 6, 13, 19])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def names_of(class_names: Sequence[str] | None, numbers: npt.NDArray[np.integer]) -> tuple[list[str], list[str]]:
    """Labels of these classes, and the font families that have their letters; "class 3" where none has."""
    if class_names is None:
        return [str(number) for number in numbers], []
    names = [str(class_names[number]) for number in numbers]
    can_be_drawn, families = drawable(names)
    pairs = zip(names, numbers, can_be_drawn, strict=True)
    return [name if possible else f"class {number}" for name, number, possible in pairs], families


def class_ticks(axis: Any, names: Sequence[str], families: Sequence[str]) -> None:
    """Name the classes of an axis, every one or every few."""
    step = 1 if len(names) <= NAMED_TICKS else -(-len(names) // NAMED_TICKS)
    places = range(0, len(names), step)
    long = axis.axis_name == "x" and are_long(names)
    axis.set_ticks(places, [shortened(names[place]) for place in places], rotation=60 if long else 0, fontsize="small")
    for label in axis.get_ticklabels():
        if families:
            label.set_fontfamily(list(families))
        if long:
            label.set(ha="right", rotation_mode="anchor")


def are_long(names: Sequence[str]) -> bool:
    """Whether the names below an axis have to be turned."""
    return max((len(name) for name in names), default=0) > 3


def shortened(name: str, length: int = 18) -> str:
    """A name of at most `length` letters."""
    return name if len(name) <= length else name[: length - 1] + "…"


def write_cells(
    axes: Axes, values: npt.NDArray[np.int64], dark: npt.NDArray[np.bool_], skip: npt.NDArray[np.bool_]
) -> None:
    """Write whole numbers `(rows, columns)` into the cells that are not skipped, white on dark ones."""
    for row, column in np.argwhere(~skip):
        color = "white" if dark[row, column] else "black"
        axes.text(column, row, f"{values[row, column]}", ha="center", va="center", color=color, fontsize="small")
