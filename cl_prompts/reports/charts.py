"""The pictures of a block: anytime curves, differences, accuracy against cost, values of classes, use of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cl_prompts.reports.rows import Row
from cl_prompts.reports.statistics import Spread
from cl_prompts.reports.stored_curves import SESSIONS, Curve, Grid
from cl_prompts.reports.svg import Frame, Scale, line, path, picture, place, round_values, series, short, text

WIDTH, HEIGHT = 420.0, 270.0
SMALL_WIDTH, SMALL_HEIGHT = 210.0, 140.0
MOST_POINTS = 160
"""Points of a curve that are drawn; more cannot be told apart."""

MOST_TICKS = 6

TOGETHER = 6
"""Curves in one chart; more get a chart each, the others behind them in grey."""


def curve_charts(curves: Mapping[int, tuple[str, Curve]], name: str, block: int) -> list[str]:
    """Mean and band of every row; row number -> name and curve. One chart, or many small ones."""
    frame = _curve_frame([curve for _, curve in curves.values()], name, small=len(curves) > TOGETHER)
    if len(curves) <= TOGETHER:
        drawn = [_band_and_line(number, curve, frame) for number, (_, curve) in curves.items()]
        ends = {number: curve.points[-1] for number, (_, curve) in curves.items()}
        labels = _end_labels({number: 100 * point.mean for number, (_, point) in ends.items()}, frame)
        return [picture(WIDTH, HEIGHT, [*frame.draw(), *drawn, *labels], f"{name} along the stream")]
    shared = f"b{block}-all"
    behind = "".join(f'<path d="{_line(curve, frame)}"/>' for _, curve in curves.values())
    charts = []
    for position, (number, (label, curve)) in enumerate(curves.items()):
        # Defined where it is first used: a hidden picture of definitions is not drawn by every browser.
        others = f'<g id="{shared}" class="behind">{behind}</g>' if position == 0 else f'<use href="#{shared}"/>'
        head = text(2, 12, f"{number} {_clipped(label, 27)}", "head")
        content = [*frame.draw(), others, _band_and_line(number, curve, frame), head]
        charts.append(picture(SMALL_WIDTH, SMALL_HEIGHT, content, f"{name} of {label} along the stream", "small"))
    return charts


def _curve_frame(curves: Sequence[Curve], name: str, *, small: bool) -> Frame:
    points = [point for curve in curves for point in curve.points]
    tops = [found.mean + (found.sd or 0) for _, found in points]
    high = min(100.0, 100 * max(tops, default=1.0) * 1.03) or 1.0
    places = [x for x, _ in points]
    unit = curves[0].unit
    low_x = 0.0 if unit != SESSIONS else min(places)
    if small:
        y = Scale(0, high, SMALL_HEIGHT - 22, 20)
        return Frame(Scale(low_x, max(places), 26, SMALL_WIDTH - 8), y, "", "")
    x = Scale(low_x, max(places), 34, WIDTH - 22)
    return Frame(x, Scale(0, high, HEIGHT - 40, 24), f"{unit} seen", f"{name}, %")


def _band_and_line(number: int, curve: Curve, frame: Frame) -> str:
    points = _thinned(curve)
    band = ""
    if all(found.sd is not None for _, found in points) and len(points) > 1:
        up = [(frame.x(x), frame.y(_inside(found.mean + (found.sd or 0), frame))) for x, found in points]
        down = [(frame.x(x), frame.y(_inside(found.mean - (found.sd or 0), frame))) for x, found in points]
        band = f'<path class="band {series(number)}" d="{path([*up, *reversed(down)], closed=True)}"/>'
    return f'{band}<path class="line {series(number)}" d="{_line(curve, frame)}"/>'


def _line(curve: Curve, frame: Frame) -> str:
    points = [(frame.x(x), frame.y(100 * found.mean)) for x, found in _thinned(curve)]
    # A single point is a short stroke: a path of no length is not drawn.
    return path(points if len(points) > 1 else [(points[0][0] - 3, points[0][1]), (points[0][0] + 3, points[0][1])])


def _inside(fraction: float, frame: Frame) -> float:
    return min(max(100 * fraction, frame.y.low), frame.y.high)


def _thinned(curve: Curve) -> list[tuple[float, Spread]]:
    step = -(-len(curve.points) // MOST_POINTS)
    return [*curve.points[:-1:step], curve.points[-1]]


def _end_labels(values: Mapping[int, float], frame: Frame) -> Iterator[str]:
    """Row numbers at the ends of curves, moved apart where they would cover each other."""
    last = float("-inf")
    for number, value in sorted(values.items(), key=lambda item: -item[1]):
        last = max(last + 11, frame.y(value) + 4)
        yield text(frame.x.end + 5, last, str(number), "label", series(number))


def difference_chart(rows: Sequence[Row], metric: str, reference: Row) -> str:
    """Differences to the row of reference, which is the line at zero, with their intervals."""
    found = [(row, row.differences[metric]) for row in rows if row.differences and metric in row.differences]
    ends = [100 * end for _, one in found for end in (one.mean, one.low, one.high) if end is not None]
    spans = round_values(min([0.0, *ends]), max([0.0, *ends]))
    step = spans[1] - spans[0] if len(spans) > 1 else 1.0
    left, top, pitch = 176.0, 30.0, 19.0
    bottom = top + pitch * len(found) + 4
    x = Scale(min([0.0, *ends]) - step / 3, max([0.0, *ends]) + step / 3, left, WIDTH - 12)
    content = [text(2, 12, f"Δ {metric} to {reference.number} {_clipped(reference.label, 40)}, points", "name")]
    for tick in x.ticks:
        content.append(line(x(tick), top - 6, x(tick), bottom, "axis" if tick == 0 else "grid"))
        content.append(text(x(tick), bottom + 14, f"{tick:+g}" if tick else "0", "tick", "middle"))
    for position, (row, one) in enumerate(found):
        y = top + pitch * (position + 0.5)
        content.append(text(left - 8, y + 4, f"{row.number} {_clipped(row.label, 26)}", "tick", "end"))
        if one.low is not None and one.high is not None:
            content.append(line(x(100 * one.low), y, x(100 * one.high), y, "whisker", series(row.number)))
        content.append(_dot(x(100 * one.mean), y, row.number))
    return picture(WIDTH, bottom + 22, content, f"differences in {metric}")


@dataclass(frozen=True)
class CostAxis:
    """A cost against which accuracy is drawn.

    Attributes:
        name: of the axis.
        of: cost of a row; None where it is not known.
        write: a tick in words.
        round_values: where ticks may stand; None: 1, 2, 3 or 5 times a power of ten.
    """

    name: str
    of: Callable[[Row], float | None]
    write: Callable[[float], str] = short
    round_values: Sequence[float] | None = None


def cost_chart(rows: Sequence[Row], metric: str, axis: CostAxis) -> str | None:
    """The metric against a cost on a logarithmic axis; what costs nothing stands at its left end."""
    points = [
        (row, cost, row.metrics[metric]) for row in rows if metric in row.metrics and (cost := axis.of(row)) is not None
    ]
    costs = [cost for _, cost, _ in points if cost > 0]
    if len(points) < 2 or not costs:
        return None
    free = any(cost <= 0 for _, cost, _ in points)
    x = Scale(min(costs) / 1.3, max(costs) * 1.3, 74 if free else 40, WIDTH - 20, logarithmic=True)
    lows = [100 * (one.mean - (one.sd or 0)) for _, _, one in points]
    highs = [100 * (one.mean + (one.sd or 0)) for _, _, one in points]
    margin = max(2.0, (max(highs) - min(lows)) * 0.08)
    y = Scale(max(0.0, min(lows) - margin), min(100.0, max(highs) + margin), HEIGHT - 40, 24)
    frame = Frame(Scale(x.low, x.high, 34, WIDTH - 20), y, "", "")
    content = [part for tick in y.ticks for part in (line(34, y(tick), WIDTH - 20, y(tick), "grid"),)]
    content += [text(29, y(tick) + 4, short(tick), "tick", "end") for tick in y.ticks]
    content.append(line(34, y.start, WIDTH - 20, y.start, "axis"))
    for tick in _cost_ticks(x, axis):
        content.append(line(x(tick), y.start, x(tick), y.start + 4, "axis"))
        content.append(text(x(tick), y.start + 16, axis.write(tick), "tick", "middle"))
    if free:
        content.append(text(50, y.start + 16, "0", "tick", "middle"))
    content.append(text((frame.x.start + frame.x.end) / 2, y.start + 32, axis.name, "name", "middle"))
    content.append(text(2, y.end - 9, f"{metric}, %", "name"))
    places = {row.number: (x(cost) if cost > 0 else 50.0, y(100 * one.mean)) for row, cost, one in points}
    for row, _, one in points:
        at_x, at_y = places[row.number]
        if one.sd:
            low, high = (y(100 * _clamped(end, y)) for end in (one.mean - one.sd, one.mean + one.sd))
            content.append(line(at_x, low, at_x, high, "whisker", series(row.number)))
        content.append(_dot(at_x, at_y, row.number))
    content += _spread_labels(places)
    return picture(WIDTH, HEIGHT, content, f"{metric} against {axis.name}")


def _cost_ticks(x: Scale, axis: CostAxis) -> list[float]:
    """Round values along the axis, no more than can be read."""
    if axis.round_values is None:
        return x.ticks
    inside = [value for value in axis.round_values if x.low <= value <= x.high]
    return inside[:: -(-len(inside) // MOST_TICKS)] if inside else x.ticks


def _clamped(fraction: float, y: Scale) -> float:
    return min(max(fraction, y.low / 100), y.high / 100)


def _spread_labels(places: Mapping[int, tuple[float, float]]) -> Iterator[str]:
    """Row numbers beside their marks, each on the side where it covers least."""
    taken = list(places.values())
    for number, (x, y) in places.items():
        sides = [
            (x + 10, y - 3),
            (x + 10, y + 11),
            (x - 10, y - 3),
            (x - 10, y + 11),
            (x + 10, y + 22),
            (x - 10, y - 14),
        ]
        best = max(sides, key=lambda side: min((_far(side, one) for one in taken if one != (x, y)), default=0.0))
        free = next((side for side in sides if all(_far(side, one) > 13 for one in taken if one != (x, y))), best)
        taken.append(free)
        yield text(*free, str(number), "label", "middle", series(number))


def _far(one: tuple[float, float], other: tuple[float, float]) -> float:
    return ((one[0] - other[0]) ** 2 + (one[1] - 4 - other[1]) ** 2) ** 0.5


def _dot(x: float, y: float, number: int) -> str:
    return f'<circle cx="{place(x)}" cy="{place(y)}" r="4" class="dot {series(number)}"/>'


LEVELS = 20
"""Shades of a heat map."""

WRITTEN = 12
"""Columns up to which each cell of a heat map has its value in it."""


def heat_map(grid: Grid, title: str, *, columns_name: str) -> str:
    """Rows of sessions, columns of classes or prompts: the stronger the colour the higher; empty without a value."""
    left, top, right = 24.0, 30.0, 30.0 if any(grid.beside) else 4.0
    width = WIDTH - left - right
    pitch_x = width / len(grid.columns)
    pitch_y = 18.0 if len(grid.sessions) <= 12 else max(6.0, 216.0 / len(grid.sessions))
    written = len(grid.columns) <= WRITTEN
    shades: dict[int, list[str]] = {}
    numbers = []
    for row, values in enumerate(grid.values):
        for column, value in enumerate(values):
            if value is None:
                continue
            x, y = left + column * pitch_x, top + row * pitch_y
            level = round(min(max(value, 0.0), 1.0) * LEVELS)
            shades.setdefault(level, []).append(
                f"M{place(x)} {place(y)}h{_size(pitch_x)}v{_size(pitch_y)}h-{_size(pitch_x)}z"
            )
            if written and pitch_y >= 14:
                ink = "on" if value > 0.72 else "mid" if value > 0.5 else "off"
                numbers.append(text(x + pitch_x / 2, y + pitch_y / 2 + 3.5, f"{100 * value:.0f}", "cell", ink))
    height = top + pitch_y * len(grid.sessions)
    content = [
        f'<path class="empty" d="M{place(left)} {place(top)}h{place(width)}v{place(height - top)}h-{place(width)}z"/>'
    ]
    content += [
        f'<path class="heat" fill-opacity="{level / LEVELS:g}" d="{"".join(cells)}"/>'
        for level, cells in shades.items()
    ]
    content += numbers
    every = max(1, round(10 / pitch_y + 0.499))
    for row, name in enumerate(grid.sessions):
        if row % every == 0:
            content.append(text(left - 6, top + (row + 0.5) * pitch_y + 4, name, "tick", "end"))
    for row, note in enumerate(grid.beside):
        content.append(text(WIDTH - right + 4, top + (row + 0.5) * pitch_y + 4, note, "tick"))
    content.append(text(left, 11, title, "head"))
    content.append(text(left, 25, columns_name, "tick"))
    return picture(WIDTH, height + 6, content, title)


def _size(pitch: float) -> str:
    """Cells leave a thin gap where they are large enough for one."""
    return place(pitch - 1 if pitch > 6 else pitch)


def _clipped(label: str, letters: int) -> str:
    return label if len(label) <= letters else f"{label[: letters - 1]}…"
