"""`mode=report`: tables and one page of all runs in a folder. Its words are checked here, before anything is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from cl_prompts.runs.command_words import read_command_words
from cl_prompts.runs.schema import Text
from scenarios.settings import Settings


class ReportSettings(Settings):
    """Keys of `mode=report`."""

    mode: Literal["report"] = Field("report", description="tables and a page of all runs in a folder")
    runs: Text = Field(
        description="folder of the runs, at any depth below it, such as what output= named",
        json_schema_extra={"allowed": "a folder"},
    )
    reference: Text | None = Field(
        None,
        description="row that the others are compared with, as strategy or 'strategy key=value ...'; null: the linear "
        "probe, or where there is none the best row",
        json_schema_extra={"allowed": "a row, or null"},
    )
    report: Text | None = Field(
        None,
        description="folder to write into; null: report/ inside the folder of the runs",
        json_schema_extra={"allowed": "a folder, or null"},
    )
    debug: bool = Field(False, description="show the traceback of an error")


def read_report_words(words: Sequence[str]) -> tuple[ReportSettings | None, list[str]]:
    """The settings that the words of a command line make, or all that is wrong with them, one line each."""
    read = read_command_words(
        words, ReportSettings, text_keys=("runs", "reference", "report"), command="mode=report", example="runs=folder"
    )
    problems = [*read.problems, *_of_places(ReportSettings.model_construct(**{"runs": None} | dict(read.right)))]
    return (None, problems) if problems else (ReportSettings.model_validate(read.values), [])


def _of_places(settings: ReportSettings) -> Iterator[str]:
    """One line for each path that leads nowhere."""
    if settings.runs is not None and not Path(settings.runs).expanduser().is_dir():
        yield f"runs={settings.runs}: there is no such folder; give the folder of the runs, such as runs=runs"
    if settings.report is not None and Path(settings.report).expanduser().is_file():
        yield f"report={settings.report}: is a file; give a folder"
