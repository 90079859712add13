"""`tiny_imagenet`: Tiny-ImageNet, 200 classes, 100,000 training and 10,000 test images of 64x64 pixels.

Source: Stanford CS231N, Tiny ImageNet Challenge, 2015. Class ids by sorted WordNet id. The official validation images
are the test part, because the labels of the official test images were never published.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from scenarios._archives import Limits
from scenarios._downloads import RemoteFile
from scenarios.datasets._class_files import class_files, folder_names, image_names, table
from scenarios.datasets._image_files import ImageFilesSettings
from scenarios.datasets._listed_files import LabelledFiles, file_datasets
from scenarios.datasets._official import Official, data_root, first_missing
from scenarios.datasets.base import ImageDataset, Normalisation, Progress
from scenarios.errors import DataError

NORMALISATION: Normalisation = ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
"""Mean and standard deviation of the training images, as published code of Si-Blurry streams has them."""

_FOLDER = "tiny-imagenet-200"

TINY_IMAGENET = Official(
    name="tiny_imagenet",
    files=(
        RemoteFile(
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "tiny-imagenet-200.zip",
            md5="90528d7ca1a48142e341f4ef8d21d0de",
        ),
    ),
    tree=f"{_FOLDER}/ with words.txt, train/<wnid>/images, val/images and val/val_annotations.txt",
    missing=first_missing(
        *(f"{_FOLDER}/{name}" for name in ("words.txt", "train", "val/images", "val/val_annotations.txt"))
    ),
    images={"train": 100_000, "test": 10_000},
    limits=Limits(max_files=150_000, max_bytes=1_000_000_000),
    unpacked_bytes=600_000_000,
)
"""The official files; unpacked, so many small ones take twice their bytes."""


class TinyImagenetSettings(ImageFilesSettings):
    """Settings of Tiny-ImageNet."""

    root: str | None = Field(
        None, description="folder that holds or gets tiny-imagenet-200; null: the user's data folder"
    )
    download: bool = Field(True, description="fetch the official archive where it is missing (about 240 MB)")


def num_classes(settings: TinyImagenetSettings) -> int:
    """Classes of the data set, whatever the settings."""
    return 200


def official(settings: TinyImagenetSettings) -> list[Official]:
    """Records of the official files."""
    return [TINY_IMAGENET]


def check(settings: TinyImagenetSettings) -> None:
    """Refuse at once what neither exists nor may be downloaded."""
    TINY_IMAGENET.require(data_root(settings.root), download=settings.download)


def load(
    settings: TinyImagenetSettings, *, image_size: int, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation images, uint8 `(3, size, size)`, 200 classes.

    Args:
        settings: where the files are.
        image_size: side in pixels where `settings.size` is None.
        progress: called with (files done, files in all).

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    root = data_root(settings.root)
    TINY_IMAGENET.provide(root, download=settings.download)
    folder = root / _FOLDER
    advice = f"delete {folder} and unpack the official archive again (dataset.download=true does)"
    wnids = folder_names(folder / "train", advice)
    names, targets = class_files(folder / "train", wnids, advice, inside="images")
    return file_datasets(
        LabelledFiles(folder / "train", names, targets),
        _validation_files(folder / "val", wnids, advice),
        _class_names(folder / "words.txt", wnids, advice),
        settings,
        identity={"name": "tiny_imagenet", "version": "200", "split": "train, val", "rules": "sorted wnids"},
        advice=advice,
        image_size=image_size,
        progress=progress,
        normalisation=NORMALISATION,
    )


def _validation_files(folder: Path, wnids: list[str], advice: str) -> LabelledFiles:
    annotations = folder / "val_annotations.txt"
    ids = {wnid: number for number, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, words in table(annotations, advice, separator="\t"):
        if len(words) < 2 or words[1] not in ids:
            raise DataError(f"{annotations} line {number}: no image name and class of train/; {advice}")
        labels[words[0]] = ids[words[1]]
    names = image_names(folder / "images", advice)
    strange = sorted(set(names) ^ labels.keys())
    if strange:
        raise DataError(f"{annotations} and {folder / 'images'} differ (first: {strange[0]!r}); {advice}")
    targets = np.array([labels[name] for name in names], dtype=np.int64)
    return LabelledFiles(folder / "images", tuple(names), targets)


def _class_names(words: Path, wnids: list[str], advice: str) -> list[str]:
    """The first synonym of each class; its WordNet id where two classes share that or it has none."""
    synonyms = {parts[0]: parts[1].split(",")[0].strip() for _, parts in table(words, advice, "\t") if len(parts) == 2}
    names = [synonyms.get(wnid, wnid) for wnid in wnids]
    return [name if names.count(name) == 1 else wnid for name, wnid in zip(names, wnids, strict=True)]
