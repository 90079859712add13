"""Official trees of class folders and the text tables beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scenarios.errors import DataError

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def folder_names(folder: Path, advice: str) -> list[str]:
    """Names of the folders in a folder, sorted by character; hidden ones are left out.

    Raises:
        DataError: it cannot be read or has none.
    """
    names = [entry.name for entry in _entries(folder, advice) if entry.is_dir() and not entry.name.startswith(".")]
    if not names:
        raise DataError(f"{folder} has no folder; {advice}")
    return sorted(names)


def image_names(folder: Path, advice: str) -> list[str]:
    """Names of the JPEG and PNG files in a folder, sorted by character; hidden ones are left out.

    Raises:
        DataError: it cannot be read or has none.
    """
    names = [
        entry.name
        for entry in _entries(folder, advice)
        if entry.name.lower().endswith(_IMAGE_SUFFIXES) and not entry.name.startswith(".")
    ]
    if not names:
        raise DataError(f"{folder} has no image; {advice}")
    return sorted(names)


def class_files(
    folder: Path, class_folders: Sequence[str], advice: str, inside: str = ""
) -> tuple[tuple[str, ...], np.ndarray]:
    """Paths relative to `folder` and class ids int64 `(files,)` of all images, class by class.

    Args:
        folder: folder of the class folders.
        class_folders: their names in the order of class ids.
        advice: what to do when something is missing, an order.
        inside: folder of the images in each class folder; empty: the class folder itself.

    Raises:
        DataError: a class folder is missing or has no image.
    """
    paths: list[str] = []
    targets: list[int] = []
    for class_id, name in enumerate(class_folders):
        inner = f"{name}/{inside}" if inside else name
        files = image_names(folder / inner, advice)
        paths += [f"{inner}/{file}" for file in files]
        targets += [class_id] * len(files)
    return tuple(paths), np.array(targets, dtype=np.int64)


def table(path: Path, advice: str, separator: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """(line number, words) of every line that is not blank.

    Args:
        path: the file.
        advice: what to do when it is missing or damaged, an order.
        separator: what is between words; None: white space.

    Raises:
        DataError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); {advice}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.split(separator)


def _entries(folder: Path, advice: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read ({error.strerror}); {advice}") from error
