"""What stands around a table in every output: formulas, sentences about rows, published values, differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cl_prompts.reports import cells
from cl_prompts.reports.blocks import Block
from cl_prompts.reports.notes import row_marks, row_sentences
from cl_prompts.reports.rows import Row
from cl_prompts.reports.statistics import FEW

COST_NAMES = ("trainable", "F/sample", "time", "memory")
"""Columns of cost, in order."""

SPREADS = "Metrics in percent: mean ± sd over n runs (sample standard deviation, n - 1)."


def cost_cells(row: Row) -> list[str]:
    """The cells of `COST_NAMES`."""
    cost = row.cost
    memory = cells.mebibytes(cost.memory)
    if cost.gpu_memory is not None:
        memory += f", GPU {cells.mebibytes(cost.gpu_memory)}"
    return [cells.count(cost.trainable), cells.passes(cost.passes), cells.seconds(cost.seconds), memory]


def marks_of(block: Block) -> dict[int, str]:
    """Row number -> the marks of the sentences about it, such as `a,b`."""
    marks = row_marks(block.rows)
    return {row.number: ",".join(marks[text] for text in dict.fromkeys(row_sentences(row))) for row in block.rows}


def marked_sentences(block: Block) -> list[tuple[str, str]]:
    """Mark and sentence, in order."""
    return [(mark, text) for text, mark in row_marks(block.rows).items()]


def formulas(blocks: Sequence[Block]) -> list[tuple[str, str, str]]:
    """Name, meaning and formula of every metric that these blocks show."""
    found = {
        (name, block.names.meanings[name], block.names.formulas[name]) for block in blocks for name in block.metrics
    }
    order = {name: place for block in blocks for place, name in enumerate(block.metrics)}
    return sorted(found, key=lambda one: (order[one[0]], one))


def difference_sentences(block: Block) -> list[str]:
    """What the differences of a block are, and how far they can be trusted."""
    reference = block.reference_row
    if reference is None:
        return []
    pairs = [found.pairs for row in block.rows for found in (row.differences or {}).values()]
    sentences = [
        f"Differences in percentage points to row {reference.number}, {reference.label} ({block.reference_reason}), "
        "over pairs of runs with equal stream and seed; in brackets the 95 % interval of Student's paired t, not "
        "corrected for the number of rows."
    ]
    if not pairs:
        return [*sentences, "No run saw the stream of a run of that row: nothing can be paired."]
    if max(pairs) == 1:
        sentences.append("One pair a row has no interval.")
    elif min(pairs) < FEW:
        sentences.append(
            f"With {min(pairs)} pairs the interval is wide and rests on normal differences; more seeds narrow it."
        )
    return sentences


def published_sentences(block: Block) -> Iterator[tuple[Row, str]]:
    """Row and one line for each value that its recipe names."""
    for row in block.rows:
        for found in row.published:
            ours = cells.percent(row.metrics.get(found.metric))
            seeds = "" if found.seeds is None else f", {found.seeds} seeds"
            changed = f"; the runs are not the recipe: {', '.join(found.changes)}" if found.changes else ""
            yield (
                row,
                f"{found.metric}: published {cells.published(found)} ({found.source}{seeds}; recipe {found.recipe}), "
                f"ours {ours}{changed}",
            )
