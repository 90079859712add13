"""`mode=check-data`: what is on disk of a data set, against the record of its files. Imports no torch by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console

from cl_prompts.logging.console import LABEL_WIDTH, print_header, reading_progress
from cl_prompts.runs.failures import FAILURE, SUCCESS, print_error
from cl_prompts.runs.schema import RunConfig
from scenarios.datasets import CheckedPart, check_data, read_dataset_settings


def check_files(config: RunConfig) -> int:
    """Print a row for every file and part of the data set; nothing is downloaded or written.

    Returns:
        Exit code: 0, or 1 where a file or part is missing or wrong.

    Raises:
        DataError: a damaged file of pins.
    """
    name = config.dataset_name
    settings = read_dataset_settings(name)(**config.dataset_arguments())
    parts = check_data(name, settings, progress=None if config.progress == "none" else reading_progress())
    words = ", ".join(f"{count} {state}" for state, count in Counter(part.state for part in parts).items())
    rows = [f"{'data set':<{LABEL_WIDTH}}{name}", *(line for part in parts for line in _lines(part))]
    print_header({"parts": rows, "checked": words}, console=Console())
    bad = sum(not part.good for part in parts)
    if not bad:
        return SUCCESS
    print_error(f"dataset={name}: {bad} of {len(parts)} files and parts are missing or wrong; do what their rows say")
    return FAILURE


def _lines(part: CheckedPart) -> Iterator[str]:
    """A row of the check: its state, and indented what stands behind it. Paths and hashes are never broken."""
    yield f"{part.state:<{LABEL_WIDTH}}{part.part}"
    for label, text in (("found", part.found), ("record", part.expected), ("do", part.advice)):
        if text:
            yield f"{f'  {label}':<{LABEL_WIDTH}}{text}"
