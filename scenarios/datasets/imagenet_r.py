"""`imagenet_r`: ImageNet-R, 200 classes, 30,000 renditions (art, cartoons, toys ...), for which no split is official.

Source: D. Hendrycks et al., The Many Faces of Robustness, ICCV 2021. Class ids by sorted WordNet id. Results of
different splits are not comparable, so each convention has a name (`dataset.split`) and the identity says which:

- `random_fixed`: the images in the order of class and file name, `torch.randperm` with seed 0, the first 80 % for
  training (published code of Si-Blurry streams);
- `random_seed`: the same with `dataset.split_seed`; published prompt code draws it from the seed of the whole run,
  after whatever drew before, which nobody can repeat;
- `file_list`: two lists of files, 24,000 and 6,000 in published prompt code (not part of this project);
- `folders`: `imagenet-r/train/<wnid>` and `imagenet-r/test/<wnid>`, prepared by someone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from scenarios._archives import Limits
from scenarios._downloads import RemoteFile
from scenarios.datasets._class_files import class_files, folder_names
from scenarios.datasets._image_files import ImageFilesSettings
from scenarios.datasets._listed_files import LabelledFiles, file_datasets
from scenarios.datasets._official import Official, data_root, first_missing
from scenarios.datasets._split_lists import read_split_list
from scenarios.datasets.base import ImageDataset, Normalisation, Progress
from scenarios.errors import DataError

NORMALISATION: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's mean and standard deviation, which published code takes for ImageNet-R as well."""

USUAL_LISTS = (24_000, 6_000)
"""Lengths of the lists that published prompt code shares."""

_FOLDER = "imagenet-r"
_TRAIN_SHARE = 0.8

Split = Literal["random_fixed", "random_seed", "file_list", "folders"]

IMAGENET_R = Official(
    name="imagenet_r",
    files=(RemoteFile("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar", "imagenet-r.tar"),),
    tree=f"{_FOLDER}/<wnid>/*.jpg",
    missing=first_missing(_FOLDER),
    images={"train": 24_000, "test": 6_000},
    limits=Limits(max_files=40_000, max_bytes=6_000_000_000),
    unpacked_bytes=2_300_000_000,
)
"""The official file, and the numbers of images in a random split."""

_OWN_LISTS = replace(IMAGENET_R, images={})

_PREPARED = replace(
    IMAGENET_R,
    files=(),
    images={},
    tree=f"{_FOLDER}/train/<wnid>/*.jpg and {_FOLDER}/test/<wnid>/*.jpg",
    missing=first_missing(f"{_FOLDER}/train", f"{_FOLDER}/test"),
)

_RECORDS = {"folders": _PREPARED, "file_list": _OWN_LISTS}


class ImagenetRSettings(ImageFilesSettings):
    """Settings of ImageNet-R."""

    root: str | None = Field(None, description="folder that holds or gets imagenet-r; null: the user's data folder")
    download: bool = Field(True, description="fetch the official archive where it is missing (about 2.2 GB)")
    split: Split = Field(
        "random_fixed",
        description="what is training and test: random_fixed (80 %, seed 0), random_seed (80 %, split_seed), file_list "
        "(train_list, test_list), folders (imagenet-r/train and imagenet-r/test)",
    )
    split_seed: int = Field(0, ge=0, description="seed of the draw of split=random_seed")
    train_list: str | None = Field(
        None, description="file that lists the training images, <wnid>/<file> a line or YAML with data: [...]"
    )
    test_list: str | None = Field(None, description="the same of the test images")


def num_classes(settings: ImagenetRSettings) -> int:
    """Classes of the data set, whatever the settings."""
    return 200


def official(settings: ImagenetRSettings) -> list[Official]:
    """Records of the official files."""
    return [_record(settings)]


def check(settings: ImagenetRSettings) -> None:
    """Refuse at once keys without effect, missing lists, and what neither exists nor may be downloaded.

    Raises:
        DataError: see above.
    """
    if settings.split_seed and settings.split != "random_seed":
        raise DataError(
            f"dataset.split_seed={settings.split_seed} has no effect with dataset.split={settings.split}; leave it 0, "
            "or set dataset.split=random_seed"
        )
    for key, value in (("train_list", settings.train_list), ("test_list", settings.test_list)):
        if settings.split == "file_list" and value is None:
            raise DataError(
                f"dataset.split=file_list needs dataset.{key}=/path; published prompt code has such a list, of "
                "24,000 training and 6,000 test images"
            )
        if settings.split != "file_list" and value is not None:
            raise DataError(
                f"dataset.{key}={value} has no effect with dataset.split={settings.split}; leave it null, or set "
                "dataset.split=file_list"
            )
        if value is not None and not Path(value).expanduser().is_file():
            raise DataError(f"dataset.{key}={value} is no file; give one that lists <wnid>/<file> line by line")
    root = data_root(settings.root)
    if settings.split == "folders":
        missing = _PREPARED.missing(root)
        if missing is not None:
            raise DataError(
                f"dataset=imagenet_r: {missing} is missing; dataset.split=folders needs {_PREPARED.tree} in {root}, "
                "or choose another dataset.split"
            )
        return
    IMAGENET_R.require(root, download=settings.download)


def load(
    settings: ImagenetRSettings, *, image_size: int, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part of the chosen split, uint8 `(3, size, size)`, 200 classes named by WordNet id.

    Args:
        settings: where the files are, which split.
        image_size: side in pixels where `settings.size` is None.
        progress: called with (files done, files in all).

    Raises:
        DataError: missing, damaged, not downloadable, not writable; lists that overlap or name unknown files.
    """
    check(settings)
    root = data_root(settings.root)
    _record(settings).provide(root, download=settings.download)
    folder = root / _FOLDER
    advice = f"delete {folder} and unpack the official archive again (dataset.download=true does)"
    wnids, train, test, rules = _SPLITS[settings.split](folder, settings, advice)
    return file_datasets(
        train,
        test,
        wnids,
        settings,
        identity={"name": "imagenet_r", "version": "1", "split": settings.split, "rules": rules},
        advice=advice,
        image_size=image_size,
        progress=progress,
        normalisation=NORMALISATION,
    )


_Parts = tuple[list[str], LabelledFiles, LabelledFiles, str]


def _record(settings: ImagenetRSettings) -> Official:
    return _RECORDS.get(settings.split, IMAGENET_R)


def _all_files(folder: Path, advice: str) -> tuple[list[str], LabelledFiles]:
    wnids = folder_names(folder, advice)
    return wnids, LabelledFiles(folder, *class_files(folder, wnids, advice))


def _drawn(folder: Path, seed: int, advice: str) -> _Parts:
    import torch

    wnids, files = _all_files(folder, advice)
    count = len(files.names)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    stop = int(_TRAIN_SHARE * count)
    train, test = np.sort(order[:stop]), np.sort(order[stop:])
    return wnids, files.take(train), files.take(test), f"torch.randperm, seed {seed}, first 80 %"


def _random_fixed(folder: Path, settings: ImagenetRSettings, advice: str) -> _Parts:
    return _drawn(folder, 0, advice)


def _random_seed(folder: Path, settings: ImagenetRSettings, advice: str) -> _Parts:
    return _drawn(folder, settings.split_seed, advice)


def _listed(folder: Path, settings: ImagenetRSettings, advice: str) -> _Parts:
    wnids, files = _all_files(folder, advice)
    positions = {name: position for position, name in enumerate(files.names)}
    lists = []
    for key, value in (("train_list", settings.train_list), ("test_list", settings.test_list)):
        path = Path(str(value)).expanduser()
        names = read_split_list(path)
        unknown = next((name for name in names if name not in positions), None)
        if unknown is not None:
            raise DataError(f"dataset.{key}={path}: there is no {folder / unknown}; correct the list, or {advice}")
        lists.append(sorted(positions[name] for name in names))
    shared = set(lists[0]) & set(lists[1])
    if shared:
        raise DataError(
            f"dataset.train_list and dataset.test_list share {len(shared)} images (first: "
            f"{files.names[min(shared)]}); take them out of one list"
        )
    counts = tuple(map(len, lists))
    usual = "as published prompt code has" if counts == USUAL_LISTS else "other numbers than the usual 24,000 and 6,000"
    rules = f"lists of {counts[0]:,} and {counts[1]:,} files, {usual}"
    train, test = (files.take(np.array(positions, dtype=np.int64)) for positions in lists)
    return wnids, train, test, rules


def _prepared(folder: Path, settings: ImagenetRSettings, advice: str) -> _Parts:
    wnids, train = _all_files(folder / "train", advice)
    names, targets = class_files(folder / "test", wnids, advice)
    strange = sorted(set(folder_names(folder / "test", advice)) - set(wnids))
    if strange:
        raise DataError(
            f"{folder / 'test' / strange[0]} has no folder of that name in {folder / 'train'}; add or remove"
        )
    return wnids, train, LabelledFiles(folder / "test", names, targets), "prepared folders"


_SPLITS: dict[Split, Callable[[Path, ImagenetRSettings, str], _Parts]] = {
    "random_fixed": _random_fixed,
    "random_seed": _random_seed,
    "file_list": _listed,
    "folders": _prepared,
}
