"""The digit scans that come with scikit-learn, enlarged, and the one way they are split into train and test.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its
test part), as bundled by `sklearn.datasets.load_digits`: 8x8 pixels, 17 grey levels.
"""

from __future__ import annotations

import numpy as np

from scenarios.datasets._selection import stratified_split

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Class names by class id."""

SPLIT_SEED = 0
"""Seed of the split into train and test, the same in every run."""

_LEVELS = 16


def read_scans(side: int) -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 scans, uint8 `(images, 3, side, side)`, white ink on black, and their class ids int64 `(images,)`.

    Enlarged with Pillow's bicubic filter, in integer arithmetic and thus alike everywhere; smooth edges suit a
    backbone trained on photographs better than blocks.

    Args:
        side: side of the result in pixels.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(np.asarray(bunch.images) * (255 / _LEVELS)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC)) for scan in grey]
    return np.repeat(np.stack(large)[:, None], 3, axis=1), np.asarray(bunch.target, dtype=np.int64)


def split_scans(targets: np.ndarray, test_pct: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending int64 indices of the training and of the test scans.

    Args:
        targets: class ids int64 `(images,)`.
        test_pct: per cent of each class for testing.
    """
    return stratified_split(targets, NAMES, test_pct=test_pct, seed=SPLIT_SEED)
