"""`SavedRun`: one run folder as a report reads it; `find_runs`: all of them below a folder, the unfit ones with why."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_prompts.reports.plain_files import Unreadable, read_json, read_yaml

MARKS = ("config.yaml", "summary.json", "manifest.json")
"""Files by which a folder is known to be one of a run."""

SKIPPED = frozenset({"report", "sweeps"})
"""Folders beside the runs that hold none: our own pages, and Hydra's notes of a sweep."""

DEEPEST = 12
"""Folders within folders that are looked into."""

GROUPS = ("scenario", "dataset", "backbone", "strategy", "protocol")


@dataclass(frozen=True)
class SavedRun:
    """A finished run.

    Attributes:
        folder: where it lies.
        name: the folder relative to the one that was asked for.
        config: content of `config.yaml`.
        manifest: content of `manifest.json`.
        summary: content of `summary.json`.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Root of all its random generators."""
        return int(self.config["seed"])

    @property
    def strategy(self) -> str:
        """The word after `strategy=`."""
        return str(self.config["strategy"]["name"])

    @property
    def plan_hash(self) -> str:
        """Hash of its stream."""
        return str(self.manifest["hashes"]["plan"])

    @property
    def stream(self) -> tuple[str, int]:
        """What pairs runs: the stream they saw and the seed of everything else."""
        return self.plan_hash, self.seed

    @property
    def started(self) -> str:
        """Start, as ISO text."""
        return str(self.manifest.get("started", ""))

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics by name; None where one is not defined."""
        return self.summary["metrics"]

    def metric(self, name: str) -> float | None:
        """One of them as a number."""
        value = self.metrics.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class LeftOut:
    """A folder that is in no mean.

    Attributes:
        name: relative to the folder that was asked for.
        status: `failed`, `interrupted`, `running`, `damaged`, `foreign` or `duplicate`.
        reason: one line.
        label: strategy and seed, where they are known.
    """

    name: str
    status: str
    reason: str
    label: str = ""


def find_runs(root: Path) -> tuple[list[SavedRun], list[LeftOut]]:
    """Every run in `root` or below it: the finished ones, and the rest with the reason."""
    runs: list[SavedRun] = []
    left_out: list[LeftOut] = []
    for folder, is_run in _folders(root, set()):
        name = "." if folder == root else str(folder.relative_to(root))
        found = read_run(folder, name) if is_run else LeftOut(name, "foreign", "holds no run: no config.yaml in it")
        runs.append(found) if isinstance(found, SavedRun) else left_out.append(found)
    return runs, left_out


def read_run(folder: Path, name: str) -> SavedRun | LeftOut:
    """One folder: a finished run whose files can be read, or why it is none."""
    label = ""
    try:
        config = read_yaml(folder / "config.yaml")
        if not _is_ours(config):
            return LeftOut(name, "foreign", "config.yaml is none of a run: it lacks strategy, protocol or seed")
        label = f"{config['strategy']['name']}, seed {config['seed']}"
        summary = read_json(folder / "summary.json")
        status = str(summary.get("status"))
        if status != "finished":
            return LeftOut(name, status, _unfinished(summary), label)
        run = SavedRun(folder, name, config, read_json(folder / "manifest.json"), summary)
        _check(run)
    except Unreadable as error:
        return LeftOut(name, "damaged", str(error), label)
    return run


def _folders(folder: Path, entered: set[str], depth: int = 0) -> Iterator[tuple[Path, bool]]:
    """Folders of runs, and the topmost ones in which there is none; links are followed, each place once."""
    place = os.path.realpath(folder)
    if place in entered or depth > DEEPEST:
        return
    entered.add(place)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder, False
        return
    names = {entry.name for entry in entries}
    if not names.isdisjoint(MARKS):
        yield folder, True
        return
    inside = [
        found
        for entry in entries
        if entry.is_dir() and not entry.name.startswith(".") and not (depth == 0 and entry.name in SKIPPED)
        for found in _folders(folder / entry.name, entered, depth + 1)
    ]
    holds_runs = any(is_run for _, is_run in inside)
    if depth == 0 or holds_runs:
        yield from inside
    elif names:
        yield folder, False


def _is_ours(config: Mapping[str, Any]) -> bool:
    groups = all(isinstance(config.get(group), dict) and config[group].get("name") for group in GROUPS)
    return groups and isinstance(config.get("seed"), int)


def _unfinished(summary: Mapping[str, Any]) -> str:
    seen, planned = summary.get("samples_seen") or 0, summary.get("samples_planned")
    place = f"after {seen} of {planned} samples" if planned else "before its stream was there"
    error = summary.get("error")
    if summary.get("status") == "running":
        place += "; it still runs, or was killed"
    return f"{place}: {error}" if error else place


def _check(run: SavedRun) -> None:
    """Refuse what the report relies on and does not find."""
    hashes = run.manifest.get("hashes")
    if not isinstance(hashes, dict) or not isinstance(hashes.get("plan"), str):
        raise Unreadable("manifest.json: holds no hash of the stream")
    for part in ("backbone", "train", "test"):
        if not isinstance(hashes.get(part), dict):
            raise Unreadable(f"manifest.json: holds no identity of {part}")
    metrics = run.summary.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        raise Unreadable("summary.json: holds no metrics")
    for name, value in metrics.items():
        if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
            raise Unreadable(f"summary.json: the metric {name} is no number")
    seen, planned = run.summary.get("samples_seen"), run.summary.get("samples_planned")
    if planned is not None and seen != planned:
        raise Unreadable(f"summary.json: says finished after {seen} of {planned} samples")
