"""Files that a reader finds whole or not at all."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_LEFTOVER = re.compile(r"\..+\.\d+-\d+\.tmp")
"""Names of temporary files: a hidden one beside the file, with the numbers of process and thread."""


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing bytes; it takes the name `path` when the block ends well.

    Until then, and after any error or interrupt, `path` keeps its old content and the temporary file is removed.

    Raises:
        OSError: no space, no permission, no such folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            # Without this a crash of the machine may leave the new name with no content.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # on a disk with faults the first one is told
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that were killed; nobody else may be writing into the folder.

    Raises:
        OSError: no permission.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()
