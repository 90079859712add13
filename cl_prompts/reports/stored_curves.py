"""What run folders store along the stream: evaluations, values of each class, choices of prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_prompts.metrics.usage import usage_entropy
from cl_prompts.reports.formulas import MetricNames
from cl_prompts.reports.plain_files import Unreadable, read_table
from cl_prompts.reports.saved_run import SavedRun
from cl_prompts.reports.statistics import Spread, spread

SAMPLES, SESSIONS = "stream samples", "sessions"
"""What the x of a curve counts: samples where there are periodic evaluations, else session ends."""


@dataclass(frozen=True)
class Curve:
    """A mean over runs along the stream.

    Attributes:
        unit: `SAMPLES` or `SESSIONS`.
        points: x and the mean and spread there, only where every run has a value.
    """

    unit: str
    points: tuple[tuple[float, Spread], ...]


@dataclass(frozen=True)
class Grid:
    """Values in rows of sessions.

    Attributes:
        columns: names of the columns.
        sessions: names of the rows, from 1.
        values: fractions; None where there is none.
        beside: text at the end of each row; empty for nothing.
    """

    columns: tuple[str, ...]
    sessions: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    beside: tuple[str, ...] = ()


def mean_curve(runs: Sequence[SavedRun], names: MetricNames) -> Curve | None:
    """The evaluations of runs of one row, averaged at equal places; None where no folder has them."""
    found = [curve for run in runs if (curve := _curve(run, names)) is not None]
    unit = SAMPLES if any(unit == SAMPLES for unit, _ in found) else SESSIONS
    curves = [values for one, values in found if one == unit]
    if not curves:
        return None
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    points = [(place, spread([curve[place] for curve in curves])) for place in shared]
    return Curve(unit, tuple((place, found) for place, found in points if found is not None)) if points else None


def _curve(run: SavedRun, names: MetricNames) -> tuple[str, dict[float, float]] | None:
    rows = _rows(run, "curves.csv")
    every = run.config["protocol"].get("eval_every") or 0
    periodic: dict[float, float] = {}
    sessions: dict[float, float] = {}
    for row in rows:
        value, seen, nominal = (_number(row.get(key)) for key in (names.curve, "samples_seen", "nominal"))
        if value is None or seen is None:
            continue
        if row.get("kind") == "periodic" and every:
            # Batches end with their session, so the exact place differs between streams; the multiple does not.
            periodic[(nominal or seen) // every * every] = value
        elif row.get("kind") == "session" and (session := _number(row.get("session"))) is not None:
            sessions[session + 1] = value
    if periodic:
        return SAMPLES, periodic
    return (SESSIONS, sessions) if sessions else None


def class_grid(run: SavedRun, names: MetricNames) -> Grid | None:
    """The value of each class at each session end, classes in the order in which they were first seen."""
    rows = _rows(run, names.class_file)
    columns = [name for name in (rows[0] if rows else {}) if name not in ("session", "samples_seen")]
    values = [[_number(row[name]) for name in columns] for row in rows]
    first = {
        place: next((session for session, row in enumerate(values) if row[place] is not None), len(values))
        for place in range(len(columns))
    }
    order = sorted((place for place in first if first[place] < len(values)), key=lambda place: (first[place], place))
    if not order:
        return None
    return Grid(
        tuple(columns[place] for place in order),
        tuple(str(number) for number in range(1, len(rows) + 1)),
        tuple(tuple(row[place] for place in order) for row in values),
    )


def usage_grid(run: SavedRun) -> Grid | None:
    """Share of each prompt in the choices of each session, with the number of prompts that count beside it."""
    rows = _rows(run, "usage.csv")
    columns = [name for name in (rows[0] if rows else {}) if name.startswith("prompt_")]
    before = [0.0] * len(columns)
    shares: list[tuple[float | None, ...]] = []
    beside: list[str] = []
    for row in rows:
        counts = [_number(row[name]) or 0.0 for name in columns]
        chosen = [max(now - then, 0.0) for now, then in zip(counts, before, strict=True)]
        total = sum(chosen)
        shares.append(tuple(count / total if total else None for count in chosen))
        beside.append(f"{effective_number(chosen):.1f}" if total else "")
        before = counts
    if not columns:
        return None
    names = tuple(name.removeprefix("prompt_") for name in columns)
    return Grid(names, tuple(str(number) for number in range(1, len(rows) + 1)), tuple(shares), tuple(beside))


def effective_number(counts: Sequence[float]) -> float:
    """exp of the entropy of the shares: how many prompts used equally often would be as even.

    >>> effective_number([5, 5, 0])
    2.0
    """
    return round(math.exp(usage_entropy(counts)), 9)


def _rows(run: SavedRun, name: str) -> list[Mapping[str, Any]]:
    try:
        header, rows = read_table(run.folder / name)
    except Unreadable:
        return []
    return [dict(zip(header, row, strict=True)) for row in rows]


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is None or abs(value) < float("inf") else None
