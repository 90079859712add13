"""Files that a reader finds whole or not at all, and JSON without NaN."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cl_prompts.errors import UserError
from scenarios._atomic_files import atomic_file as whole_file


@contextmanager
def atomic_file(path: Path, key: str = "output=/path") -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing bytes; it takes the name `path` when the block ends well.

    Until then, and after any error or interrupt, `path` keeps its old content and the temporary file is removed.

    Args:
        path: of the file.
        key: the setting that moves it elsewhere.

    Raises:
        UserError: the file cannot be written: no space, no permission, no such folder.
    """
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error, key) from error


def overwrite_text(path: Path, text: str) -> None:
    """Replace the content of an existing file in its place: the last resort on a disk with no room for another file.

    Not atomic, so only for content that is lost otherwise. Spaces fill it up to the old length: nothing of the old
    content stays, and a file of the same length needs no new space.

    Raises:
        UserError: there is no such file, or this fails as well.
    """
    content = _utf8(text)
    try:
        with path.open("r+b") as file:
            file.write(content.ljust(path.stat().st_size - 1) + b"\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def _utf8(text: str) -> bytes:
    """UTF-8; what is no character, such as bytes of a file's name in another encoding, is written out as JSON does."""
    return text.encode("utf-8", "backslashreplace")


def cannot_write(path: Path, error: OSError, key: str = "output=/path") -> UserError:
    """The one line for any file or folder that cannot be written; `key` is the setting that moves it elsewhere."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        # Folders are made before anything is written into them.
        return UserError(
            f"cannot write {path} ({reason}); the folder was removed or replaced: start again, or choose another place "
            f"with {key}"
        )
    return UserError(
        f"cannot write {path} ({reason}); free space or fix the permissions there, or choose another place with {key}"
    )


def write_text(path: Path, text: str, key: str = "output=/path") -> None:
    """Write a UTF-8 text file whole or not at all; `key` as in `atomic_file`.

    Raises:
        UserError: see `atomic_file`.
    """
    with atomic_file(path, key) as file:
        file.write(_utf8(text))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; what is not finite becomes null.

    Raises:
        UserError: see `atomic_file`.
    """
    write_text(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> str:
    """Indented JSON; what is not finite becomes null."""
    return json.dumps(json_value(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_value(value: Any) -> Any:
    """`value` in types JSON knows: NaN and infinities as None, NumPy numbers and arrays as Python's, paths as text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_value(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | bool | int | None):
        return value
    return [json_value(entry) for entry in value] if isinstance(value, Iterable) else str(value)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table whole or not at all; numbers in full precision, NaN as an empty cell.

    Raises:
        UserError: see `atomic_file`.
    """
    write_text(path, csv_text(header, rows))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as text; numbers in full precision, NaN as an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows)
    return text.getvalue()
