"""What CIFAR-10 and CIFAR-100 share: official pickles, which are compared with their checksums before they are read."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from scenarios._archives import Limits
from scenarios._downloads import RemoteFile, cannot_use
from scenarios.datasets._official import Official, data_root, first_missing
from scenarios.datasets._selection import describe_subset, training_subset
from scenarios.datasets.base import DatasetSettings, ImageDataset, Normalisation, array_dataset
from scenarios.errors import DataError

SIDE = 32
"""Side of the images in pixels."""


class CifarSettings(DatasetSettings):
    """Settings of both CIFAR data sets."""

    root: str | None = Field(
        None, description="folder that holds or gets the official files; null: the user's data folder"
    )
    download: bool = Field(True, description="fetch the official archive where it is missing (about 170 MB)")


@dataclass(frozen=True)
class Cifar:
    """Official files of one of the two.

    Attributes:
        name: the word after `dataset=`.
        archive: the archive.
        folder: its top folder.
        train: name and md5 of each file of training images.
        test: of test images.
        names: of class names.
        labels_key: key of the labels.
        names_key: key of the class names.
        normalisation: mean and standard deviation of the training images.
    """

    name: str
    archive: RemoteFile
    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    names: tuple[str, str]
    labels_key: str
    names_key: str
    normalisation: Normalisation

    @property
    def official(self) -> Official:
        """The record of the files."""
        names = [name for name, _ in (*self.train, *self.test, self.names)]
        return Official(
            name=self.name,
            files=(self.archive,),
            tree=f"{self.folder}/ with {', '.join(names)}",
            missing=first_missing(*(f"{self.folder}/{name}" for name in names)),
            images={"train": 50_000, "test": 10_000},
            limits=Limits(max_files=50, max_bytes=400_000_000),
            unpacked_bytes=190_000_000,
        )


def check_cifar(settings: CifarSettings, cifar: Cifar) -> None:
    """Refuse at once a data set that is neither there nor to be downloaded.

    Raises:
        DataError: a file is missing although `download` is false.
    """
    cifar.official.require(data_root(settings.root), download=settings.download)


def load_cifar(settings: CifarSettings, cifar: Cifar) -> tuple[ImageDataset, ImageDataset]:
    """Official training and test part, uint8 images `(3, 32, 32)`, official class ids.

    Args:
        settings: where the files are.
        cifar: which of the two.

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    root = data_root(settings.root)
    cifar.official.provide(root, download=settings.download)
    reader = CifarReader(cifar, root)
    class_names = tuple(reader.read(*cifar.names)[cifar.names_key])
    data, targets = reader.part(cifar.train)
    subset, notes = training_subset(targets, class_names, settings)
    identity: dict[str, str | int] = {
        "name": cifar.name,
        "version": f"archive md5 {cifar.archive.md5}",
        "split": "official",
    }

    def made(
        word: str, pixels: np.ndarray, labels: np.ndarray, subset_words: str, part_notes: list[str]
    ) -> ImageDataset:
        return array_dataset(
            pixels,
            labels,
            class_names,
            identity={**identity, "part": word, "subset": subset_words},
            normalisation=cifar.normalisation,
            notes=part_notes,
        )

    train = made("train", data[subset], targets[subset], describe_subset(settings), notes)
    return train, made("test", *reader.part(cifar.test), "all", [])


class CifarReader:
    """Reads official files of one data set.

    Args:
        cifar: which of the two.
        root: folder that holds its folder.
    """

    def __init__(self, cifar: Cifar, root: Path) -> None:
        self._cifar, self._root = cifar, root

    def part(self, files: tuple[tuple[str, str], ...]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 `(images, 3, 32, 32)` and class ids int64 `(images,)` of several files.

        Raises:
            DataError: see `read`.
        """
        contents = [self.read(*file) for file in files]
        pixels = np.concatenate([np.asarray(content["data"], dtype=np.uint8) for content in contents])
        labels = np.concatenate([np.asarray(content[self._cifar.labels_key], dtype=np.int64) for content in contents])
        return pixels.reshape(-1, 3, SIDE, SIDE), labels

    def read(self, name: str, md5: str) -> Any:
        """Content of a pickle, which is read only if it is the official one: reading another may run code.

        Raises:
            DataError: not readable, or not the official file.
        """
        path = self._root / self._cifar.folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise cannot_use(f"dataset={self._cifar.name}", path, error) from error
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise DataError(
                f"dataset={self._cifar.name}: {path} is damaged (md5 {found}, the official file has {md5}); "
                f"{self._cifar.official.advice(self._root)}"
            )
        return pickle.loads(data, encoding="latin1")
