"""Avalanche keeps a file in the home folder and cannot be imported without one; where there is none it is lent one.

Homes that cannot be used are common: none at all in containers, read-only on the nodes of a cluster, full.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scenarios._atomic_files import atomic_file

_PLACE = "~/.avalanche"


@contextmanager
def home_for_avalanche() -> Iterator[None]:
    """Import Avalanche in this block: its file is in the home folder, or lies in a temporary one for this process."""
    if "avalanche" in sys.modules or _is_there(Path(os.path.expanduser(_PLACE))):
        yield
        return
    try:
        lent = tempfile.mkdtemp(prefix="cl-prompts-home-")
    except OSError:
        yield  # nothing can be written at all: what Avalanche says is then explained
        return
    atexit.register(shutil.rmtree, lent, ignore_errors=True)
    # Matplotlib keeps its fonts there, and would say at length that it could not.
    os.environ.setdefault("MPLCONFIGDIR", lent)
    expanded = os.path.expanduser

    def expanduser(path: str) -> str:
        return lent + path.removeprefix(_PLACE) if isinstance(path, str) and path.startswith(_PLACE) else expanded(path)

    # Only these names: everything else that is imported finds the true home folder.
    os.path.expanduser = expanduser  # type: ignore[assignment]
    try:
        yield
    finally:
        os.path.expanduser = expanded


def _is_there(folder: Path) -> bool:
    """Whether Avalanche's file can be read; written first where there is none, so that nobody reads a half of it."""
    path = folder / "config.json"
    with suppress(OSError, ValueError):
        if not folder.is_absolute():
            return False  # no home folder is known: `~` would be a name like any other
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(json.dumps({"dataset_location": str(folder / "data")}, indent=4).encode())
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    return False
