"""Checkpoints of a run: whole files with their checksum in their name, the last two kept.

A file is complete or not there, and one that was damaged later is found by its name; then the one before it serves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cl_prompts.errors import UserError
from cl_prompts.runs.files import atomic_file, cannot_write
from cl_prompts.runs.state_file import from_bytes, to_bytes

SCHEMA = 1
"""Rises when states of before can no longer be read."""

_NAME = re.compile(r"(\d{12})-([0-9a-f]{32})\.safetensors")


class CheckpointStore:
    """The folder `checkpoints/` of a run.

    Args:
        folder: made at the first save.
        keep: files that stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, samples_seen: int, state: Mapping[str, Any]) -> Path:
        """Write a state; older files than the last ones go away only after that.

        Raises:
            UserError: no space, no permission; what was saved before is still there.
        """
        content = to_bytes({"schema": SCHEMA, **state})
        path = self.folder / f"{samples_seen:012d}-{_digest(content)}.safetensors"
        try:
            # Private: a state may tell more of somebody's images than a table of results.
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        with atomic_file(path) as file:
            file.write(content)
        for old in self.files()[: -self.keep]:
            try:
                old.unlink()
            except OSError as error:
                raise cannot_write(old, error) from error
        return path

    def files(self) -> list[Path]:
        """Files whose name is one of a checkpoint, the newest last."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def load(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest state that can be read; None where nothing was saved.

        Args:
            warn: told about each file that was passed over.

        Raises:
            UserError: there are files and none of them can be read.
        """
        problems = []
        for path in reversed(self.files()):
            try:
                state = _read(path)
            except UserError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                warn(f"{problem}; going on from {path.name}, which is older")
            return state
        if problems:
            raise UserError(f"no checkpoint can be read: {'; '.join(problems)}; start the run anew, without resume=")
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if f"-{_digest(content)}." not in path.name:
        raise UserError(f"{path}: truncated or changed, its checksum is another one")
    try:
        state = from_bytes(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    schema = state.get("schema")
    if not isinstance(schema, int) or schema != SCHEMA:
        raise UserError(f"{path}: written as schema {str(schema)[:40]!r}, this version reads {SCHEMA}")
    return state


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
