"""`write_report`: from a folder of runs to the terminal and the files of `report/`. Light: no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cl_prompts.logging.console import short_path
from cl_prompts.reports.csv_table import csv_table
from cl_prompts.reports.latex import latex
from cl_prompts.reports.markdown import markdown
from cl_prompts.reports.page import page
from cl_prompts.reports.report import Report, read_report
from cl_prompts.reports.terminal import print_report
from cl_prompts.runs.failures import SUCCESS
from cl_prompts.runs.fields import value_text
from cl_prompts.runs.files import cannot_write, write_text
from cl_prompts.runs.identity import HARMLESS
from cl_prompts.runs.report_command import ReportSettings
from cl_prompts.runs.schema import GROUPS, group_schema, schema_name

FOLDER = "report"
"""Name of the folder of the pages, inside that of the runs."""

FILES: Mapping[str, Callable[[Report], str]] = {
    "report.html": page,
    "table.md": markdown,
    "table.csv": csv_table,
    "table.tex": latex,
}
"""Name of a file -> what makes its content."""


def write_report(settings: ReportSettings) -> int:
    """Print the report of a folder and write its files; returns the exit code.

    Raises:
        UserError: no run in it, no such row of reference, or files that cannot be written.
    """
    runs = Path(settings.runs).expanduser()
    report = read_report(runs, deciding_values, settings.reference)
    folder = runs / FOLDER if settings.report is None else Path(settings.report).expanduser()
    contents = {name: make(report) for name, make in FILES.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, "report=/path") from error
    for name, content in contents.items():
        write_text(folder / name, content, "report=/path")
    print_report(report)
    print(f"\nwritten  {short_path(folder)}{os.sep}: {', '.join(contents)}")
    return SUCCESS


def deciding_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of a saved configuration that may decide a number, dotted.

    Keys that were added since it was written have their default, at which everything is as it was before them.
    """
    found: dict[str, Any] = {}
    for group in GROUPS:
        record = config[group]
        found |= {f"{group}.{key}": value for key, value in (_defaults(group, _schema(group, record)) | record).items()}
    return {key: value for key, value in found.items() if key not in HARMLESS}


def _schema(group: str, record: Mapping[str, Any]) -> str:
    return value_text(schema_name(group, record))


@cache
def _defaults(group: str, name: str) -> dict[str, Any]:
    """Defaults of a group's keys as a file has them; nothing of a choice that is not known here."""
    try:
        fields = group_schema(group, name).model_fields
    except KeyError:
        return {}
    plain = {key: field.default for key, field in fields.items() if not field.is_required()}
    return json.loads(json.dumps(plain, default=str))
