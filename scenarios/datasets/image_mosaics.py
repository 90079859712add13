"""`image_mosaics`: images of one to four labels, composed from your own images of one label.

Each cell shows one whole image. Training mosaics use training images only, test mosaics test images only.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from scenarios.datasets import image_folder
from scenarios.datasets._image_files import ImageFilesSettings
from scenarios.datasets._mosaics import PART_KEYS, MosaicSettings, mosaic_datasets, refuse_impossible
from scenarios.datasets.base import ImageDataset, Progress


class ImageMosaicsSettings(MosaicSettings, ImageFilesSettings):
    """Settings of mosaics of your own images; those about the images mean what they mean in `image_folder`."""

    size: int | None = Field(
        None, ge=2, le=8192, description="side in pixels of a mosaic, halved for a cell; null: what the backbone wants"
    )
    root: str | None = Field(None, description="folder with train/ and test/, or with class folders; see file_list")
    file_list: str | None = Field(
        None, description="CSV file with the header path,label or path,label,split; paths relative to root"
    )
    test_pct: int | None = Field(
        None, ge=1, le=99, description="per cent of each class for testing where the data bring no split; null: 20"
    )
    split_seed: int = Field(0, ge=0, description="seed of that split")
    skip_unreadable: bool = Field(False, description="leave out files that cannot be read and report them")
    allow_untested_classes: bool = Field(False, description="accept classes without a test image")


def check(settings: ImageMosaicsSettings) -> None:
    """Find a missing folder, an untested class, too few mosaics for the classes and the like, opening no image.

    Raises:
        DataError: what is wrong, where, and what to do.
    """
    listing, selection = image_folder.select(_source_settings(settings, 1))
    for key, positions in zip(PART_KEYS, (selection.train, selection.test), strict=True):
        classes = len(np.unique(listing.targets[positions]))
        refuse_impossible(classes, settings, images=getattr(settings, key), key=key)


def num_classes(settings: ImageMosaicsSettings) -> int | None:
    """Classes of the images; None where these cannot be listed."""
    return image_folder.num_classes(_source_settings(settings, 1))


def load(
    settings: ImageMosaicsSettings, *, image_size: int, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test mosaics: uint8 images `(3, size, size)`, multi-hot rows, classes by sorted name.

    Args:
        settings: where the images are and how to compose them.
        image_size: side in pixels of a mosaic where `settings.size` is None; of an odd one, a pixel less.
        progress: called with (files done, files in all).

    Raises:
        DataError: see `check`; an unreadable file.
    """
    check(settings)
    cell = max((settings.size or image_size) // 2, 1)
    sources = image_folder.load(_source_settings(settings, cell), image_size=cell, progress=progress)
    train, test = sources
    return mosaic_datasets(
        [(_Pixels(part), part.targets) for part in sources],
        train.class_names,
        settings,
        identity={
            "name": "image_mosaics",
            "version": "1",
            "split": str(train.identity["split"]),
            "sources": f"train {train.identity['sha256']}, test {test.identity['sha256']}",
            "image_size": 2 * cell,
            "interpolation": settings.interpolation,
        },
        notes=[*train.notes, *test.notes],
    )


def _source_settings(settings: ImageMosaicsSettings, cell: int) -> image_folder.ImageFolderSettings:
    """The same images as a data set of one label each, all of them: a subset is drawn of the mosaics."""
    return image_folder.ImageFolderSettings(
        root=settings.root,
        file_list=settings.file_list,
        test_pct=settings.test_pct,
        split_seed=settings.split_seed,
        size=cell,
        interpolation=settings.interpolation,
        cache=settings.cache,
        cache_folder=settings.cache_folder,
        skip_unreadable=settings.skip_unreadable,
        allow_untested_classes=settings.allow_untested_classes,
    )


class _Pixels:
    """The images of a data set as a source of pixels."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels (3), height, width."""
        height, width = self._dataset.image_shape
        return len(self._dataset), 3, height, width

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 `(len(indices), 3, height, width)`."""
        return self._dataset.images(indices).numpy()
