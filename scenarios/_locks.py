"""One process at a time: a lock file, and a word to the user where another process holds it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOG = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, *, purpose: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, waiting for as long as another process holds it.

    Args:
        path: the lock file; its folder exists.
        purpose: what the holder does, logged where this process has to wait.

    Raises:
        OSError: the lock file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.warning("another process is %s; waiting for it (lock file %s)", purpose, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
