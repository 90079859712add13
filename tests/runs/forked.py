"""Work in forked processes, which may be killed for real: nothing is imported again."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def in_a_process(work: Callable[[], int], output: Path | None = None) -> int:
    """Start `work()` in a forked process, with what it prints in a file; returns the number of the process."""
    number = os.fork()
    if number:
        return number
    os.setsid()  # workers of its loader belong to it, and die with it
    target = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    # Those of the first process may be kept by whoever collects what tests print.
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    code = 99
    try:
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def wait(number: int, seconds: float | None = None) -> int | None:
    """Exit code of the process; None if it is still running after so many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(number: int) -> None:
    """End the process and its workers with SIGKILL."""
    os.killpg(number, signal.SIGKILL)
    os.waitpid(number, 0)


def final_hash(folder: Path) -> str:
    """Of all trained tensors and buffers, and of every curve and table of a run."""
    from cl_prompts.runs.checkpoints import CheckpointStore

    state = CheckpointStore(folder / "checkpoints").load(lambda text: None)
    assert state is not None
    digest = hashlib.sha256()
    for name, value in sorted(state["strategy"]["method"]["tensors"].items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    for path in sorted(folder.glob("*.csv")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
