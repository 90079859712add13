"""`five_datasets`: CIFAR-10, MNIST, Fashion-MNIST, SVHN and notMNIST as one data set of 50 classes, 32x32 pixels.

Source: S. Ebrahimi et al., Adversarial Continual Learning, ECCV 2020, which chose the five; Z. Wang et al., Learning to
Prompt for Continual Learning, CVPR 2022, which uses them. Class ids: CIFAR-10 0-9, MNIST 10-19, Fashion-MNIST 20-29,
SVHN 30-39 (the digit 0 is 30), notMNIST 40-49 (A-J). Grey images of 28x28 pixels are enlarged to 32x32 with Pillow's
bicubic filter and get three equal channels. A stream in this order is five sessions of ten classes.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from scenarios.datasets._cifar import SIDE
from scenarios.datasets._five_sources import NOT_MNIST, OFFICIAL, SOURCES, Part
from scenarios.datasets._official import Official, data_root
from scenarios.datasets._selection import describe_subset, training_subset
from scenarios.datasets.base import DatasetSettings, ImageDataset, Progress, array_dataset


class FiveDatasetsSettings(DatasetSettings):
    """Settings of the five data sets."""

    root: str | None = Field(
        None, description="folder that holds or gets the official files of all five; null: the user's data folder"
    )
    download: bool = Field(
        True, description="fetch official files where they are missing (about 0.5 GB); notMNIST has to be put there"
    )


def num_classes(settings: FiveDatasetsSettings) -> int:
    """Classes of the data set, whatever the settings."""
    return 10 * len(SOURCES)


def official(settings: FiveDatasetsSettings) -> list[Official]:
    """Records of the official files."""
    return list(OFFICIAL)


def check(settings: FiveDatasetsSettings) -> None:
    """Refuse at once what neither exists nor can be downloaded; notMNIST first, which a user has to bring.

    Raises:
        DataError: one of the five is missing.
    """
    root = data_root(settings.root)
    for record in (NOT_MNIST, *OFFICIAL):
        record.require(root, download=settings.download)


def load(
    settings: FiveDatasetsSettings, *, image_size: int = SIDE, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part: uint8 images `(3, 32, 32)`, 50 classes; `image_size` is not used.

    Args:
        settings: where the files are.
        image_size: not used.
        progress: called with (data sets done, 5).

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    check(settings)
    root = data_root(settings.root)
    for record in OFFICIAL:
        record.provide(root, download=settings.download)
    names = tuple(f"{source.label} {name}" for source in SOURCES for name in source.class_names)
    train: list[Part] = []
    test: list[Part] = []
    notes: list[str] = []
    for number, source in enumerate(SOURCES):
        parts, source_notes = source.read(root)
        train.append(parts[0])
        test.append(parts[1])
        notes += source_notes
        if progress is not None:
            progress(number + 1, len(SOURCES))
    chosen, subset_notes = training_subset(_targets(train), names, settings)

    def made(word: str, parts: list[Part], images: np.ndarray, subset: str, part_notes: list[str]) -> ImageDataset:
        return array_dataset(
            _pixels(parts, images),
            _targets(parts)[images],
            names,
            identity={
                "name": "five_datasets",
                "version": "1",
                "split": "official parts; notMNIST as its folders say",
                "part": word,
                "subset": subset,
            },
            notes=part_notes,
        )

    everything = np.arange(sum(len(part.labels) for part in test))
    return (
        made("train", train, chosen, describe_subset(settings), [*subset_notes, *notes]),
        made("test", test, everything, "all", []),
    )


def _targets(parts: list[Part]) -> np.ndarray:
    return np.concatenate([part.labels + 10 * number for number, part in enumerate(parts)])


def _pixels(parts: list[Part], images: np.ndarray) -> np.ndarray:
    """Pixels uint8 `(images, 3, 32, 32)` of ascending positions in all parts together; only those are enlarged."""
    ends = np.cumsum([len(part.labels) for part in parts])
    pieces = np.split(images, np.searchsorted(images, ends[:-1]))
    out = np.empty((len(images), 3, SIDE, SIDE), dtype=np.uint8)
    row = 0
    for part, piece, end in zip(parts, pieces, ends, strict=True):
        out[row : row + len(piece)] = part.at_side(piece - (end - len(part.labels)))
        row += len(piece)
    return out
