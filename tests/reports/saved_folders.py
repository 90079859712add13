"""Folders as runs leave them, with numbers that a test chooses: nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cl_prompts.config_folder import config_folder
from cl_prompts.metrics.summary import METRICS
from cl_prompts.runs.schema import GROUPS, group_schema, schema_name
from cl_prompts.strategies.declaration import read_settings

CHOICES = {"scenario": "si_blurry", "dataset": "digits", "backbone": "vit_nano", "protocol": "online"}
CLASSES = ("zero", "one", "two")


@cache
def _record(group: str, choice: str) -> dict[str, Any]:
    values = yaml.safe_load((config_folder() / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    values.pop("defaults", None)
    schema = group_schema(group, schema_name(group, values))
    return schema.model_validate(values).model_dump(mode="json")


def config_of(
    strategy: str = "linear_probe", seed: int = 1, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of `config.yaml`; `changes` are dotted keys."""
    config: dict[str, Any] = {"seed": seed, "device": "cpu", "experiment": None}
    config |= {group: deepcopy(_record(group, {**CHOICES, "strategy": strategy}[group])) for group in GROUPS}
    for key, value in (changes or {}).items():
        group, _, leaf = key.rpartition(".")
        (config[group] if group else config)[leaf] = value
    return config


def manifest_of(method: str, seed: int, **changes: Any) -> dict[str, Any]:
    """What the report reads of `manifest.json`."""
    hashes = {
        "plan": f"plan of seed {seed}",
        "backbone": {"sha256": "b" * 64, "checkpoint": "vit_nano.safetensors", "img_size": 32},
        "train": {"sha256": "c" * 64},
        "test": {"sha256": "d" * 64},
    }
    needs = read_settings(method).needs.model_dump(mode="json")
    started = f"2030-01-01T00:00:{seed % 60:02}+00:00"
    return {"hashes": hashes, "started": started, "needs": needs, "deviations": []} | changes


def summary_of(measured: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The content of `summary.json` of a finished run."""
    return {
        "status": "finished",
        "metrics": {**dict.fromkeys(METRICS), **measured},
        "samples_seen": 100,
        "samples_planned": 100,
        "seconds": 60.0,
        "peak_memory_bytes": 2**30,
        "peak_gpu_memory_bytes": None,
        "trainable_parameters": 1930,
        "error": None,
    } | changes


def write_run(
    root: Path,
    strategy: str = "linear_probe",
    seed: int = 1,
    a_last: float = 0.5,
    *,
    name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """A run folder inside `root`; returns it."""
    folder = root / (name or f"{len(list(root.iterdir())) if root.is_dir() else 0:03}_{strategy}_{seed}")
    folder.mkdir(parents=True)
    measured = {"a_auc": a_last, "a_last": a_last, "f_last": 0.25} if metrics is None else metrics
    config = yaml.safe_dump(config_of(strategy, seed, changes), sort_keys=False)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    write_json(folder / "manifest.json", manifest_of(strategy, seed, **(manifest or {})))
    write_json(folder / "summary.json", summary_of(measured, **(summary or {})))
    return folder


def write_curves(folder: Path, accuracies: Sequence[float], every: int = 50) -> None:
    """`curves.csv` with periodic points and a session end, and `class_accuracy.csv` of two sessions."""
    rows = [f"{every * n},{every * n},periodic,,{value}" for n, value in enumerate(accuracies, start=1)]
    end = every * len(accuracies)
    rows += [f"{end},{end},session,1,{accuracies[-1]}", f"{end},{end},final,,{accuracies[-1]}"]
    text = "\n".join(["samples_seen,nominal,kind,session,accuracy", *rows]) + "\n"
    (folder / "curves.csv").write_text(text, encoding="utf-8")
    table = [f"session,samples_seen,{','.join(CLASSES)}", f"0,{end // 2},0.5,,1.0", f"1,{end},0.25,0.75,1.0"]
    (folder / "class_accuracy.csv").write_text("\n".join(table) + "\n", encoding="utf-8")


def write_usage(folder: Path, counts: Sequence[Sequence[int]]) -> None:
    """`usage.csv`, a row a session."""
    header = ",".join(["session", "samples_seen", *(f"prompt_{number}" for number in range(len(counts[0])))])
    rows = [",".join(map(str, [session, 50 * session + 50, *row])) for session, row in enumerate(counts)]
    (folder / "usage.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
