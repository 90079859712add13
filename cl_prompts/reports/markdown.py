"""The report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

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
from cl_prompts.reports.report import Report, side_by_side
from cl_prompts.reports.rows import Row


def markdown(report: Report) -> str:
    """All tables of a report, what stands under them, and the runs that are in none."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from (f"# {cells.numbered(report.runs, 'run')} in {_text(report.folder.name or str(report.folder))}", "")
    for warning in report.warnings:
        yield from (f"> **Warning**: {_text(warning)}", "")
    for _, blocks in report.families:
        for block in blocks:
            yield from _block(block)
        yield from _side_by_side(blocks)
    if report.blocks:
        yield from _formulas(report.blocks)
    yield from _left_out(report)


def _block(block: Block) -> Iterator[str]:
    yield from (f"## Block {block.number}: {_text(block.title)}", "")
    marks = marks_of(block)
    header = ["#", "method", "settings", "n", *block.metrics, *COST_NAMES]
    yield from _table(
        header,
        [
            [
                str(row.number),
                f"{_text(row.method.name)}{f' ({marks[row.number]})' if marks[row.number] else ''}",
                _text(row.settings),
                str(len(row.runs)),
                *(cells.percent(row.metrics.get(name)) for name in block.metrics),
                *cost_cells(row),
            ]
            for row in block.rows
        ],
        left=3,
    )
    for mark, sentence in marked_sentences(block):
        yield f"- ({mark}) {_text(sentence)}"
    for row, sentence in published_sentences(block):
        yield f"- row {row.number}, {_text(sentence)}"
    for note in block.notes:
        yield f"- {_text(note)}"
    yield ""
    if block.reference_row is not None:
        yield from _differences(block)


def _differences(block: Block) -> Iterator[str]:
    yield from (" ".join(map(_text, difference_sentences(block))), "")
    names = [name for name in block.names.headline if name in block.metrics]
    rows = [row for row in block.rows if row.differences]
    if rows:
        yield from _table(
            ["#", "method", "pairs", *names],
            [
                [
                    str(row.number),
                    _text(row.label),
                    str(max(found.pairs for found in (row.differences or {}).values())),
                    *(cells.difference((row.differences or {}).get(name)) for name in names),
                ]
                for row in rows
            ],
            left=2,
        )


def _side_by_side(blocks: Sequence[Block]) -> Iterator[str]:
    found = side_by_side(blocks)
    if found is None:
        return
    yield from (f"## Side by side: {_text(blocks[0].family)}", "")
    yield from ("Compare rows within a column only: columns differ in what their heads say.", "")
    for place in (0, 1):
        heads = [f"{block.condition}: {block.names.headline[place]}" for block in found.blocks]
        rows = [[_text(label), *_across(found.blocks, rows, place)] for label, rows in found.rows]
        yield from _table(["method", *map(_text, heads)], rows, left=1)


def _across(blocks: Sequence[Block], rows: Sequence[Row | None], place: int) -> list[str]:
    """The headline metric of a method in each block."""
    return [
        cells.ABSENT if row is None else cells.percent(row.metrics.get(block.names.headline[place]))
        for block, row in zip(blocks, rows, strict=True)
    ]


def _formulas(blocks: Sequence[Block]) -> Iterator[str]:
    yield from ("## What the columns are", "", SPREADS, "")
    for name, meaning, formula in formulas(blocks):
        yield f"- `{name}`: {_text(meaning)}. `{formula}`"
    yield f"- `trainable`: numbers that training may move. `{COST_NAMES[1]}`: {_text(WORK_FORMULA)}"
    yield "- `time`: wall time of a run, evaluation included. `memory`: highest resident memory of its process."
    yield ""


def _left_out(report: Report) -> Iterator[str]:
    if not report.left_out:
        return
    yield from ("## In no mean", "")
    yield from _table(
        ["folder", "run", "status", "reason"],
        [[_text(one.name), _text(one.label), one.status, _text(one.reason)] for one in report.left_out],
        left=4,
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    """A table, then an empty line; the first `left` columns are text, the others numbers."""
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---' if place < left else '---:' for place in range(len(header)))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


_MARKUP = re.compile(r"[\\`*|<>\[\]]|(?<!\w)_|_(?!\w)")
"""What Markdown could take for markup; an underscore inside a word is none."""


def _text(text: str) -> str:
    """Text in which nothing is markup, in one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
