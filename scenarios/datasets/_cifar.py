"""What CIFAR-10 and CIFAR-100 share: torchvision's download with its checksums, and errors that say what to do."""

from __future__ import annotations

import socket
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from scenarios.datasets._selection import describe_subset, training_subset
from scenarios.datasets.base import DatasetSettings, ImageDataset, Normalisation, array_dataset
from scenarios.errors import DataError

STALL_SECONDS = 30.0
"""A download that receives nothing for so long is given up: better one clear line than a run that seems to hang."""


class CifarSettings(DatasetSettings):
    """Settings of both CIFAR data sets."""

    root: str | None = Field(
        None, description="folder that holds or gets the official files; null: the user's data folder"
    )
    download: bool = Field(True, description="fetch the official archive where it is missing (about 170 MB)")


def cifar_root(settings: CifarSettings) -> Path:
    """Folder of the official files."""
    if settings.root is not None:
        return Path(settings.root).expanduser()
    from platformdirs import user_data_path

    return user_data_path("cl_prompts", appauthor=False)


def check_cifar(settings: CifarSettings, *, name: str, folder: str) -> None:
    """Refuse at once a data set that is neither there nor to be downloaded.

    Raises:
        DataError: no `folder` below the root although `download` is false.
    """
    root = cifar_root(settings)
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
    root = cifar_root(settings)
    check_cifar(settings, name=name, folder=source.base_folder)
    with _clear_errors(name, root, source, settings.download):
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


@contextmanager
def _clear_errors(name: str, root: Path, source: Any, download: bool) -> Iterator[None]:
    """Turn what torchvision and the network raise into one line; torchvision has no time limit of its own."""
    by_hand = f"get {source.url} on a machine with network and put {source.filename} into {root}"
    earlier = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    except RuntimeError as error:
        advice = f"{by_hand}" if download else "set dataset.download=true to fetch it again"
        raise DataError(
            f"dataset={name}: a file in {root / source.base_folder} is missing or damaged (its checksum is not the "
            f"official one); {advice}"
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"dataset={name} could not be downloaded ({reason}); {by_hand}") from error
    except OSError as error:
        raise DataError(
            f"dataset={name}: {error.filename or root}: {error.strerror or error}; "
            "set dataset.root to a folder that can be read and written and has 400 MB free"
        ) from error
    finally:
        socket.setdefaulttimeout(earlier)
