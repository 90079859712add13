"""What is on disk of a data set, compared with the records of its official files: counts and hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from scenarios._downloads import RemoteFile, measure
from scenarios.datasets._official import Official, data_root
from scenarios.datasets.base import DatasetSettings, ImageDataset, Progress
from scenarios.errors import DataError
from scenarios.pins import Pins

State = Literal["ok", "pinned", "unpinned", "absent", "missing", "wrong"]

_SIDE = 8
"""Images are decoded completely, but only so much of them is kept."""


@dataclass(frozen=True)
class CheckedPart:
    """One row of a check.

    Attributes:
        part: a file, `train`, `test`, or `images` where these could not be read.
        found: what is there, in words.
        expected: what the record says, in words.
        state: ok; pinned: no official hash is known, it is that of the first time; unpinned: the next use pins it;
            absent: a file that is not needed any more; missing: one that is needed; wrong.
        advice: what to do, an order; empty where nothing is to be done.
    """

    part: str
    found: str
    expected: str
    state: State
    advice: str = ""

    @property
    def good(self) -> bool:
        """Whether the data set can be used as it is."""
        return self.state not in ("missing", "wrong")


def check_parts(
    module: ModuleType, settings: DatasetSettings, *, pins: Pins, progress: Progress | None
) -> list[CheckedPart]:
    """Rows for official files, and for both parts, of which every image is decoded; nothing is downloaded.

    Args:
        module: of the data set.
        settings: where it is.
        pins: hashes seen the first time.
        progress: called with (files done, files in all).

    Raises:
        DataError: images of one's own that are not given, not there or badly laid out; a damaged pin file.
    """
    records: Sequence[Official] = module.official(settings) if hasattr(module, "official") else ()
    if not records and hasattr(module, "check"):
        module.check(settings)  # of images that no record knows: where nothing was given there is nothing to list
    root = data_root(getattr(settings, "root", None))
    rows = [_file_row(record, file, root, pins) for record in records for file in record.files]
    rows += [row for record in records if not record.files for row in _tree_rows(record, root)]
    everything: dict[str, Any] = {
        "train_per_class": None,
        "download": False,
        "cache": "ram",
        "size": _SIDE,
    }
    known = {key: value for key, value in everything.items() if key in type(settings).model_fields}
    if not all(row.good for row in rows):
        return rows
    try:
        parts = module.load(settings.model_copy(update=known), image_size=_SIDE, progress=progress)
    except DataError as error:
        return [*rows, CheckedPart("images", str(error), _expected(records), "wrong", "see what was found")]
    known_numbers = all(record.images for record in records)
    images = {word: sum(r.images[word] for r in records) if known_numbers else 0 for word in ("train", "test")}
    return [*rows, *(_part_row(word, part, images[word]) for word, part in zip(images, parts, strict=True))]


def _file_row(record: Official, file: RemoteFile, root: Path, pins: Pins) -> CheckedPart:
    path = record.place(root) / file.name
    expected = file.words.removeprefix(f"{file.name} ").strip("()")
    if not path.is_file():
        needed = record.missing(root) is not None
        state: State = "missing" if needed else "absent"
        return CheckedPart(str(path), "no such file", expected, state, record.by_hand(root) if needed else "")
    found = measure(path)
    key = record.pin_key(file)
    pin = pins.get(key) if file.sha256 is None and file.md5 is None else None
    words = f"{found.bytes:,} bytes, md5 {found.md5}, sha256 {found.sha256}, {found.kind}"
    if pin is not None:
        expected = f"sha256 {pin}, seen the first time ({key} in {pins.path})"
    if found.differences(file) or pin not in (None, found.sha256):
        return CheckedPart(str(path), words, expected, "wrong", record.advice(root))
    if file.sha256 is None and file.md5 is None:
        return CheckedPart(str(path), words, expected, "unpinned" if pin is None else "pinned")
    return CheckedPart(str(path), words, expected, "ok")


def _tree_rows(record: Official, root: Path) -> list[CheckedPart]:
    """A row for what a user has to bring, where it is missing."""
    missing = record.missing(root)
    if missing is None:
        return []
    return [CheckedPart(str(missing), "nothing there", record.tree, "missing", record.by_hand(root))]


def _part_row(word: str, part: ImageDataset, expected: int) -> CheckedPart:
    found = f"{len(part):,} images of {part.num_classes} classes, sha256 {part.identity['sha256']}"
    if part.skipped:
        found += f", {len(part.skipped)} files cannot be read (first: {part.skipped[0]})"
    if not expected:
        return CheckedPart(word, found, "no official number", "ok")
    wrong = len(part) != expected
    advice = "see that nothing was added or lost, or unpack the official files again" if wrong else ""
    return CheckedPart(word, found, f"{expected:,} images", "wrong" if wrong else "ok", advice)


def _expected(records: Sequence[Official]) -> str:
    words = [f"{count:,} {word}" for record in records for word, count in record.images.items()]
    return f"images: {', '.join(words)}" if words else "readable images"
