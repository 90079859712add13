"""`cifar100`: 100 classes (the fine labels), 50,000 training and 10,000 test images of 32x32 pixels.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; address and checksums as torchvision
has them.
"""

from __future__ import annotations

from scenarios._downloads import RemoteFile
from scenarios.datasets._cifar import SIDE, Cifar, CifarSettings, check_cifar, load_cifar
from scenarios.datasets._official import Official
from scenarios.datasets.base import ImageDataset, Normalisation, Progress

NORMALISATION: Normalisation = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
"""Mean and standard deviation of the training images."""

CIFAR100 = Cifar(
    name="cifar100",
    archive=RemoteFile(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
    ),
    folder="cifar-100-python",
    train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
    test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    names=("meta", "7973b15100ade9c7d40fb424638fde48"),
    labels_key="fine_labels",
    names_key="fine_label_names",
    normalisation=NORMALISATION,
)
"""The official files."""


class Cifar100Settings(CifarSettings):
    """Settings of CIFAR-100."""


def num_classes(settings: Cifar100Settings) -> int:
    """Classes of the data set, whatever the settings."""
    return 100


def official(settings: Cifar100Settings) -> list[Official]:
    """Records of the official files."""
    return [CIFAR100.official]


def check(settings: Cifar100Settings) -> None:
    """Refuse at once what neither exists nor may be downloaded."""
    check_cifar(settings, CIFAR100)


def load(
    settings: Cifar100Settings, *, image_size: int = SIDE, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Official training and test part at 32 pixels; `image_size` and `progress` are not used.

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    return load_cifar(settings, CIFAR100)
