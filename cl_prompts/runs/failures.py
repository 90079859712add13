"""Errors of a run as one line, and the exit code that goes with them."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cl_prompts.errors import UserError

SUCCESS, FAILURE, WRONG_CONFIG, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes; the last two are what shells report for SIGINT and SIGTERM."""

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


@contextmanager
def no_news_of_workers() -> Iterator[None]:
    """Let nothing be raised here about processes that end.

    torch raises the death of a loader's worker from inside a signal, anywhere: in the middle of the file that says why
    the run failed, too.
    """
    kind = getattr(signal, "SIGCHLD", None)
    if kind is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(kind, lambda *arguments: None)
    try:
        yield
    finally:
        signal.signal(kind, before)


def failure_text(error: Exception) -> str:
    """An error in one line: ours as it is, known ones of others explained, unexpected ones with their type."""
    if isinstance(error, UserError):
        return _own_line(error)
    for explain in _KNOWN:
        text = explain(error)
        if text is not None:
            return text
    return f"{type(error).__name__}: {_first_line(error)}{_ADVICE}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _own_line(error: UserError) -> str:
    """The line of one of our errors; torch raises those of its loader's workers anew, their traceback as message."""
    raised = str(error.args[0]) if error.args else ""
    if not raised.startswith("Caught "):
        return _first_line(error)
    last = raised.strip().splitlines()[-1]
    return last.partition(": ")[2] or last


def _torchvision_mismatch(error: Exception) -> str | None:
    if not isinstance(error, RuntimeError) or "operator torchvision::nms does not exist" not in str(error):
        return None
    return (
        "torch and torchvision are different builds, such as a CPU torch beside a CUDA torchvision; install both in "
        'one command from the same index, then try: python -c "import torch, torchvision; torchvision.ops.nms"'
    )


def _avalanche_home(error: Exception) -> str | None:
    """`import avalanche` writes `.avalanche` into the home folder and fails there, or at a folder above it."""
    if not isinstance(error, OSError) or not error.filename:
        return None
    failed, wanted = Path(str(error.filename)), Path(os.path.expanduser("~/.avalanche"))
    if not failed.is_relative_to(wanted) and not wanted.is_relative_to(failed):
        return None
    return (
        "Avalanche cannot write its settings into the folder .avalanche of your home folder; make the home folder "
        "writable or set the variable HOME to one that is"
    )


def _full_disk(error: Exception) -> str | None:
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return f"no space left on the disk{f' for {error.filename}' if error.filename else ''}; free some and start again"


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of a GPU or of the machine, here or in a worker; needs no torch."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and any(words in text for words in _MEMORY_WORDS))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


_MEMORY_WORDS = ("DefaultCPUAllocator", "CUDA out of memory", "Caught MemoryError", "CUBLAS_STATUS_ALLOC_FAILED")


def _out_of_memory(error: Exception) -> str | None:
    if not is_out_of_memory(error):
        return None
    return (
        "out of memory; halve protocol.stream_batch or protocol.eval_batch, set protocol.precision=bf16, or take a "
        "smaller backbone"
    )


def _lost_worker(error: Exception) -> str | None:
    """torch's words for a worker process of a loader that is gone."""
    text = str(error)
    told = isinstance(error, RuntimeError) and text.startswith("DataLoader worker")
    if not told and not _fetching_from_a_worker(error):
        return None
    if "Bus error" in text or "shared memory" in text:
        return "a process that reads images ran out of shared memory (/dev/shm); make it larger, or set num_workers=0"
    return (
        "a process that reads images was ended by the system, most likely because memory ran out; set num_workers "
        "lower (0: none), or dataset.cache=mmap where the data set has it"
    )


def _fetching_from_a_worker(error: Exception) -> bool:
    """Whether a connection to another process broke while a loader fetched a batch: sooner than torch noticed."""
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return False
    files = {Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)}
    return "dataloader.py" in files and not files.isdisjoint({"connection.py", "resource_sharer.py"})


_KNOWN: tuple[Callable[[Exception], str | None], ...] = (
    _torchvision_mismatch,
    _avalanche_home,
    _full_disk,
    _out_of_memory,
    _lost_worker,
)
"""Errors of others that users can put right: error -> the line about it, None where it is another one."""
