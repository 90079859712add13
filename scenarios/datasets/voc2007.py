"""`voc2007`: PASCAL VOC 2007, 20 classes, several labels an image; 5,011 trainval and 4,952 test photographs.

Source: M. Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010. Layout, archives and
checksums are the official ones; labels come from the class lists `<class>_<split>.txt`, images are sorted by id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from scenarios.datasets._downloads import clear_errors, data_root
from scenarios.datasets._image_files import ImageFilesSettings
from scenarios.datasets._listed_files import LabelledFiles, file_datasets
from scenarios.datasets._voc_lists import class_list, read_voc
from scenarios.datasets.base import ImageDataset, Progress
from scenarios.errors import DataError

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes, sorted; the column of a class is its place here."""

ARCHIVES = {
    "trainval": ("VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
    "test": ("VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
}
"""Official archive and its md5 for each split."""

HOST = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007/"
"""Where the archives are."""

_KIT = Path("VOCdevkit") / "VOC2007"


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


def check(settings: Voc2007Settings) -> None:
    """Refuse at once class lists that are neither there nor to be downloaded.

    Raises:
        DataError: a class list is missing although `download` is false.
    """
    root = data_root(settings.root)
    if settings.download:
        return
    for split in ARCHIVES:
        missing = _missing_list(root, split)
        if missing is not None:
            raise DataError(
                f"dataset=voc2007: class list {missing} is missing; set dataset.download=true, or {_by_hand(root)}, "
                "or point dataset.root at the folder that contains VOCdevkit"
            )


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
    check(settings)
    root = data_root(settings.root)
    for split in ARCHIVES:
        if _missing_list(root, split) is not None:
            _fetch(root, split)
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


def _missing_list(root: Path, split: str) -> Path | None:
    """The first class list of a split that is not there."""
    paths = (class_list(root / _KIT / "ImageSets" / "Main", name, split) for name in CLASS_NAMES)
    return next((path for path in paths if not path.is_file()), None)


def _fetch(root: Path, split: str) -> None:
    """Download and unpack the archive of a split; one already in the folder is only checked and unpacked."""
    from torchvision.datasets.utils import download_and_extract_archive

    name, md5 = ARCHIVES[split]
    with clear_errors("voc2007", root, by_hand=_by_hand(root), download=True, megabytes=2000):
        download_and_extract_archive(HOST + name, str(root), filename=name, md5=md5)


def _by_hand(root: Path) -> str:
    names = " and ".join(name for name, _ in ARCHIVES.values())
    return f"get {names} from {HOST} on a machine with network and put both into {root}"
