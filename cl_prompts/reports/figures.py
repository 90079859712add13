"""Which pictures a block gets, and the words beneath them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cl_prompts.reports.blocks import Block
from cl_prompts.reports.charts import CostAxis, cost_chart, curve_charts, difference_chart, heat_map
from cl_prompts.reports.rows import Row
from cl_prompts.reports.saved_run import SavedRun
from cl_prompts.reports.statistics import Spread
from cl_prompts.reports.stored_curves import class_grid, mean_curve, usage_grid


@dataclass(frozen=True)
class Figure:
    """Pictures under one heading.

    Attributes:
        heading: what they show.
        pictures: SVG, each with the caption of its own; an empty caption for none.
        note: what holds for all of them.
        many: they are small.
    """

    heading: str
    pictures: tuple[tuple[str, str], ...]
    note: str
    many: bool = False


def figures(block: Block) -> Iterator[Figure]:
    """All pictures of a block; where something is not stored, the note says so."""
    yield _curves(block)
    yield from _differences(block)
    yield from _costs(block)
    seed = _common_seed(block.rows)
    yield _classes(block, seed)
    yield _usage(block, seed)


def _curves(block: Block) -> Figure:
    found = {row.number: (row.label, mean_curve(row.runs, block.names)) for row in block.rows}
    curves = {number: (label, curve) for number, (label, curve) in found.items() if curve is not None}
    name = block.names.curve_name
    note = f"Mean {name} over the seeds along the stream; band: ± sd. Numbers are those of the rows."
    absent = [number for number in found if number not in curves]
    if absent:
        note += f" No curve is stored of row {', '.join(map(str, absent))}."
    charts = curve_charts(curves, name, block.number) if curves else []
    if len(charts) > 1:
        note += " The curves of the other rows stand behind in grey."
    return Figure(f"Anytime {name}", tuple((chart, "") for chart in charts), note, many=len(charts) > 1)


def _differences(block: Block) -> Iterator[Figure]:
    reference = block.reference_row
    names = [name for name in block.names.headline if any(name in (row.differences or {}) for row in block.rows)]
    if reference is not None and names:
        charts = tuple((difference_chart(block.rows, name, reference), "") for name in names)
        note = "Mean difference over pairs of equal stream and seed; lines: 95 % interval of Student's paired t."
        yield Figure("Differences", charts, note)


def _costs(block: Block) -> Iterator[Figure]:
    metric = block.names.headline[1]
    charts = [chart for axis in AXES if (chart := cost_chart(block.rows, metric, axis)) is not None]
    if charts:
        note = f"Mean {metric} over the seeds, lines: ± sd; costs on logarithmic axes. Upper left is better."
        yield Figure("Accuracy against cost", tuple((chart, "") for chart in charts), note)


def _mean(found: Spread | None) -> float | None:
    return None if found is None else found.mean


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


ROUND_TIMES = tuple(unit * factor for unit in (1, 60, 3600) for factor in (1, 2, 5, 10, 20, 30))
"""Seconds."""

AXES = (
    CostAxis("wall time of a run", lambda row: _mean(row.cost.seconds), _time, ROUND_TIMES),
    CostAxis("trainable parameters", lambda row: _mean(row.cost.trainable)),
    CostAxis("forward passes a stream sample", lambda row: row.cost.passes),
)


def _common_seed(rows: Sequence[Row]) -> int:
    """The seed that most rows have; of several the smallest."""
    counted = Counter(seed for row in rows for seed in row.seeds)
    return min(counted, key=lambda seed: (-counted[seed], seed))


def _of_seed(row: Row, seed: int) -> SavedRun:
    return next((run for run in row.runs if run.seed == seed), row.runs[0])


def _classes(block: Block, seed: int) -> Figure:
    found = [(row, _of_seed(row, seed)) for row in block.rows]
    grids = [(row, run, grid) for row, run in found if (grid := class_grid(run, block.names)) is not None]
    pictures = tuple((heat_map(grid, _title(row, run, seed), columns_name="classes"), "") for row, run, grid in grids)
    what = "Average precision" if block.names.curve == "map" else "Accuracy"
    note = (
        f"{what} on each class (columns, in the order in which the stream showed them) after each session (rows), of "
        f"the run with seed {seed}; full colour: 100 %; empty: not seen yet. Down a column is forgetting."
    )
    return Figure("Sessions and classes", pictures, note if pictures else "No values of classes are stored.")


def _usage(block: Block, seed: int) -> Figure:
    found = [(row, _of_seed(row, seed)) for row in block.rows]
    grids = [(row, run, grid) for row, run in found if (grid := usage_grid(run)) is not None]
    pictures = tuple((heat_map(grid, _title(row, run, seed), columns_name="prompts"), "") for row, run, grid in grids)
    without = [str(row.number) for row, _ in found if all(row.number != other.number for other, _, _ in grids)]
    note = (
        f"How often each prompt of the pool (columns) was chosen in training in each session (rows), in percent of the "
        f"choices, seed {seed}; to the right: the number of prompts in use, exp of the entropy. Full colour: one "
        "prompt does everything."
        if pictures
        else ""
    )
    if without:
        note += (
            f" Not stored for row {', '.join(without)}: the method has no pool of prompts, or the run is from before "
            "usage was stored."
        )
    return Figure("Use of prompts", pictures, note.strip())


def _title(row: Row, run: SavedRun, seed: int) -> str:
    label = row.label if len(row.label) <= 52 else f"{row.label[:51]}…"
    return f"{row.number} {label}" + ("" if run.seed == seed else f", seed {run.seed}")
