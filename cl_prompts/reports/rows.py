"""Rows: one method with one choice of settings over its seeds, and how it differs from a row of reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cl_prompts.reports.cost import Cost, cost_of
from cl_prompts.reports.formulas import MetricNames
from cl_prompts.reports.identity import Method, value_text
from cl_prompts.reports.published import Published, published_values
from cl_prompts.reports.saved_run import SavedRun
from cl_prompts.reports.statistics import Difference, Spread, paired_difference, spread

PROBE = "linear_probe"
"""The row that others are compared with unless another is named: the least that a method has to beat, chosen before
anything was measured. Not the best row: picked for its luck, it makes every other one look worse."""


@dataclass(frozen=True)
class Row:
    """One method with one choice of settings, over its seeds.

    Attributes:
        number: from 1, in the order of the block.
        method: which.
        runs: the finished runs, by seed.
        metrics: mean and spread of each metric that is defined in some run; fractions.
        cost: what they cost.
        published: what a recipe of these runs names.
        differences: metric -> difference to the reference on equal streams; None of the reference itself.
    """

    number: int
    method: Method
    runs: tuple[SavedRun, ...]
    metrics: Mapping[str, Spread]
    cost: Cost
    published: tuple[Published, ...]
    differences: Mapping[str, Difference] | None = None

    @property
    def label(self) -> str:
        """Method and what of its settings has to be said, in the words of the command line."""
        return " ".join([self.method.name, self.settings]).strip()

    @property
    def settings(self) -> str:
        """`key=value` of variant, head and whatever is no default."""
        return " ".join(f"{key}={value_text(value)}" for key, value in self.method.shown.items())

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(run.seed for run in self.runs)


def make_rows(groups: Sequence[Sequence[SavedRun]], methods: Sequence[Method], names: MetricNames) -> list[Row]:
    """Rows of runs that belong together, the best in the metric over the stream first."""
    rows = [_row(runs, method, names) for runs, method in zip(groups, methods, strict=True)]
    first = names.headline[0]
    rows.sort(key=lambda row: (-row.metrics[first].mean if first in row.metrics else 0.0, row.label))
    return [replace(row, number=place) for place, row in enumerate(rows, start=1)]


def _row(runs: Sequence[SavedRun], method: Method, names: MetricNames) -> Row:
    metrics = {}
    for name in names.meanings:
        found = spread([value for run in runs if (value := run.metric(name)) is not None])
        if found is not None:
            metrics[name] = found
    cost = cost_of(runs, method.needs)
    return Row(0, method, tuple(runs), metrics, cost, tuple(published_values(runs)))


def choose_reference(rows: Sequence[Row], wanted: str | None) -> tuple[int | None, str]:
    """Number of the row that the others are compared with, and why it is that one; None with a single row."""
    if len(rows) < 2:
        return None, "one row: nothing to compare"
    named = matching_rows(rows, wanted) if wanted is not None else []
    if named:
        return named[0].number, f"reference={wanted}"
    missing = "" if wanted is None else f"no row {wanted} here; "
    probes = matching_rows(rows, PROBE)
    if probes:
        return probes[0].number, f"{missing}the least that a method has to beat"
    return rows[0].number, f"{missing}no {PROBE} here, so the best row, which its luck has helped to choose"


def matching_rows(rows: Sequence[Row], wanted: str) -> list[Row]:
    """Rows that `strategy` or `strategy key=value ...` describes, the one nearest to the defaults first."""
    name, *words = wanted.split()
    pairs = [word.partition("=")[::2] for word in words]
    found = [
        row
        for row in rows
        if row.method.name == name
        and all(key in row.method.settings and value_text(row.method.settings[key]) == value for key, value in pairs)
    ]
    return sorted(found, key=lambda row: (len(row.method.changed), row.number))


def compared(rows: Sequence[Row], reference: Row, names: MetricNames) -> list[Row]:
    """The rows with their differences to one of them, over runs that saw equal streams."""
    return [row if row.number == reference.number else _compared(row, reference, names) for row in rows]


def _compared(row: Row, reference: Row, names: MetricNames) -> Row:
    differences = {}
    for name in names.meanings:
        found = paired_difference(_values(row, name), _values(reference, name))
        if found is not None:
            differences[name] = found
    return replace(row, differences=differences)


def _values(row: Row, name: str) -> dict[tuple[str, int], float]:
    return {run.stream: value for run in row.runs if (value := run.metric(name)) is not None}
