"""`digits`: 1,797 real scans of handwritten digits that come with scikit-learn, so nothing is downloaded.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its
test part), as bundled by `sklearn.datasets.load_digits`: 8x8 pixels, 17 grey levels.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from scenarios.datasets._selection import describe_subset, stratified_split, training_subset
from scenarios.datasets.base import DatasetSettings, ImageDataset, Normalisation, Progress, array_dataset

SIDE = 32
"""Side in pixels of the enlarged images."""

SPLIT_SEED = 0
"""Seed of the split into train and test, the same in every run."""

NORMALISATION: Normalisation = ((0.3090, 0.3090, 0.3090), (0.3489, 0.3489, 0.3489))
"""Mean and standard deviation of the training images of the default split."""

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LEVELS = 16


class DigitsSettings(DatasetSettings):
    """Settings of the bundled digits."""

    test_pct: int = Field(20, ge=1, le=99, description="per cent of each class kept for testing")


def load(
    settings: DigitsSettings, *, image_size: int = SIDE, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part: uint8 images `(3, 32, 32)`, white ink on black, 10 classes of about 180 images.

    The scans are enlarged four times with Pillow's bicubic filter, in integer arithmetic and thus alike everywhere;
    smooth edges suit a backbone trained on photographs better than blocks. `image_size` is not used.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    targets = np.asarray(bunch.target, dtype=np.int64)
    pixels = _enlarge(np.asarray(bunch.images))
    train, test = stratified_split(targets, _NAMES, test_pct=settings.test_pct, seed=SPLIT_SEED)
    subset, notes = training_subset(targets[train], _NAMES, settings)
    identity: dict[str, str | int] = {
        "name": "digits",
        "version": "1",
        "split": f"test_pct={settings.test_pct}, seed {SPLIT_SEED}",
    }

    def part(name: str, chosen: np.ndarray, subset_words: str, part_notes: list[str]) -> ImageDataset:
        return array_dataset(
            pixels[chosen],
            targets[chosen],
            _NAMES,
            identity={**identity, "part": name, "subset": subset_words},
            normalisation=NORMALISATION,
            notes=part_notes,
        )

    return part("train", train[subset], describe_subset(settings), notes), part("test", test, "all", [])


def _enlarge(scans: np.ndarray) -> np.ndarray:
    """uint8 `(images, 3, 32, 32)` of grey scans `(images, 8, 8)` with levels 0..16."""
    from PIL import Image

    grey = np.round(scans * (255 / _LEVELS)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(scan).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for scan in grey]
    return np.repeat(np.stack(large)[:, None], 3, axis=1)
