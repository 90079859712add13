"""`cifar100`: 100 classes (the fine labels), 50,000 training and 10,000 test images of 32x32 pixels.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; files and checksums by torchvision.
"""

from __future__ import annotations

from scenarios.datasets._cifar import CifarSettings, check_cifar, load_cifar
from scenarios.datasets.base import ImageDataset, Normalisation, Progress

NORMALISATION: Normalisation = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
"""Mean and standard deviation of the training images."""


class Cifar100Settings(CifarSettings):
    """Settings of CIFAR-100."""


def num_classes(settings: Cifar100Settings) -> int:
    """Classes of the data set, whatever the settings."""
    return 100


def check(settings: Cifar100Settings) -> None:
    """Refuse at once what neither exists nor may be downloaded."""
    check_cifar(settings, name="cifar100", folder="cifar-100-python")


def load(
    settings: Cifar100Settings, *, image_size: int = 32, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Official training and test part at 32 pixels; `image_size` and `progress` are not used.

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    return load_cifar(settings, name="cifar100", torchvision_name="CIFAR100", normalisation=NORMALISATION)
