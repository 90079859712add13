"""What CIFAR-10 and CIFAR-100 share: torchvision's download with its checksums, and errors that say what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from scenarios.datasets._downloads import clear_errors, data_root
from scenarios.datasets._selection import describe_subset, training_subset
from scenarios.datasets.base import DatasetSettings, ImageDataset, Normalisation, array_dataset
from scenarios.errors import DataError


class CifarSettings(DatasetSettings):
    """Settings of both CIFAR data sets."""

    root: str | None = Field(
        None, description="folder that holds or gets the official files; null: the user's data folder"
    )
    download: bool = Field(True, description="fetch the official archive where it is missing (about 170 MB)")


def check_cifar(settings: CifarSettings, *, name: str, folder: str) -> None:
    """Refuse at once a data set that is neither there nor to be downloaded.

    Raises:
        DataError: no `folder` below the root although `download` is false.
    """
    root = data_root(settings.root)
    if not settings.download and not (root / folder).is_dir():
        raise DataError(
            f"dataset={name}: no folder {folder} in {root}; set dataset.download=true, "
            "or point dataset.root at the folder that contains it"
        )


def load_cifar(
    settings: CifarSettings, *, name: str, torchvision_name: str, normalisation: Normalisation
) -> tuple[ImageDataset, ImageDataset]:
    """Official training and test part, uint8 images `(3, 32, 32)`, official class ids.

    Args:
        settings: where the files are.
        name: the word after `dataset=`.
        torchvision_name: the class in `torchvision.datasets`.
        normalisation: mean and standard deviation of the training images.

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    import torchvision.datasets

    source = getattr(torchvision.datasets, torchvision_name)
    root = data_root(settings.root)
    check_cifar(settings, name=name, folder=source.base_folder)
    by_hand = f"get {source.url} on a machine with network and put {source.filename} into {root}"
    place = root / source.base_folder
    with clear_errors(name, place, by_hand=by_hand, download=settings.download, megabytes=400):
        official_train = source(root, train=True, download=settings.download)
        official_test = source(root, train=False, download=False)
    identity: dict[str, str | int] = {"name": name, "version": f"archive md5 {source.tgz_md5}", "split": "official"}
    class_names = tuple(official_train.classes)
    targets = np.asarray(official_train.targets, dtype=np.int64)
    subset, notes = training_subset(targets, class_names, settings)

    def part(word: str, data: np.ndarray, labels: Any, subset_words: str, part_notes: list[str]) -> ImageDataset:
        return array_dataset(
            data.transpose(0, 3, 1, 2),
            labels,
            class_names,
            identity={**identity, "part": word, "subset": subset_words},
            normalisation=normalisation,
            notes=part_notes,
        )

    train = part("train", official_train.data[subset], targets[subset], describe_subset(settings), notes)
    return train, part("test", official_test.data, official_test.targets, "all", [])
