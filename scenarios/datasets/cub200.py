"""`cub200`: Caltech-UCSD Birds-200-2011, 200 classes, 5,994 training and 5,794 test photographs.

Source: C. Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001. Images, classes and split are those of
the official tables `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from scenarios._archives import Limits
from scenarios._downloads import RemoteFile
from scenarios.datasets._class_files import table
from scenarios.datasets._image_files import ImageFilesSettings
from scenarios.datasets._listed_files import LabelledFiles, file_datasets
from scenarios.datasets._official import Official, data_root, first_missing
from scenarios.datasets.base import ImageDataset, Progress
from scenarios.errors import DataError

_FOLDER = "CUB_200_2011"
_TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")

CUB200 = Official(
    name="cub200",
    files=(
        RemoteFile(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "CUB_200_2011.tgz",
            md5="97eceeb196236b17998738112f37df78",
        ),
    ),
    tree=f"{_FOLDER}/ with {', '.join(_TABLES)} and images/",
    missing=first_missing(*(f"{_FOLDER}/{name}" for name in (*_TABLES, "images"))),
    images={"train": 5_994, "test": 5_794},
    limits=Limits(max_files=40_000, max_bytes=4_000_000_000),
    unpacked_bytes=1_300_000_000,
)
"""The official files."""


class Cub200Settings(ImageFilesSettings):
    """Settings of CUB-200-2011."""

    root: str | None = Field(None, description="folder that holds or gets CUB_200_2011; null: the user's data folder")
    download: bool = Field(True, description="fetch the official archive where it is missing (about 1.2 GB)")


def num_classes(settings: Cub200Settings) -> int:
    """Classes of the data set, whatever the settings."""
    return 200


def official(settings: Cub200Settings) -> list[Official]:
    """Records of the official files."""
    return [CUB200]


def check(settings: Cub200Settings) -> None:
    """Refuse at once what neither exists nor may be downloaded."""
    CUB200.require(data_root(settings.root), download=settings.download)


def load(
    settings: Cub200Settings, *, image_size: int, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Official training and test part, uint8 `(3, size, size)`, classes in the order of `classes.txt`.

    Args:
        settings: where the files are.
        image_size: side in pixels where `settings.size` is None.
        progress: called with (files done, files in all).

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    root = data_root(settings.root)
    CUB200.provide(root, download=settings.download)
    folder = root / _FOLDER
    advice = f"delete {folder} and unpack the official archive again (dataset.download=true does)"
    names, labels, in_train, classes = (_column(folder / name, advice) for name in _TABLES)
    for name, column in (("image_class_labels.txt", labels), ("train_test_split.txt", in_train)):
        if column.keys() != names.keys():
            strange = min(column.keys() ^ names.keys())
            raise DataError(f"{folder / name} and images.txt list different images (first: {strange}); {advice}")
    unknown = sorted(set(labels.values()) - classes.keys())
    if unknown:
        raise DataError(f"{folder / 'image_class_labels.txt'}: class {unknown[0]} is not in classes.txt; {advice}")
    ids = {key: number for number, key in enumerate(classes)}

    def part(flag: str) -> LabelledFiles:
        chosen = [key for key in names if in_train[key] == flag]
        targets = np.array([ids[labels[key]] for key in chosen], dtype=np.int64)
        return LabelledFiles(folder / "images", tuple(names[key] for key in chosen), targets)

    return file_datasets(
        part("1"),
        part("0"),
        [name.split(".", 1)[-1].replace("_", " ") for name in classes.values()],
        settings,
        identity={"name": "cub200", "version": "2011", "split": "official", "rules": "official tables"},
        advice=advice,
        image_size=image_size,
        progress=progress,
    )


def _column(path: Path, advice: str) -> dict[str, str]:
    """Second word of each line by its first, in the order of the file."""
    column: dict[str, str] = {}
    for number, words in table(path, advice):
        if len(words) != 2 or words[0] in column:
            raise DataError(f"{path} line {number}: no number of its own and one word; {advice}")
        column[words[0]] = words[1]
    if not column:
        raise DataError(f"{path} is empty; {advice}")
    return column
