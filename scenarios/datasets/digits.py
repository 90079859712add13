"""`digits`: 1,797 real scans of handwritten digits that come with scikit-learn, so nothing is downloaded.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its
test part), as bundled by `sklearn.datasets.load_digits`: 8x8 pixels, 17 grey levels.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from scenarios.datasets._digit_scans import NAMES, SPLIT_SEED, read_scans, split_scans
from scenarios.datasets._selection import describe_subset, training_subset
from scenarios.datasets.base import DatasetSettings, ImageDataset, Normalisation, Progress, array_dataset

SIDE = 32
"""Side in pixels of the enlarged images."""

NORMALISATION: Normalisation = ((0.3090, 0.3090, 0.3090), (0.3489, 0.3489, 0.3489))
"""Mean and standard deviation of the training images of the default split."""


class DigitsSettings(DatasetSettings):
    """Settings of the bundled digits."""

    test_pct: int = Field(20, ge=1, le=99, description="per cent of each class kept for testing")


def num_classes(settings: DigitsSettings) -> int:
    """Classes of the data set, whatever the settings."""
    return len(NAMES)


def load(
    settings: DigitsSettings, *, image_size: int = SIDE, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part: uint8 images `(3, 32, 32)`, white ink on black, 10 classes of about 180 images.

    The scans are enlarged four times. `image_size` and `progress` are not used.
    """
    pixels, targets = read_scans(SIDE)
    train, test = split_scans(targets, settings.test_pct)
    subset, notes = training_subset(targets[train], NAMES, settings)
    identity: dict[str, str | int] = {
        "name": "digits",
        "version": "1",
        "split": f"test_pct={settings.test_pct}, seed {SPLIT_SEED}",
    }

    def part(name: str, chosen: np.ndarray, subset_words: str, part_notes: list[str]) -> ImageDataset:
        return array_dataset(
            pixels[chosen],
            targets[chosen],
            NAMES,
            identity={**identity, "part": name, "subset": subset_words},
            normalisation=NORMALISATION,
            notes=part_notes,
        )

    return part("train", train[subset], describe_subset(settings), notes), part("test", test, "all", [])
