"""`Report`: everything that tables and pages show, read from a folder of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cl_prompts.errors import UserError
from cl_prompts.reports.blocks import Block, make_blocks
from cl_prompts.reports.cells import numbered
from cl_prompts.reports.identity import DecidingKeys, value_text
from cl_prompts.reports.rows import Row, matching_rows
from cl_prompts.reports.saved_run import LeftOut, find_runs


@dataclass(frozen=True)
class Report:
    """What a folder of runs says.

    Attributes:
        folder: the one that was asked for.
        runs: finished runs that count.
        blocks: runs that may be compared, one table each.
        left_out: folders in no mean, with the reason.
        warnings: lines above the tables.
    """

    folder: Path
    runs: int
    blocks: tuple[Block, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]

    @property
    def families(self) -> list[tuple[str, list[Block]]]:
        """Blocks of the same scenario, data set and backbone."""
        return [(name, list(blocks)) for name, blocks in groupby(self.blocks, key=lambda block: block.family)]


@dataclass(frozen=True)
class SideBySide:
    """The methods of one family under its different protocols.

    Attributes:
        blocks: one column each.
        rows: method and settings, and its row in each block; None where it did not run there.
    """

    blocks: tuple[Block, ...]
    rows: tuple[tuple[str, tuple[Row | None, ...]], ...]


def read_report(folder: Path, deciding_keys: DecidingKeys, reference: str | None = None) -> Report:
    """Read all runs in a folder and group them.

    Args:
        folder: of runs, at any depth.
        deciding_keys: see `identity.DecidingKeys`.
        reference: the row that the others are compared with, as `strategy` or `strategy key=value ...`; None: the
            linear probe, else the best row.

    Raises:
        UserError: there is no run in it, or no row that `reference` describes.
    """
    runs, left_out = find_runs(folder)
    if not runs and not any(one.status not in ("foreign",) for one in left_out):
        raise UserError(
            f"runs={folder}: there is no run in it (no folder with a config.yaml); give the folder that output= named"
        )
    blocks, repeated = make_blocks(runs, deciding_keys, reference)
    if reference is not None and runs and not any(matching_rows(block.rows, reference) for block in blocks):
        labels = dict.fromkeys(row.label for block in blocks for row in block.rows)
        raise UserError(f"reference={reference}: no such row; choose one of {', '.join(map(repr, labels))}")
    left_out = sorted([*left_out, *repeated], key=lambda one: (one.status, one.name))
    return Report(
        folder=folder,
        runs=len({run.name for block in blocks for row in block.rows for run in row.runs}),
        blocks=tuple(blocks),
        left_out=tuple(left_out),
        warnings=tuple(_warnings(blocks, left_out)),
    )


def side_by_side(blocks: Sequence[Block]) -> SideBySide | None:
    """The blocks of a family beside each other; None where there is one."""
    if len(blocks) < 2:
        return None
    labels = {row.method.key: row.label for block in blocks for row in block.rows}
    rows = [
        (label, tuple(next((row for row in block.rows if row.method.key == key), None) for block in blocks))
        for key, label in labels.items()
    ]
    return SideBySide(tuple(blocks), tuple(rows))


def common_settings(blocks: Sequence[Block]) -> dict[str, str]:
    """Dotted key -> value of everything in which all these blocks agree."""
    first, *others = (block.identity for block in blocks)
    return {
        key: value_text(value)
        for key, value in first.items()
        if all(key not in other or value_text(other[key]) == value_text(value) for other in others)
    }


def _warnings(blocks: Sequence[Block], left_out: Sequence[LeftOut]) -> Iterator[str]:
    if len(blocks) > 1:
        yield (
            f"{len(blocks)} blocks: what a fair comparison keeps equal differs between them, as their titles say; "
            "compare rows within a block only"
        )
    states = [one.status for one in left_out if one.status not in ("duplicate", "foreign")]
    if states:
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        yield f"{numbered(len(states), 'run')} in no mean: {counted}; listed at the end"
    repeated = sum(one.status == "duplicate" for one in left_out)
    if repeated:
        yield f"{numbered(repeated, 'repeated run')} of the same settings and seed as another: counted once, the newest"
    if not blocks:
        yield "no run has finished, so there is no table"
