"""The report in a terminal: the metrics of the headline; all others are in the files."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cl_prompts.reports import cells
from cl_prompts.reports.blocks import Block
from cl_prompts.reports.contents import (
    COST_NAMES,
    SPREADS,
    cost_cells,
    difference_sentences,
    formulas,
    marked_sentences,
    marks_of,
    published_sentences,
)
from cl_prompts.reports.cost import WORK_FORMULA
from cl_prompts.reports.report import Report
from cl_prompts.reports.rows import Row

SMALLEST_WIDTH = 120
"""Columns where nobody says how many there are: a file or a pipe."""

LISTED = 20
"""Runs in no mean that are told one by one; the others are in the files."""


def print_report(report: Report, console: Console | None = None) -> None:
    """Print warnings, one table a block, and the runs that are in none."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, SMALLEST_WIDTH)
    for warning in report.warnings:
        console.print(Text.assemble(("warning  ", "bold yellow"), warning))
    for block in report.blocks:
        _print_block(block, console)
    if report.blocks:
        _print_formulas(report, console)
    if report.left_out:
        _print_left_out(report, console)


def _print_block(block: Block, console: Console) -> None:
    names = [name for name in block.names.headline if name in block.metrics]
    names += [name for name in block.metrics if name in ("f_last", "ap_forgetting")]
    marks = marks_of(block)
    table = _table(f"Block {block.number}: {block.title}", ["n", *names, *COST_NAMES])
    for row in block.rows:
        table.add_row(
            _name(row, marks[row.number]),
            str(len(row.runs)),
            *(cells.percent(row.metrics.get(name)) for name in names),
            *cost_cells(row),
        )
    console.print()
    console.print(table)
    for mark, sentence in marked_sentences(block):
        _print(console, f"({mark}) {sentence}")
    for row, sentence in published_sentences(block):
        _print(console, f"{row.label}, {sentence}")
    for note in block.notes:
        _print(console, note)
    if block.reference is not None:
        _print_differences(block, console)


def _print_differences(block: Block, console: Console) -> None:
    names = [name for name in block.names.headline if name in block.metrics]
    rows = [row for row in block.rows if row.differences]
    if rows:
        table = _table("", ["pairs", *(f"Δ {name}" for name in names)])
        for row in rows:
            found = row.differences or {}
            pairs = str(max(one.pairs for one in found.values()))
            table.add_row(_name(row, ""), pairs, *(cells.difference(found.get(name)) for name in names))
        console.print(table)
    _print(console, " ".join(difference_sentences(block)))


def _table(title: str, numbers: Sequence[str]) -> Table:
    """A table of a text column and columns of numbers."""
    table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    table.add_column("method", min_width=24)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _name(row: Row, mark: str) -> Text:
    return Text.assemble((row.method.name, "bold"), f" ({mark})" if mark else "", f" {row.settings}".rstrip())


def _print_formulas(report: Report, console: Console) -> None:
    """Those of the metrics shown, once for all blocks."""
    shown = {name for block in report.blocks for name in (*block.names.headline, "f_last", "ap_forgetting")}
    console.print()
    _print(console, SPREADS)
    for name, meaning, formula in formulas(report.blocks):
        if name in shown:
            _print(console, f"{name}: {meaning}; {formula}")
    _print(console, f"{COST_NAMES[1]}: {WORK_FORMULA}")


def _print_left_out(report: Report, console: Console) -> None:
    console.print()
    console.print(Text("in no mean", "bold"))
    for one in report.left_out[:LISTED]:
        run = f" ({one.label})" if one.label else ""
        _print(console, f"{one.status}: {one.name}{run}: {one.reason}")
    if len(report.left_out) > LISTED:
        _print(console, f"... and {len(report.left_out) - LISTED} more, in the files")


def _print(console: Console, line: str) -> None:
    console.print(Text(line), style="dim")
