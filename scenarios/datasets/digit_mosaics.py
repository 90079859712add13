"""`digit_mosaics`: images of one to four labels, composed from the real digit scans that come with scikit-learn.

The scans are split as in `digits` first, so that no scan of a training mosaic is in a test mosaic.
"""

from __future__ import annotations

from scenarios.datasets._digit_scans import NAMES, SPLIT_SEED, read_scans, split_scans
from scenarios.datasets._mosaics import MosaicSettings, mosaic_datasets
from scenarios.datasets.base import ArrayPixels, ImageDataset, Normalisation, Progress

CELL = 16
"""Side in pixels of a cell, twice that of a scan."""

TEST_PCT = 20
"""Per cent of the scans of each class that only test mosaics use; the default of `digits`."""

NORMALISATION: Normalisation = ((0.1701, 0.1701, 0.1701), (0.3001, 0.3001, 0.3001))
"""Mean and standard deviation of the training mosaics of the default settings."""


class DigitMosaicsSettings(MosaicSettings):
    """Settings of mosaics of the bundled digits."""


def num_classes(settings: DigitMosaicsSettings) -> int:
    """Classes of the data set, whatever the settings."""
    return len(NAMES)


def load(
    settings: DigitMosaicsSettings, *, image_size: int = 2 * CELL, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test mosaics: uint8 images `(3, 32, 32)`, multi-hot rows of 10 classes.

    `image_size` and `progress` are not used.
    """
    pixels, targets = read_scans(CELL)
    pools = split_scans(targets, TEST_PCT)
    return mosaic_datasets(
        [(ArrayPixels(pixels[pool]), targets[pool]) for pool in pools],
        NAMES,
        settings,
        identity={
            "name": "digit_mosaics",
            "version": "1",
            "split": f"scans with test_pct={TEST_PCT}, seed {SPLIT_SEED}",
        },
        normalisation=NORMALISATION,
    )
