"""`cifar10`: 10 classes, 50,000 training and 10,000 test images of 32x32 pixels.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; address and checksums as torchvision
has them.
"""

from __future__ import annotations

from scenarios._downloads import RemoteFile
from scenarios.datasets._cifar import SIDE, Cifar, CifarSettings, check_cifar, load_cifar
from scenarios.datasets._official import Official
from scenarios.datasets.base import ImageDataset, Normalisation, Progress

NORMALISATION: Normalisation = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and standard deviation of the training images."""

CIFAR10 = Cifar(
    name="cifar10",
    archive=RemoteFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
    ),
    folder="cifar-10-batches-py",
    train=(
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
    names=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
    labels_key="labels",
    names_key="label_names",
    normalisation=NORMALISATION,
)
"""The official files."""


class Cifar10Settings(CifarSettings):
    """Settings of CIFAR-10."""


def num_classes(settings: Cifar10Settings) -> int:
    """Classes of the data set, whatever the settings."""
    return 10


def official(settings: Cifar10Settings) -> list[Official]:
    """Records of the official files."""
    return [CIFAR10.official]


def check(settings: Cifar10Settings) -> None:
    """Refuse at once what neither exists nor may be downloaded."""
    check_cifar(settings, CIFAR10)


def load(
    settings: Cifar10Settings, *, image_size: int = SIDE, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Official training and test part at 32 pixels; `image_size` and `progress` are not used.

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    return load_cifar(settings, CIFAR10)
