"""The report as one CSV table: a line for each row of each block, numbers in full precision."""

from __future__ import annotations

import csv
import io
from typing import Any

from cl_prompts.reports.blocks import Block
from cl_prompts.reports.report import Report
from cl_prompts.reports.rows import Row
from cl_prompts.reports.statistics import Spread

START = ("block", "family", "condition", "row", "strategy", "settings", "n", "seeds")
COSTS = (
    "trainable_parameters",
    "forward_passes_per_sample",
    "seconds",
    "seconds_sd",
    "peak_memory_bytes",
    "peak_gpu_memory_bytes",
)
END = ("reference", "deviations", "folders")


def csv_table(report: Report) -> str:
    """All blocks; of each metric `_mean`, `_sd`, `_n`, of the difference to the reference `_difference`, `_low`,
    `_high`, `_pairs`, all fractions; `_published` and `_published_sd` in percent as printed."""
    metrics = list(dict.fromkeys(name for block in report.blocks for name in block.metrics))
    parts = ("mean", "sd", "n", "difference", "low", "high", "pairs", "published", "published_sd")
    header = [*START, *(f"{name}_{part}" for name in metrics for part in parts), *COSTS, *END]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for block in report.blocks:
        for row in block.rows:
            writer.writerow(["" if cell is None else cell for cell in _cells(block, row, metrics)])
    return text.getvalue()


def _cells(block: Block, row: Row, metrics: list[str]) -> list[Any]:
    cost = row.cost
    start = [block.number, block.family, block.condition, row.number, row.method.name, row.settings, len(row.runs)]
    reference = block.reference_row
    return [
        *start,
        " ".join(map(str, row.seeds)),
        *(cell for name in metrics for cell in _metric(row, name)),
        _mean(cost.trainable),
        cost.passes,
        _mean(cost.seconds),
        None if cost.seconds is None else cost.seconds.sd,
        _mean(cost.memory),
        _mean(cost.gpu_memory),
        None if reference is None else reference.label,
        "; ".join(row.method.deviations or ()),
        " ".join(run.name for run in row.runs),
    ]


def _metric(row: Row, name: str) -> list[Any]:
    found, other = row.metrics.get(name), (row.differences or {}).get(name)
    theirs = next((one for one in row.published if one.metric == name), None)
    spread = [None, None, 0] if found is None else [found.mean, found.sd, found.n]
    difference = [None] * 3 + [None] if other is None else [other.mean, other.low, other.high, other.pairs]
    return [*spread, *difference, *([None, None] if theirs is None else [theirs.value, theirs.spread])]


def _mean(found: Spread | None) -> float | None:
    return None if found is None else found.mean
