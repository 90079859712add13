"""The run directory: everything a reader needs to know about a run, each file whole or not at all.

| file | content |
|---|---|
| `config.yaml` | the resolved configuration |
| `manifest.json` | versions, hardware, hashes, source state, command |
| `plan.npz`, `plan.json` | the stream: which sample, when |
| `curves.csv` | one row for each evaluation |
| `class_accuracy.csv` | accuracy of every class at each session end |
| `class_average_precision.csv` | the same for several labels an image |
| `usage.csv` | of a pool of prompts: how often each was chosen in training, by the end of each session |
| `summary.json` | status, metrics, time, memory |
| `not_finite.json` | only where a loss or logits were no numbers: the samples of that batch, its losses |
| `tensorboard/` | event files |
| `predictions/` | of several labels an image: final logits, calibration, the trajectory they give |
| `model.safetensors` | of a finished run: what was trained, without the backbone, for any reader of safetensors |
| `checkpoints/` | the last two states, which `resume=` goes on from |
| `inspection/` | of `mode=inspect`, beside configuration, manifest and stream: pictures and `inspection.json` |
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import UserError
from cl_prompts.metrics.records import Point
from cl_prompts.metrics.tables import Tables
from cl_prompts.runs.files import (
    atomic_file,
    cannot_write,
    json_text,
    overwrite_text,
    write_csv,
    write_json,
    write_text,
)
from scenarios._atomic_files import remove_leftovers

if TYPE_CHECKING:
    from scenarios.plans import Plan

Status = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The content of `summary.json`."""

    status: Status
    metrics: Mapping[str, float | str | None] = field(default_factory=dict)
    """What `Tables.summarise` returns."""
    samples_seen: int = 0
    samples_planned: int | None = None
    """Samples of the whole stream; None before there is one."""
    sessions_planned: int | None = None
    """Sessions of the whole stream; `sessions_measured` among the metrics says how many ended."""
    updates: int = 0
    seconds: float = 0.0
    """Wall time since the start of the run."""
    saving_seconds: float = 0.0
    """The part of it that checkpoints took since the run began, or went on."""
    peak_memory_bytes: int | None = None
    """Highest resident memory of the process; None where the system does not tell."""
    peak_gpu_memory_bytes: int | None = None
    """Highest memory that tensors took on the GPU; None without one."""
    trainable_parameters: int | None = None
    deviations: Sequence[str] = ()
    """Where the method leaves the protocol or its paper, one sentence each."""
    error: str | None = None
    """The one line a failed run ended with."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain containers, in the order of the file."""
        return asdict(self)


class RunDirectory:
    """The folder of one run and the only writer of the files in it. Made by `create`.

    Every `write_*` may be called again and replaces the file as a whole; a failing one leaves the old file.

    Raises:
        UserError: a file cannot be written (no space, no permission).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, output: str | Path, name: str | None, now: datetime, *, label: str = "run") -> RunDirectory:
        """Make the folder of a new run inside `output`, never one that exists.

        Args:
            output: folder of all runs; made if it is missing.
            name: name of the folder; None takes the time and the label. Where the name is taken, `_2`, `_3`, ... is
                appended, so that runs started in the same second or with the same name keep apart.
            now: start of the run.
            label: short description for folders without a name, such as "si_blurry-mvp-digits-seed1".

        Raises:
            UserError: a name that is not one folder name, or a folder that cannot be made.
        """
        if name is not None and (not name.strip() or name == ".." or Path(name).name != name or "\0" in name):
            raise UserError(
                f"name={name!r}: must be the name of one folder, without / ; set the place with output=/path"
            )
        base = name or f"{now:%Y-%m-%d_%H-%M-%S}_{re.sub(r'[^A-Za-z0-9._=-]+', '-', label)}"
        parent = Path(output)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                path = parent / (base if number == 1 else f"{base}_{number}")
                try:
                    # Fails if another run, even one of this very moment, has made it: nobody shares a folder.
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
        except OSError as error:
            raise UserError(
                f"output={output}: cannot make a folder there ({error.strerror or error}); choose a folder you can "
                "write to with output=/path"
            ) from error
        raise AssertionError("unreachable")

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files; made by their writer."""
        return self.path / "tensorboard"

    def forget_events(self) -> None:
        """Remove the event files of a run that died before its first checkpoint and begins again."""
        try:
            if self.tensorboard.is_dir():
                shutil.rmtree(self.tensorboard)
        except OSError as error:
            raise cannot_write(self.tensorboard, error) from error

    def forget_leftovers(self) -> None:
        """Remove temporary files of a process that was killed while it wrote here; needs the folder for itself."""
        for folder in (self.path, self.checkpoints, self.path / "predictions"):
            try:
                remove_leftovers(folder)
            except OSError as error:
                raise cannot_write(folder, error) from error

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; made by the first one."""
        return self.path / "checkpoints"

    @property
    def inspection(self) -> Path:
        """Folder of what `mode=inspect` writes, made when first asked for."""
        return self._folder("inspection")

    def write_config(self, text: str) -> None:
        """Write the resolved configuration, YAML text, to `config.yaml`."""
        write_text(self.path / "config.yaml", text)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write what `manifest.make_manifest` collected to `manifest.json`."""
        write_json(self.path / "manifest.json", manifest)

    def write_model(self, content: bytes) -> None:
        """Write what `export.exported` made to `model.safetensors`."""
        with atomic_file(self.path / "model.safetensors") as file:
            file.write(content)

    def write_not_finite(self, details: Mapping[str, Any]) -> Path:
        """Write what a loss or logits that are no numbers were computed on to `not_finite.json`; returns its path."""
        path = self.path / "not_finite.json"
        write_json(path, details)
        return path

    def write_plan(self, plan: Plan) -> None:
        """Save the stream as `plan.npz` and `plan.json`."""
        try:
            plan.save(self.path)
        except OSError as error:
            raise cannot_write(self.path / "plan.npz", error) from error

    def write_curves(self, tables: Tables, points: Iterable[Point], sessions: Iterable[Point]) -> None:
        """Write all evaluations so far, one a row, to `curves.csv`; arguments as in `cl_prompts.metrics.tables`."""
        rows = tables.curve_rows(points, sessions)
        write_csv(
            self.path / "curves.csv",
            tables.curve_columns,
            ([row[name] for name in tables.curve_columns] for row in rows),
        )

    def write_class_table(
        self, tables: Tables, sessions: Iterable[Point], class_names: Sequence[str] | None = None
    ) -> None:
        """Write the score of each class (column) at the end of each session (row) to the file the tables name."""
        header, rows = tables.class_rows(sessions, class_names)
        write_csv(self.path / tables.class_file, header, rows)

    def write_usage(self, session: int, samples_seen: int, counts: Sequence[int]) -> None:
        """Write how often each prompt was chosen by the end of a session; keeps the rows of sessions before it."""
        path = self.path / "usage.csv"
        header = ["session", "samples_seen", *(f"prompt_{number}" for number in range(len(counts)))]
        row = [str(cell) for cell in (session, samples_seen, *counts)]
        try:
            # What a run that goes on measures again replaces what was there.
            with path.open(encoding="utf-8", newline="") as file:
                earlier = [cells for cells in csv.reader(file) if cells[:1] != header[:1] and int(cells[0]) < session]
        except (OSError, ValueError, IndexError, csv.Error):
            earlier = []
        write_csv(path, header, [*earlier, row])

    def write_predictions(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write arrays of numbers to `predictions/<name>`."""
        with atomic_file(self._predictions / name) as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]

    def write_prediction_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of equal keys to `predictions/<name>`."""
        header = list(rows[0]) if rows else []
        write_csv(self._predictions / name, header, [[row[key] for key in header] for row in rows])

    @property
    def _predictions(self) -> Path:
        return self._folder("predictions")

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder

    def write_summary(self, summary: RunSummary) -> None:
        """Write `summary.json`."""
        write_text(self.path / "summary.json", json_text(summary.to_dict()))

    def write_last_summary(self, summary: RunSummary) -> None:
        """Write `summary.json` of a run that did not finish, even on a full disk, where only the old file has room."""
        try:
            self.write_summary(summary)
        except UserError:
            overwrite_text(self.path / "summary.json", json_text(summary.to_dict()))
