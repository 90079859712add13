"""Errors of a run as one line, and the exit code that goes with them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from cl_prompts.errors import UserError

SUCCESS, FAILURE, WRONG_CONFIG, INTERRUPTED = 0, 1, 2, 130

_ADVICE = " (unexpected; run again with debug=true to see where)"


def print_error(line: str) -> None:
    """One line on the error stream."""
    print(f"error: {line}", file=sys.stderr, flush=True)


def report_failure(error: Exception, *, debug: bool) -> int:
    """Print an error of a run as one line, with its traceback if `debug`; returns the exit code."""
    line = failure_text(error)
    if debug:
        traceback.print_exception(error)
        line = line.removesuffix(_ADVICE)
    print_error(line)
    return FAILURE


def failure_text(error: Exception) -> str:
    """An error in one line: ours as it is, known ones of others explained, unexpected ones with their type."""
    if isinstance(error, UserError):
        return _first_line(error)
    for applies, text in _KNOWN:
        if applies(error):
            return text
    return f"{type(error).__name__}: {_first_line(error)}{_ADVICE}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _is_torchvision_mismatch(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "operator torchvision::nms does not exist" in str(error)


def _is_avalanche_home(error: Exception) -> bool:
    """`import avalanche` writes `.avalanche` into the home folder and fails there, or at a folder above it."""
    if not isinstance(error, OSError) or not error.filename:
        return False
    failed, wanted = Path(str(error.filename)), Path.home() / ".avalanche"
    return failed.is_relative_to(wanted) or wanted.is_relative_to(failed)


_KNOWN: tuple[tuple[Callable[[Exception], bool], str], ...] = (
    (
        _is_torchvision_mismatch,
        "torch and torchvision are different builds, such as a CPU torch beside a CUDA torchvision; install both in "
        'one command from the same index, then try: python -c "import torch, torchvision; torchvision.ops.nms"',
    ),
    (
        _is_avalanche_home,
        "Avalanche cannot write its settings into the folder .avalanche of your home folder; make the home folder "
        "writable or set the variable HOME to one that is",
    ),
)
