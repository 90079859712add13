"""Random rectangles of an image, enlarged to a square: the sampling rule of Inception training, in counted words.

Rule: C. Szegedy et al., Going deeper with convolutions, CVPR 2015, in the form of torchvision's `RandomResizedCrop`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width of a rectangle divided by its height."""

TRIES = 10
"""Rectangles drawn before a central one is taken because none lay inside the image."""

WORDS = 2 * TRIES
"""Random 64-bit words that an image needs."""


def rectangles(words: np.ndarray, height: int, width: int, smallest_area: float) -> np.ndarray:
    """Top, left, height and width in pixels of each rectangle, int64 `(n, 4)`.

    Args:
        words: random uint64 `(n, WORDS)`; each try takes one for area and ratio, one for row and column.
        height: of the images in pixels.
        width: of the images in pixels.
        smallest_area: smallest share of the image's area that a rectangle covers; the largest is 1.
    """
    halves = np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], axis=-1) * 2.0**-32
    area, ratio, down, right = np.moveaxis(halves.reshape(len(words), TRIES, 4), -1, 0)
    covered = height * width * (smallest_area + area * (1 - smallest_area))
    shape = np.exp(np.log(RATIO[0]) + ratio * (np.log(RATIO[1]) - np.log(RATIO[0])))
    wide = np.rint(np.sqrt(covered * shape)).astype(np.int64)
    high = np.rint(np.sqrt(covered / shape)).astype(np.int64)
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    top = np.floor(down * (height - high + 1)).astype(np.int64)
    left = np.floor(right * (width - wide + 1)).astype(np.int64)
    chosen = np.stack([top, left, high, wide], axis=-1)[np.arange(len(words)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1)[:, None], chosen, _central(height, width))


def _central(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest central rectangle whose ratio is allowed."""
    wide = min(width, round(height * RATIO[1]))
    high = min(height, round(width / RATIO[0]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def random_resized_crops(images: Tensor, words: np.ndarray, size: int, smallest_area: float) -> Tensor:
    """The rectangles as squares, uint8 `(batch, 3, size, size)`, bilinear with antialiasing as published.

    Args:
        images: uint8 `(batch, 3, height, width)`.
        words: random uint64 `(batch, WORDS)`, or `(1, WORDS)` for one rectangle that all images share.
        size: side of the result in pixels.
        smallest_area: see `rectangles`.
    """
    places = rectangles(words, images.shape[-2], images.shape[-1], smallest_area).tolist()
    if len(places) == 1:
        return _crop(images, places[0], size)
    return torch.stack([_crop(image, place, size) for image, place in zip(images, places, strict=True)])


def _crop(images: Tensor, place: list[int], size: int) -> Tensor:
    top, left, height, width = place
    return resized_crop(
        images, top, left, height, width, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True
    )
