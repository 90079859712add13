"""What a run prints before it starts and after it ends. Imports neither torch nor Avalanche."""

from __future__ import annotations

import math
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cl_prompts.metrics.tables import SingleLabelTables, Tables

LABEL_WIDTH = 10
WIDTH = 80
"""Columns that every terminal has."""


def print_header(
    rows: Mapping[str, str | Sequence[str]], *, warnings: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print what is about to run.

    Args:
        rows: label -> text: data, backbone, strategy, protocol, device; or name -> lines that bring labels of their
            own in the first columns, as `plan.describe()` does.
        warnings: sentences the user should see, printed below.
        console: where to; the error stream if None, so that the output of a run stays clean.
    """
    console = console or Console(stderr=True)
    _print_rows(console, rows)
    for warning in warnings:
        _print_line(console, Text.assemble(("warning  ".ljust(LABEL_WIDTH), "bold yellow"), warning))


def reading_progress(
    *, every: float = 2.0, clock: Callable[[], float] = time.monotonic, doing: str = "reading images"
) -> Callable[[int, int], None]:
    """A callback (images done, images in all) that says on the error stream how far it is.

    Args:
        every: seconds between two lines, and before the first.
        clock: seconds.
        doing: what goes on.
    """
    last = clock()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last >= every:
            last = now
            print(f"{doing} {done:,} of {total:,}", file=sys.stderr, flush=True)

    return report


def print_summary(
    summary: Mapping[str, Any], run_dir: str | Path, *, tables: Tables | None = None, console: Console | None = None
) -> None:
    """Print the results of a run, where they were written, and how to see its curves.

    Args:
        summary: the content of `summary.json`.
        run_dir: the run directory.
        tables: which metrics they are; None for those of one label a sample.
        console: where to; the standard output if None.
    """
    console = console or Console()
    tables = tables or SingleLabelTables(())
    metrics = summary.get("metrics", {})
    table = Table(title=_title(summary), title_justify="left", title_style="bold")
    table.add_column("metric", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("meaning")
    for name, meaning in tables.shown(metrics).items():
        strong = "bold" if name in tables.headline else ""
        table.add_row(Text(name, strong), Text(percent(metrics.get(name), unit=""), strong), meaning)
    console.print()
    console.print(table)
    folder = Path(run_dir)
    rows: dict[str, str | Sequence[str]] = {
        "based on": _labelled("based on", _basis(summary, tables)),
        "cost": _cost(summary),
        "deviates": [line for text in summary.get("deviations") or () for line in _wrapped_row("deviates", text)],
        "written": f"{short_path(folder)}{os.sep}",
    }
    if content := _content(folder):
        # Between names a line may break: nobody copies the list.
        rows["files"] = _wrapped_row("files", ", ".join(content))
    if (folder / "tensorboard").is_dir():
        rows["curves"] = f"tensorboard --logdir {shlex.quote(short_path(folder))}"
    _print_rows(console, rows)


def percent(fraction: float | None, *, unit: str = " %") -> str:
    """A fraction as a percentage with one decimal; a dash where it is not defined."""
    return "-" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}{unit}"


def clock_time(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def short_path(path: Path) -> str:
    """The path relative to the current folder where it lies inside it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _title(summary: Mapping[str, Any]) -> str:
    status, seconds = summary.get("status", "finished"), clock_time(summary.get("seconds") or 0)
    if status == "finished":
        return f"finished in {seconds}"
    return f"{status} after {seconds}: measured so far"


def _basis(summary: Mapping[str, Any], tables: Tables) -> list[str]:
    metrics = summary.get("metrics", {})
    seen, ended = summary.get("samples_seen", 0), metrics.get("sessions_measured", 0)
    samples, sessions = summary.get("samples_planned"), summary.get("sessions_planned")
    of_samples = f" of {samples:,}" if samples and seen < samples else ""
    planned = sessions if sessions and ended < sessions else None
    between, at_ends = tables.counted(metrics, planned)
    first, *others = tables.basis(metrics)
    return [
        f"{seen:,}{of_samples} samples, {summary.get('updates', 0):,} updates,{between and f' {between},'}",
        f"{at_ends}{f', too few for {tables.headline[1]}' if planned else ''}, {first}",
        *others,
    ]


def _cost(summary: Mapping[str, Any]) -> str:
    parts = []
    if summary.get("trainable_parameters") is not None:
        parts.append(f"{summary['trainable_parameters']:,} trainable parameters")
    for key, where in (("peak_memory_bytes", "memory"), ("peak_gpu_memory_bytes", "GPU memory")):
        if summary.get(key) is not None:
            parts.append(f"{summary[key] / 2**20:,.0f} MiB peak {where}")
    return ", ".join(parts) or "not measured"


def _labelled(label: str, lines: Sequence[str]) -> list[str]:
    """Lines below each other, the first with the label before it."""
    return [f"{first:<{LABEL_WIDTH}}{line}" for first, line in zip_longest((label,), lines, fillvalue="")]


def _wrapped_row(label: str, text: str) -> list[str]:
    """A text over as many lines as it needs."""
    return _labelled(label, textwrap.wrap(text, WIDTH - LABEL_WIDTH, break_on_hyphens=False, break_long_words=False))


def _content(folder: Path) -> list[str]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [entry.name + (os.sep if entry.is_dir() else "") for entry in entries if not entry.name.startswith(".")]


def _print_rows(console: Console, rows: Mapping[str, str | Sequence[str]]) -> None:
    for label, text in rows.items():
        lines = [f"{label:<{LABEL_WIDTH}}{text}"] if isinstance(text, str) else text
        for line in lines:
            _print_line(console, Text.assemble((line[:LABEL_WIDTH], "bold cyan"), line[LABEL_WIDTH:]))


def _print_line(console: Console, line: Text) -> None:
    # Never broken by us: a path or a command must survive copying, and a log file has no width.
    console.print(line, soft_wrap=True, highlight=False)
