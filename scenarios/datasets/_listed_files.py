"""Image files that official label files or folders name: all are there, and each part becomes a data set.

Pixels are read before the run where they are kept, else at each use only: a set of 20 GB is not read through to be read
again. The identity therefore covers names, labels and sizes of the files, not their bytes.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets._decoding import FilePixels
from scenarios.datasets._image_files import FileReader, ImageFilesSettings, plan_reading, shifted
from scenarios.datasets._selection import class_counts, describe_subset, training_subset
from scenarios.datasets.base import ImageDataset, Normalisation, PixelSource, Progress, label_bytes
from scenarios.errors import DataError


@dataclass(frozen=True)
class LabelledFiles:
    """The files of one part in data-set order.

    Attributes:
        folder: folder of the image files.
        names: their paths in it, `/` between folders.
        targets: class ids int64 `(files,)`, or multi-hot uint8 `(files, classes)`, where a file without a label keeps
            its row.
        known: bool `(files, classes)` or None, as in `ImageDataset`.
    """

    folder: Path
    names: tuple[str, ...]
    targets: np.ndarray
    known: np.ndarray | None = None

    def take(self, positions: np.ndarray) -> LabelledFiles:
        """The files at these positions."""
        known = None if self.known is None else self.known[positions]
        return LabelledFiles(self.folder, tuple(self.names[i] for i in positions), self.targets[positions], known)


def file_datasets(
    train: LabelledFiles,
    test: LabelledFiles,
    class_names: Sequence[str],
    settings: ImageFilesSettings,
    *,
    identity: dict[str, str | int],
    advice: str,
    image_size: int,
    progress: Progress | None,
    normalisation: Normalisation | None = None,
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part, every file found.

    Args:
        train: files and labels of the training part, before any subset.
        test: of the test part.
        class_names: one name a class id.
        settings: subset and decoding.
        identity: name, version and rules of the labels.
        advice: what to do when a file is missing or damaged, an order.
        image_size: side in pixels where the settings leave it open.
        progress: called with (files done, files in all) where files are read before the run.
        normalisation: mean and standard deviation of the data set, or None where none are known.

    Raises:
        DataError: a missing file; an unreadable one, or no room, where pixels are kept.
    """
    chosen, subset_notes = training_subset(train.targets, class_names, settings)
    parts = {"train": train.take(chosen), "test": test}
    sizes = {word: _sizes(part, advice) for word, part in parts.items()}
    total = sum(len(part.names) for part in parts.values())
    reader = plan_reading(settings, image_size, total)
    before = {"train": 0, "test": len(chosen)}
    subsets = {"train": describe_subset(settings), "test": "all"}
    first_notes = {"train": subset_notes, "test": []}

    def made(word: str) -> ImageDataset:
        part = parts[word]
        pixels, reading_notes, digests = _pixels(part, reader, advice, shifted(progress, before[word], total))
        return ImageDataset(
            pixels,
            part.targets,
            class_names,
            known=part.known,
            normalisation=normalisation,
            file_digests=digests,
            identity={
                **identity,
                "part": word,
                "subset": subsets[word],
                "image_size": reader.decoder.size,
                "interpolation": reader.decoder.interpolation,
                "sha256": _digest(part, sizes[word], class_names),
            },
            notes=[*first_notes[word], *reading_notes, *_label_notes(part, class_names, word)],
        )

    return made("train"), made("test")


def _sizes(part: LabelledFiles, advice: str) -> np.ndarray:
    """Bytes of each file, int64 `(files,)`, from one look into each folder."""
    found: dict[str, int] = {}
    for inner in sorted({posixpath.dirname(name) for name in part.names}):
        try:
            with os.scandir(part.folder / inner) as entries:
                found |= {posixpath.join(inner, e.name): e.stat().st_size for e in entries if e.is_file()}
        except OSError as error:
            folder = part.folder / inner
            raise DataError(f"folder {folder} cannot be read ({error.strerror}); {advice}") from error
    # A name that another system spells in other code points is still found when it is asked for.
    sizes = [found[name] if name in found else _size(part.folder / name) for name in part.names]
    missing = [name for name, size in zip(part.names, sizes, strict=True) if size < 0]
    if missing:
        count = f" ({len(missing)} of {len(sizes)} images are missing)" if len(missing) > 1 else ""
        raise DataError(f"image {part.folder / missing[0]} is missing{count}; {advice}")
    return np.array(sizes, dtype=np.int64)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else -1
    except (OSError, ValueError):
        return -1


def _pixels(
    part: LabelledFiles, reader: FileReader, advice: str, report: Progress | None
) -> tuple[PixelSource, list[str], list[str] | None]:
    """Pixels of a part, what a reader of the results should know about them, and hashes of the files if known."""
    paths = [part.folder / name for name in part.names]
    if not reader.keeps:
        return FilePixels(paths, reader.decoder, checked=False), [], None
    files = reader.read(paths, report)
    if files.skipped:
        count = f"; {len(files.skipped)} of {len(paths)} files cannot be used" if len(files.skipped) > 1 else ""
        raise DataError(f"{files.skipped[0]}{count}; {advice}")
    return files.pixels, files.notes, files.digests


def _digest(part: LabelledFiles, sizes: np.ndarray, class_names: Sequence[str]) -> str:
    """Hashes class names, file names, sizes and labels, whatever the folder is called."""
    text = "\n".join([*class_names, "", *part.names])
    digest = hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape"))
    digest.update(sizes.astype("<i8").tobytes())
    digest.update(label_bytes(part.targets, part.known))
    return digest.hexdigest()


def _label_notes(part: LabelledFiles, class_names: Sequence[str], word: str) -> list[str]:
    """What is unusual about the labels of a part, counted, beside what the plan of the stream tells of training."""
    notes = []
    blank = np.count_nonzero(~part.targets.any(axis=1)) if part.targets.ndim == 2 else 0
    if blank and word == "test":
        notes.append(f"{blank} of {len(part.names)} test images have no label; no evaluation uses them")
    absent = np.flatnonzero(class_counts(part.targets, len(class_names)) == 0)
    if len(absent) and word == "test":
        notes.append(
            f"{len(absent)} of {len(class_names)} classes have no test image (first: {class_names[absent[0]]!r})"
        )
    if part.known is not None and not part.known.all():
        notes.append(f"{np.count_nonzero(~part.known)} labels of {word} images are neither positive nor negative")
    return notes
