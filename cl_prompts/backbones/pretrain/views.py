"""What the student sees of an image: a crop, perhaps mirrored, drawn anew each time; and the same of a feature map.

A crop is a rectangle in relative coordinates, so that it can be cut out of the image and, at the same place, out of the
features that the teacher computed once for the whole image. Draws depend on (seed, pass, image) alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ASPECT = math.log(4 / 3)
"""Logarithm of the most extreme aspect ratio of a crop."""


def draw_crops(count: int, *, seed: int, passed: int, area: float) -> np.ndarray:
    """One crop for each of `count` images, float32 `(count, 4)`: half extents x, y and centre x, y, in -1..1.

    Area uniform in `area`..1, logarithm of the aspect ratio uniform, centre uniform where the crop fits; extent x is
    negative where the crop is mirrored.

    Args:
        count: images of the data set.
        seed: root of the draws.
        passed: number of this pass over the data set: another pass, other crops.
        area: smallest part of the area.
    """
    generator = _generator(seed, 2 * passed)
    areas = generator.uniform(area, 1.0, count)
    aspects = np.exp(generator.uniform(-ASPECT, ASPECT, count))
    extents = np.stack([np.sqrt(areas * aspects), np.sqrt(areas / aspects)], axis=1).clip(max=1.0)
    centres = generator.uniform(-1.0, 1.0, (count, 2)) * (1.0 - extents)
    extents[:, 0] *= generator.choice([-1.0, 1.0], count)
    return np.concatenate([extents, centres], axis=1).astype(np.float32)


def cut(maps: Tensor, crops: Tensor, side: int) -> Tensor:
    """Each map's crop, resampled bilinearly to a square, float `(batch, channels, side, side)`.

    Args:
        maps: images or feature maps, float `(batch, channels, height, width)`.
        crops: rows of `draw_crops`, `(batch, 4)`.
        side: height and width of the result.
    """
    zero = torch.zeros_like(crops[:, 0])
    horizontal = torch.stack([crops[:, 0], zero, crops[:, 2]], dim=1)
    vertical = torch.stack([zero, crops[:, 1], crops[:, 3]], dim=1)
    grid = F.affine_grid(torch.stack([horizontal, vertical], dim=1), [len(maps), 1, side, side], align_corners=False)
    return F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=False)


def order_of(count: int, *, seed: int, passed: int) -> np.ndarray:
    """A random order of all images for one pass, int64 `(count,)`."""
    return _generator(seed, 2 * passed + 1).permutation(count)


def _generator(seed: int, stream: int) -> np.random.Generator:
    # As an array: a list with a number above 2**63 would become floating point.
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
