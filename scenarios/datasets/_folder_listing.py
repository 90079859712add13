"""Which image files a folder or a file list names, of which class and part: read from disk without opening an image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets._file_tables import PARTS, composed, read_table
from scenarios.errors import DataError

_EXPECTED = "expected <root>/train/<class>/* and <root>/test/<class>/*, or <root>/<class>/*"
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_SEPARATORS = frozenset("|,/")
"""What a list may have between labels instead of a semicolon."""
_LITTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}


@dataclass(frozen=True)
class Listing:
    """Files in data-set order.

    Attributes:
        root: folder that the paths are relative to.
        paths: relative, `/` between folders.
        targets: class ids int64 `(files,)`, or multi-hot uint8 `(files, classes)` where files have several labels.
        class_names: sorted; whole numbers by value (2 before 10), everything else by character.
        is_test: bool `(files,)`, or None where the data bring no split.
        notes: what was left aside, one sentence each.
        table: the file list; None where folders were listed.
        lines: line of each file in it.
    """

    root: Path
    paths: tuple[str, ...]
    targets: np.ndarray
    class_names: tuple[str, ...]
    is_test: np.ndarray | None
    notes: tuple[str, ...] = ()
    table: Path | None = None
    lines: tuple[int, ...] = ()

    @property
    def source(self) -> str:
        """What a message names: the file list, else the folder."""
        return str(self.root) if self.table is None else f"dataset.file_list={self.table}"

    def advice_on(self, class_name: str) -> str:
        """What may be the matter with a class that has too few images; empty where nothing shows."""
        if self.table is None or self.table.suffix.lower() == ".jsonl" or not _SEPARATORS & set(class_name):
            return ""
        return "; labels are separated with ; (cat;dog), nothing else"

    def refuse_missing(self) -> None:
        """Make sure that all files of a list are there, from one look into each folder.

        Raises:
            DataError: a file is missing; names list, line and file.
        """
        if self.table is None:
            return
        missing = _missing(self.root, self.paths)
        if missing:
            first = missing[0]
            count = f" ({len(missing)} of {len(self.paths)} files are missing)" if len(missing) > 1 else ""
            raise DataError(
                f"{self.table} line {self.lines[first]}: no file {self.root / self.paths[first]}{count}; correct the "
                "path, set dataset.root to the folder that the paths are relative to, or set "
                "dataset.skip_unreadable=true to leave out and count such files"
            )


def list_images(root: str | None, file_list: str | None, *, several: bool = False) -> Listing:
    """List the images of `dataset.root`, or those that the file `dataset.file_list` names.

    Args:
        root: folder of class folders, or folder that the file list's paths are relative to.
        file_list: CSV or JSON lines, see `_file_tables`.
        several: whether an image may have no label or more than one, which only a file list can say.

    Raises:
        DataError: nothing given, missing, not readable, or laid out so that a class cannot be told.
    """
    if root is None and file_list is None:
        raise DataError(
            "dataset.root is not set; give the folder of your images (dataset.root=/path/to/images) "
            "or a list of them (dataset.file_list=/path/to/list.csv)"
        )
    if several and file_list is None:
        raise DataError(
            "dataset.labels=several needs a list that names the labels of each image; give one "
            "(dataset.file_list=/path/to/list.csv or list.jsonl), or set dataset.labels=one for class folders"
        )
    folder = None if root is None else Path(root).expanduser()
    if folder is not None and not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"dataset.root={root} {state}; {_EXPECTED}")
    if file_list is not None:
        table = Path(file_list).expanduser()
        rows = read_table(table, several=several)
        return _listing(
            table.parent if folder is None else folder,
            [(row.path, row.labels, row.split == "test") for row in rows],
            has_split=rows[0].split is not None,
            several=several,
            table=table,
            lines=tuple(row.line for row in rows),
        )
    assert folder is not None
    return _list_folder(folder)


def _list_folder(root: Path) -> Listing:
    folders, files = _scan(root)
    if set(PARTS) <= set(folders):
        found = {part: _list_classes(root / part) for part in PARTS}
        ignored = sorted(set(folders) - set(PARTS))
        notes = [f"folders beside train and test were not read: {', '.join(ignored)}"] if ignored else []
        rows = [
            (f"{part}/{path}", (label,), part == "test")
            for part in PARTS
            for label, paths in found[part].items()
            for path in paths
        ]
        return _listing(root, rows, has_split=True, notes=notes)
    lonely = [part for part in PARTS if part in folders and _holds_folders(root / part)]
    if lonely:
        there, absent = lonely[0], PARTS[1 - PARTS.index(lonely[0])]
        others = ", ".join(repr(name) for name in folders if name != there) or "nothing"
        raise DataError(
            f"{root} has a folder {there!r} but no folder {absent!r} (beside it: {others}); rename the one meant to "
            f"{absent!r}, or set dataset.root={root / there} to split that folder"
        )
    _refuse_loose_images(root, files)
    if not folders:
        raise DataError(f"dataset.root={root} contains no folder; {_EXPECTED}")
    found_classes = _list_classes(root)
    return _listing(
        root,
        [(path, (label,), False) for label, paths in found_classes.items() for path in paths],
        has_split=False,
    )


def _list_classes(folder: Path) -> dict[str, list[str]]:
    """Sorted relative paths of the files of each class folder."""
    names, loose = _scan(folder)
    _refuse_loose_images(folder, loose)
    if not names:
        raise DataError(f"{folder} contains no class folder; {_EXPECTED}")
    classes: dict[str, list[str]] = {}
    for name in names:
        inner, files = _scan(folder / name)
        if inner:
            raise DataError(
                f"{folder / name / inner[0]} is a folder inside the class folder {name!r}; put the images directly "
                "into their class folder, point dataset.root at the right level, or name files in dataset.file_list"
            )
        if not files:
            raise DataError(f"class folder {folder / name} is empty; add images or remove the folder")
        label = composed(_readable(name))
        if label in classes:
            raise DataError(f"two folders in {folder} spell the same class {label!r}; rename or merge them")
        classes[label] = [f"{name}/{file}" for file in files]
    return classes


def _listing(
    root: Path,
    rows: Sequence[tuple[str, tuple[str, ...], bool]],
    *,
    has_split: bool,
    several: bool = False,
    notes: Iterable[str] = (),
    table: Path | None = None,
    lines: tuple[int, ...] = (),
) -> Listing:
    """A listing of (path, labels, is test) with ids by class name."""
    class_names = _sorted_classes({label for _, labels, _ in rows for label in labels})
    ids = {name: number for number, name in enumerate(class_names)}
    if several:
        targets = np.zeros((len(rows), len(ids)), dtype=np.uint8)
        for row, (_, labels, _) in zip(targets, rows, strict=True):
            row[[ids[label] for label in labels]] = 1
    else:
        targets = np.array([ids[labels[0]] for _, labels, _ in rows], dtype=np.int64)
    return Listing(
        root=root,
        paths=tuple(path for path, _, _ in rows),
        targets=targets,
        class_names=class_names,
        is_test=np.array([test for _, _, test in rows], dtype=bool) if has_split else None,
        notes=tuple(notes),
        table=table,
        lines=lines,
    )


def _missing(root: Path, paths: Sequence[str]) -> list[int]:
    """Ascending positions of the paths where there is nothing."""
    members: dict[str, dict[str, list[int]]] = {}
    for position, path in enumerate(paths):
        folder, name = os.path.split(os.path.join(root, path))
        members.setdefault(folder, {}).setdefault(name, []).append(position)
    missing = []
    for folder, names in members.items():
        # A folder may spell accents in other code points, or cannot be listed: such a file is asked for itself.
        absent = [name for name in names.keys() - _names_in(folder) if not os.path.exists(os.path.join(folder, name))]
        missing += [position for name in absent for position in names[name]]
    return sorted(missing)


def _names_in(folder: str) -> set[str]:
    """Everything in a folder that needs no second look: a link may lead nowhere."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_symlink()}
    except (OSError, ValueError):
        return set()


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _readable(name: str) -> str:
    """The name of a folder as text: UTF-8 under every locale; bytes that are none are written out, as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of everything else in a folder, sorted, without hidden files and system litter."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name not in _LITTER:
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read ({error.strerror}); check its permissions") from error
    return sorted(folders, key=composed), sorted(files, key=composed)


def _holds_folders(folder: Path) -> bool:
    folders, files = _scan(folder)
    return bool(folders) and not any(Path(name).suffix.lower() in _IMAGE_SUFFIXES for name in files)


def _refuse_loose_images(folder: Path, files: Iterable[str]) -> None:
    loose = [name for name in files if Path(name).suffix.lower() in _IMAGE_SUFFIXES]
    if loose:
        raise DataError(
            f"{folder / loose[0]} lies outside a class folder ({len(loose)} such images); move it into one: {_EXPECTED}"
        )
