"""Drawing in SVG: scales, ticks, lines, marks. Colours are classes, so that one picture suits light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
"""Colours in the style sheet; more series than that are dashed."""


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        low: smallest value.
        high: largest value.
        start: place of `low`.
        end: place of `high`.
        logarithmic: equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (self._linear(one) for one in (self.low, self.high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def _linear(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    @property
    def ticks(self) -> list[float]:
        """Round values inside."""
        return _decades(self.low, self.high) if self.logarithmic else round_values(self.low, self.high)


def round_values(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two values.

    >>> round_values(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(inside) >= 3:
            break
    return inside


def short(value: float) -> str:
    """A number in few letters: 0.5, 12, 1.5k, 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def place(value: float) -> str:
    """A coordinate with as many digits as can be seen."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def path(points: Iterable[tuple[float, float]], *, closed: bool = False) -> str:
    """The data of a path through points."""
    return "M" + "L".join(f"{place(x)} {place(y)}" for x, y in points) + ("Z" if closed else "")


def text(x: float, y: float, content: str, *classes: str) -> str:
    """A line of text."""
    return f'<text x="{place(x)}" y="{place(y)}" class="{" ".join(classes)}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *classes: str) -> str:
    """A straight line."""
    ends = f'x1="{place(x1)}" y1="{place(y1)}" x2="{place(x2)}" y2="{place(y2)}"'
    return f'<line {ends} class="{" ".join(classes)}"/>'


def picture(width: float, height: float, content: Sequence[str], title: str, *classes: str) -> str:
    """A whole picture, as wide as its place allows; `title` is what it shows, for those who cannot see it."""
    head = f'<svg viewBox="0 0 {place(width)} {place(height)}" class="{" ".join(classes)}" role="img"'
    return f'{head} aria-label="{escape(title)}">{"".join(content)}</svg>'


def series(number: int) -> str:
    """Classes of the colour and dash of row `number`, from 1."""
    return f"c{(number - 1) % COLOURS} d{(number - 1) // COLOURS % 4}"


@dataclass(frozen=True)
class Frame:
    """Axes of a chart.

    Attributes:
        x: scale of the horizontal axis.
        y: scale of the vertical axis, `start` at the bottom.
        x_name: what x is.
        y_name: what y is.
        x_text: how a tick of x is written.
    """

    x: Scale
    y: Scale
    x_name: str
    y_name: str
    x_text: Callable[[float], str] = short

    def draw(self) -> list[str]:
        """Grid, ticks and names."""
        x, y = self.x, self.y
        found = []
        for value in y.ticks:
            found.append(line(x.start, y(value), x.end, y(value), "grid"))
            found.append(text(x.start - 5, y(value) + 4, short(value), "tick", "end"))
        found.append(line(x.start, y.start, x.end, y.start, "axis"))
        for value in x.ticks:
            found.append(line(x(value), y.start, x(value), y.start + 4, "axis"))
            found.append(text(x(value), y.start + 16, self.x_text(value), "tick", "middle"))
        found.append(text((x.start + x.end) / 2, y.start + 32, self.x_name, "name", "middle"))
        found.append(text(2, y.end - 9, self.y_name, "name"))
        return found
