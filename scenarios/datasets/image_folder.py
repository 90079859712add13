"""`image_folder`: your own images, as train/ and test/ folders, as one folder of class folders, or as a file list.

Every file is opened and decoded once before anything trains, so that a damaged one is found in the first minute and
not in the last hour. Images of several labels come as a file list: CSV with semicolons between labels, or JSON lines.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from scenarios.datasets._decoding import ReadFiles
from scenarios.datasets._folder_listing import Listing, list_images
from scenarios.datasets._image_files import ImageFilesSettings, plan_reading, shifted
from scenarios.datasets._selection import class_counts, describe_subset, stratified_split, training_subset
from scenarios.datasets.base import ImageDataset, Progress
from scenarios.errors import DataError

DEFAULT_TEST_PCT = 20
"""Per cent of each class kept for testing where the data bring no split and none is set."""


class ImageFolderSettings(ImageFilesSettings):
    """Settings of your own images."""

    root: str | None = Field(None, description="folder with train/ and test/, or with class folders; see file_list")
    file_list: str | None = Field(
        None,
        description="CSV file with the header path,label or path,label,split, or .jsonl file; paths relative to root",
    )
    labels: Literal["one", "several"] = Field(
        "one", description="labels an image has; several: file_list has them as cat;dog, or as a list in .jsonl"
    )
    test_pct: int | None = Field(
        None, ge=1, le=99, description="per cent of each class for testing where the data bring no split; null: 20"
    )
    split_seed: int = Field(0, ge=0, description="seed of that split")
    skip_unreadable: bool = Field(False, description="leave out files that cannot be read and report them")
    allow_untested_classes: bool = Field(False, description="accept classes without a test image")

    @property
    def multi_label(self) -> bool:
        """Whether `labels` is several."""
        return self.labels == "several"


def check(settings: ImageFolderSettings) -> None:
    """Find a missing folder, an empty or untested class and the like, without opening an image.

    Raises:
        DataError: what is wrong, where, and what to do.
    """
    select(settings)


def num_classes(settings: ImageFolderSettings) -> int | None:
    """Classes of the listed images; None where these cannot be listed, which `check` explains."""
    try:
        return len(list_images(settings.root, settings.file_list, several=settings.multi_label).class_names)
    except DataError:
        return None


def select(settings: ImageFolderSettings) -> tuple[Listing, Selection]:
    """The images on disk and those of both parts, without opening one.

    Raises:
        DataError: a missing folder or file, an empty or untested class.
    """
    listing = list_images(settings.root, settings.file_list, several=settings.multi_label)
    if not settings.skip_unreadable:
        listing.refuse_missing()
    return listing, _choose(listing, settings)


def load(
    settings: ImageFolderSettings, *, image_size: int, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part: uint8 images `(3, size, size)`, class ids by sorted class name.

    Args:
        settings: where the images are and how to read them.
        image_size: side in pixels where `settings.size` is None.
        progress: called with (files done, files in all).

    Raises:
        DataError: a missing folder, an empty or untested class, an unreadable file.
    """
    listing, selection = select(settings)
    total = len(selection.train) + len(selection.test)
    reader = plan_reading(settings, image_size, total)

    def read(positions: np.ndarray, before: int) -> _ReadPart:
        paths = [listing.root / listing.paths[position] for position in positions]
        files = reader.read(paths, shifted(progress, before, total))
        return _ReadPart(positions[files.kept], files)

    train, test = read(selection.train, 0), read(selection.test, len(selection.train))
    unreadable = [*train.files.skipped, *test.files.skipped]
    if unreadable and not settings.skip_unreadable:
        count = f"{len(unreadable)} of {total} files" if len(unreadable) > 1 else "a file"
        raise DataError(
            f"{unreadable[0]}; {count} cannot be used: repair or delete, "
            "or set dataset.skip_unreadable=true to leave out and count them"
        )
    if unreadable:
        _check_classes(listing, train.positions, test.positions, settings, kind="readable ")
    notes = [*listing.notes, *selection.notes]
    identity: dict[str, str | int] = {
        "name": "image_folder",
        "version": "1",
        "split": selection.split,
        "image_size": reader.decoder.size,
        "interpolation": reader.decoder.interpolation,
    }
    return (
        _dataset(listing, train, {**identity, "part": "train", "subset": describe_subset(settings)}, notes),
        _dataset(listing, test, {**identity, "part": "test", "subset": "all"}, []),
    )


@dataclass(frozen=True)
class Selection:
    """Positions in the listing of both parts, and how they were found."""

    train: np.ndarray
    test: np.ndarray
    split: str
    notes: list[str]


def _choose(listing: Listing, settings: ImageFolderSettings) -> Selection:
    """Split, check the classes, draw the subset."""
    if listing.is_test is None:
        test_pct = DEFAULT_TEST_PCT if settings.test_pct is None else settings.test_pct
        _check_divisible(listing)
        train, test = stratified_split(
            listing.targets, listing.class_names, test_pct=test_pct, seed=settings.split_seed
        )
        split = f"test_pct={test_pct}, seed {settings.split_seed}"
        share = f"{'about ' if settings.multi_label else ''}{test_pct} %"
        notes = [f"no split in the data: {share} of each class drawn for testing (seed {settings.split_seed})"]
    else:
        if settings.test_pct is not None:
            raise DataError(
                f"dataset.test_pct={settings.test_pct} has no effect, the data bring their own split; leave it null"
            )
        train, test = np.flatnonzero(~listing.is_test), np.flatnonzero(listing.is_test)
        split, notes = "given by the data", []
    _check_classes(listing, train, test, settings)
    subset, subset_notes = training_subset(listing.targets[train], listing.class_names, settings)
    return Selection(train[subset], test, split, notes + subset_notes)


def _check_divisible(listing: Listing) -> None:
    """A class without a given split needs two images."""
    for name, count in zip(listing.class_names, class_counts(listing.targets, len(listing.class_names)), strict=True):
        if count == 1:
            raise DataError(
                f"{listing.source}: class {name!r} has 1 image, which cannot be split into train and test; "
                f"add images or remove the class{listing.advice_on(name)}"
            )


def _check_classes(
    listing: Listing, train: np.ndarray, test: np.ndarray, settings: ImageFolderSettings, kind: str = ""
) -> None:
    """Every class needs a training image and, unless allowed otherwise, a test image."""
    names = np.array(listing.class_names, dtype=object)
    for word, positions in (("training", train), ("test", test)):
        counts = class_counts(listing.targets[positions], len(names))
        lacking = names[counts == 0]
        if len(lacking) == 0 or (word == "test" and settings.allow_untested_classes and len(positions)):
            continue
        more = f" (and {len(lacking) - 1} more classes)" if len(lacking) > 1 else ""
        advice = " or set dataset.allow_untested_classes=true" if word == "test" and len(positions) else ""
        raise DataError(
            f"{listing.source}: class {lacking[0]!r}{more} has no {kind}{word} image; add some, remove the class"
            f"{',' if advice else ''}{advice}{listing.advice_on(lacking[0])}"
        )


@dataclass(frozen=True)
class _ReadPart:
    """What came of reading one part: positions in the listing of its readable files, and these."""

    positions: np.ndarray
    files: ReadFiles


def _dataset(listing: Listing, part: _ReadPart, identity: dict[str, str | int], notes: Sequence[str]) -> ImageDataset:
    """Hashes relative path, class names and bytes of every file in data-set order, whatever the folder is called."""
    digest = hashlib.sha256()
    targets = listing.targets[part.positions]
    for position, target, file_digest in zip(part.positions, targets, part.files.digests, strict=True):
        labels = np.flatnonzero(target) if targets.ndim == 2 else (target,)
        names = (listing.class_names[label] for label in labels)
        line = "\0".join([listing.paths[position], *names, file_digest]) + "\n"
        digest.update(unicodedata.normalize("NFC", line).encode("utf-8", "surrogateescape"))
    own_notes = [*notes, *part.files.notes]
    if part.files.skipped:
        own_notes.append(f"{len(part.files.skipped)} unreadable files were left out of {identity['part']}")
    # Of training images without a label the plan of the stream tells.
    if identity["part"] == "test" and targets.ndim == 2 and not targets.any(axis=1).all():
        blank = np.count_nonzero(~targets.any(axis=1))
        own_notes.append(f"{blank} test images have no label")
    return ImageDataset(
        part.files.pixels,
        targets,
        listing.class_names,
        identity={**identity, "sha256": digest.hexdigest()},
        notes=own_notes,
        skipped=part.files.skipped,
        file_digests=part.files.digests,
    )
