"""`coco2014`: COCO 2014, 80 classes, several labels an image; 82,783 training and 40,504 validation photographs.

Source: T.-Y. Lin et al., Microsoft COCO: common objects in context, ECCV 2014. The official layout is the default; keys
name other folders and files, so that any set of that format can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from scenarios.datasets._coco_json import read_coco
from scenarios.datasets._image_files import CacheMode, ImageFilesSettings
from scenarios.datasets._listed_files import LabelledFiles, file_datasets
from scenarios.datasets.base import ImageDataset, Progress
from scenarios.errors import DataError

_STEPS = (
    "unpack train2014.zip and val2014.zip (http://images.cocodataset.org/zips, about 19 GB) and "
    "annotations_trainval2014.zip (http://images.cocodataset.org/annotations) into one folder, so that it has "
    "train2014/, val2014/, annotations/instances_train2014.json and annotations/instances_val2014.json, and set "
    "dataset.root to it"
)

_OFFICIAL_BYTES = 100_000_000
"""The official training annotations are more than three times as large, toys in their format far smaller."""


class Coco2014Settings(ImageFilesSettings):
    """Settings of COCO 2014, or of another set in its format."""

    root: str | None = Field(None, description="folder that holds the official folders; must be given")
    train_images: str = Field("train2014", min_length=1, description="folder of the training images in root")
    test_images: str = Field("val2014", min_length=1, description="folder of the test images in root")
    train_annotations: str = Field(
        "annotations/instances_train2014.json", min_length=1, description="labels of the training images in root"
    )
    test_annotations: str = Field(
        "annotations/instances_val2014.json", min_length=1, description="labels of the test images in root"
    )
    cache: CacheMode = Field(
        "mmap",
        description="decoded images stay in a file that later runs and other processes share (mmap: 19 GB at 224 "
        "pixels), in memory (ram), or are decoded anew at each use (none)",
    )
    crowd: Literal["positive", "drop"] = Field(
        "positive", description="whether a crowd is a label of its image; positive is published"
    )

    @property
    def multi_label(self) -> bool:
        """True: a photograph shows several classes."""
        return True


def num_classes(settings: Coco2014Settings) -> int | None:
    """80 of the official annotations; None where other ones are named or lie in their place."""
    if settings.train_annotations != Coco2014Settings().train_annotations:
        return None
    path = _root(settings) / settings.train_annotations
    if settings.root is not None and path.is_file() and path.stat().st_size < _OFFICIAL_BYTES:
        return None
    return 80


def check(settings: Coco2014Settings) -> None:
    """Find a missing folder or file without reading one.

    Raises:
        DataError: what is missing, and the steps to get it.
    """
    if settings.root is None:
        raise DataError(f"dataset.root is not set; {_STEPS}")
    root = _root(settings)
    if not root.is_dir():
        raise DataError(f"dataset.root={settings.root} is no folder; {_STEPS}")
    for key, value, is_folder in _places(settings):
        path = root / value
        if not (path.is_dir() if is_folder else path.is_file()):
            kind = "folder" if is_folder else "file"
            raise DataError(f"dataset.{key}={value}: no {kind} {path}; name another, or {_STEPS}")


def load(
    settings: Coco2014Settings, *, image_size: int, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation part: uint8 images `(3, size, size)`, multi-hot rows with a column for each category.

    Images keep the order of the annotation file, columns are sorted by category name. An image without a label keeps
    its row, all zeros.

    Args:
        settings: where the files are, whether crowds count.
        image_size: side in pixels where `settings.size` is None.
        progress: called with (files done, files in all) where decoded images are kept.

    Raises:
        DataError: missing or damaged files, annotations that contradict themselves or each other.
    """
    check(settings)
    root = _root(settings)
    advice = "unpack the archive it came from again"
    train_path, test_path = root / settings.train_annotations, root / settings.test_annotations
    train, test = (read_coco(path, advice=advice) for path in (train_path, test_path))
    if train.class_names != test.class_names:
        strange = min({*train.class_names} ^ {*test.class_names})
        raise DataError(
            f"{train_path} and {test_path} have different categories (first: {strange!r} is in one of them); name "
            "files of one data set in dataset.train_annotations and dataset.test_annotations"
        )
    return file_datasets(
        LabelledFiles(root / settings.train_images, train.file_names, train.targets(settings.crowd)),
        LabelledFiles(root / settings.test_images, test.file_names, test.targets(settings.crowd)),
        train.class_names,
        settings,
        identity={
            "name": "coco2014",
            "version": f"{settings.train_annotations}, {settings.test_annotations}",
            "split": f"{settings.train_images}, {settings.test_images}",
            "rules": f"instances, crowd={settings.crowd}",
        },
        advice=advice,
        image_size=image_size,
        progress=progress,
    )


def _root(settings: Coco2014Settings) -> Path:
    return Path(settings.root or "").expanduser()


def _places(settings: Coco2014Settings) -> Iterator[tuple[str, str, bool]]:
    """(key, value, whether it is a folder) of everything that must be there."""
    yield "train_images", settings.train_images, True
    yield "test_images", settings.test_images, True
    yield "train_annotations", settings.train_annotations, False
    yield "test_annotations", settings.test_annotations, False
