"""`voc2007`: PASCAL VOC 2007, 20 classes, several labels an image; 5,011 trainval and 4,952 test photographs.

Source: M. Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010. Layout, archives and
checksums are the official ones; labels come from the class lists `<class>_<split>.txt`, images are sorted by id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from scenarios._archives import Limits
from scenarios._downloads import RemoteFile
from scenarios.datasets._image_files import ImageFilesSettings
from scenarios.datasets._listed_files import LabelledFiles, file_datasets
from scenarios.datasets._official import Official, data_root
from scenarios.datasets._voc_lists import class_list, read_voc
from scenarios.datasets.base import ImageDataset, Progress

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes, sorted; the column of a class is its place here."""

SPLITS = ("trainval", "test")
"""Training and test part."""

_HOST = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/"
_KIT = Path("VOCdevkit") / "VOC2007"


def _missing(root: Path) -> Path | None:
    """The first class list that is not there."""
    folder = root / _KIT / "ImageSets" / "Main"
    paths = (class_list(folder, name, split) for split in SPLITS for name in CLASS_NAMES)
    return next((path for path in paths if not path.is_file()), None)


VOC2007 = Official(
    name="voc2007",
    files=tuple(
        RemoteFile(_HOST + name, name, md5=md5)
        for name, md5 in (
            ("VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
            ("VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
        )
    ),
    tree="VOCdevkit/VOC2007/ with ImageSets/Main and JPEGImages",
    missing=_missing,
    images={"train": 5_011, "test": 4_952},
    limits=Limits(max_files=60_000, max_bytes=3_000_000_000),
    unpacked_bytes=950_000_000,
)
"""The official files."""


class Voc2007Settings(ImageFilesSettings):
    """Settings of PASCAL VOC 2007."""

    root: str | None = Field(
        None, description="folder that holds or gets the official VOCdevkit; null: the user's data folder"
    )
    download: bool = Field(True, description="fetch the official archives where they are missing (about 0.9 GB)")
    difficult: Literal["negative", "ignore", "positive"] = Field(
        "negative",
        description="what a class is to an image that has only difficult objects of it; ignore: neither trained nor "
        "evaluated; negative is published",
    )

    @property
    def multi_label(self) -> bool:
        """True: a photograph shows several classes."""
        return True


def num_classes(settings: Voc2007Settings) -> int:
    """Classes of the data set, whatever the settings."""
    return len(CLASS_NAMES)


def official(settings: Voc2007Settings) -> list[Official]:
    """Records of the official files."""
    return [VOC2007]


def check(settings: Voc2007Settings) -> None:
    """Refuse at once class lists that are neither there nor to be downloaded.

    Raises:
        DataError: a class list is missing although `download` is false.
    """
    VOC2007.require(data_root(settings.root), download=settings.download)


def load(
    settings: Voc2007Settings, *, image_size: int, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Parts trainval and test: uint8 images `(3, size, size)`, multi-hot rows of 20 classes.

    Args:
        settings: where the files are, what difficult objects count.
        image_size: side in pixels where `settings.size` is None.
        progress: called with (files done, files in all).

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    root = data_root(settings.root)
    VOC2007.provide(root, download=settings.download)
    advice = f"delete {root / _KIT} and unpack the official archives again (dataset.download=true does)"

    def part(split: str) -> LabelledFiles:
        labels = read_voc(root / _KIT / "ImageSets" / "Main", split, CLASS_NAMES, advice=advice)
        names = tuple(f"{image}.jpg" for image in labels.ids)
        return LabelledFiles(root / _KIT / "JPEGImages", names, *labels.targets(settings.difficult))

    return file_datasets(
        part("trainval"),
        part("test"),
        CLASS_NAMES,
        settings,
        identity={
            "name": "voc2007",
            "version": "2007",
            "split": "trainval, test",
            "rules": f"class lists, difficult={settings.difficult}",
        },
        advice=advice,
        image_size=image_size,
        progress=progress,
    )
