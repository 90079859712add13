"""`cifar10`: 10 classes, 50,000 training and 10,000 test images of 32x32 pixels.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; files and checksums by torchvision.
"""

from __future__ import annotations

from scenarios.datasets._cifar import CifarSettings, check_cifar, load_cifar
from scenarios.datasets.base import ImageDataset, Normalisation, Progress

NORMALISATION: Normalisation = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and standard deviation of the training images."""


class Cifar10Settings(CifarSettings):
    """Settings of CIFAR-10."""


def num_classes(settings: Cifar10Settings) -> int:
    """Classes of the data set, whatever the settings."""
    return 10


def check(settings: Cifar10Settings) -> None:
    """Refuse at once what neither exists nor may be downloaded."""
    check_cifar(settings, name="cifar10", folder="cifar-10-batches-py")


def load(
    settings: Cifar10Settings, *, image_size: int = 32, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Official training and test part at 32 pixels; `image_size` and `progress` are not used.

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    return load_cifar(settings, name="cifar10", torchvision_name="CIFAR10", normalisation=NORMALISATION)
