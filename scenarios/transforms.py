"""From uint8 images to what a backbone takes: the evaluation transform and random training transforms.

Which steps a name stands for is data of `scenarios.presets`; their order is that of the published Si-Blurry code:
AutoAugment at native size, resize, random crop with 4 pixels of padding, horizontal flip, normalisation; or, as in most
other published code, a random resized crop, horizontal flip, normalisation. Random numbers come from Philox (Salmon et
al., Parallel random numbers: as easy as 1, 2, 3; SC 2011) keyed by the seed and the sample and counted by the pass, so
that an image gets the same pixels whatever the batch, the workers or the order. No global random state is read or
changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import center_crop, resize

from scenarios import _resized_crop
from scenarios.errors import DataError
from scenarios.presets import AUGMENTATIONS

PADDING = 4
"""Pixels of black around the resized image before the random crop."""

_INTERPOLATIONS = {mode.value: mode for mode in (v2.InterpolationMode.BILINEAR, v2.InterpolationMode.BICUBIC)}


def _resized(images: Tensor, size: int, mode: v2.InterpolationMode) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return resize(images, [size, size], interpolation=mode, antialias=True)


def _centre(images: Tensor, size: int, mode: v2.InterpolationMode) -> Tensor:
    if min(images.shape[-2:]) < size:
        return _resized(images, size, mode)
    return center_crop(images, [size, size])


def _resized_centre(images: Tensor, size: int, mode: v2.InterpolationMode) -> Tensor:
    shorter = size * _ENLARGED // _KEPT
    return center_crop(resize(images, [shorter], interpolation=mode, antialias=True), [size, size])


_ENLARGED, _KEPT = 256, 224
"""Published sides in pixels to which the shorter side is resized and which the centre keeps; others in proportion."""

CROPS = {"resize": _resized, "centre": _centre, "resized_centre": _resized_centre}
"""How an image becomes a square, by the name that `protocol.eval_crop` may have: see `EvalTransform`."""


class EvalTransform:
    """Resize or cut to a square, scale to [0, 1], normalise: always the same pixels.

    Args:
        size: side of the result in pixels.
        mean: mean of red, green and blue for pixels in [0, 1].
        std: their standard deviation.
        interpolation: `bilinear` or `bicubic`.
        crop: `resize` resizes an image of another shape, with antialiasing; `centre` cuts the central square out of an
            image that is nowhere smaller, as torchvision's `CenterCrop`, and resizes any other; `resized_centre`
            resizes the shorter side to 256/224 of `size`, rounded down, and cuts the central square out: the usual
            evaluation of ImageNet models, of an image of `size`, too.

    Raises:
        DataError: a size below 1, not three means and standard deviations, a deviation of 0, another interpolation or
            crop.
    """

    is_random = False

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        crop: str = "resize",
    ) -> None:
        if size < 1:
            raise DataError(f"size={size} is no image side; it must be at least 1 pixel")
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise DataError(f"mean={tuple(mean)} and std={tuple(std)} must be three numbers each, std above 0")
        _require("interpolation", interpolation, _INTERPOLATIONS)
        _require("crop", crop, CROPS)
        self.size = size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.interpolation = interpolation
        self.crop = crop

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 of the same rank, `(3, size, size)` or `(batch, 3, size, size)`, on the device of the input.

        Args:
            images: uint8 `(3, height, width)` or `(batch, 3, height, width)`.
        """
        _require_images(images, ranks=(3, 4))
        return self.normalise(self.square(images))

    def square(self, images: Tensor) -> Tensor:
        """Uint8 `(..., 3, size, size)`, rounded as Pillow does; the input itself where nothing changes it."""
        return CROPS[self.crop](images, self.size, _INTERPOLATIONS[self.interpolation])

    def normalise(self, images: Tensor) -> Tensor:
        """Float32 `(pixel / 255 - mean) / std` of uint8 `(..., 3, height, width)`."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)


class TrainTransform:
    """Random training transform of a batch that depends on nothing but (seed, sample, pass).

    Args:
        size: side of the result in pixels.
        mean: mean of red, green and blue for pixels in [0, 1].
        std: their standard deviation.
        augmentation: a name of `AUGMENTATIONS`.
        per: `image` draws for each image, `batch` (the published code) once for all images of a batch, keyed by the
            first one's sample id.
        seed: root seed of the augmentation, 0..2**64-1.
        interpolation: `bilinear` or `bicubic`; a random resized crop is bilinear, as published.
        crop: see `EvalTransform`; a random resized crop is taken of the image as decoded, of which data sets of files
            keep the central square.

    Raises:
        DataError: a value that is not allowed.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augmentation: str = "none",
        per: Literal["image", "batch"] = "image",
        seed: int,
        interpolation: str = "bicubic",
        crop: str = "resize",
    ) -> None:
        _require("augmentation", augmentation, AUGMENTATIONS)
        _require("augment_per", per, ("image", "batch"))
        if not 0 <= seed < 2**64:
            raise DataError(f"seed={seed} of the augmentation must lie in 0..2**64-1")
        self.evaluation = EvalTransform(size, mean, std, interpolation, crop)
        self.augmentation = augmentation
        self.per = per
        self.seed = seed
        self._steps = AUGMENTATIONS[augmentation]
        policy = self._steps.policy
        self._auto_augment = None if policy is None else v2.AutoAugment(v2.AutoAugmentPolicy(policy))

    @property
    def is_random(self) -> bool:
        """Whether two passes over an image can differ; if not, the result equals `EvalTransform`'s exactly."""
        return self._steps != AUGMENTATIONS["none"]

    def __call__(
        self, images: Tensor, sample_ids: Tensor | np.ndarray | Sequence[int], passes: int | Sequence[int]
    ) -> Tensor:
        """Float32 `(batch, 3, size, size)` on the device of the images.

        Args:
            images: uint8 `(batch, 3, height, width)`.
            sample_ids: data-set index of each image, int64 `(batch,)`, at least 0; on the CPU, so that nothing waits.
            passes: number of this pass over each image, `(batch,)`, or one number for all: another pass, another draw.
        """
        _require_images(images, ranks=(4,))
        if len(images) != len(sample_ids):
            raise ValueError(f"{len(images)} images but {len(sample_ids)} sample ids")
        if not self.is_random or len(images) == 0:
            return self.evaluation(images)
        draws = self._draws(np.asarray(torch.as_tensor(sample_ids).cpu()), passes)
        if self._auto_augment is not None:
            images = _auto_augment(images, self._auto_augment, draws)
        area = self._steps.smallest_area
        if area is None:
            images = self.evaluation.square(images)
        else:
            images = _resized_crop.random_resized_crops(images, draws[:, _WORDS:], self.evaluation.size, area)
        if self._steps.crop:
            images = _crop(images, draws)
        if self._steps.flip:
            images = _flip(images, draws)
        return self.evaluation.normalise(images)

    def _draws(self, sample_ids: np.ndarray, passes: int | Sequence[int]) -> np.ndarray:
        """Random words uint64 `(batch, words)`, or `(1, words)` shared by the batch."""
        number = _WORDS + (0 if self._steps.smallest_area is None else _resized_crop.WORDS)
        keys = sample_ids[:1] if self.per == "batch" else sample_ids
        counts = [passes] * len(keys) if isinstance(passes, int) else passes[: len(keys)]
        # As a list, a seed above 2**63 would become floating point and lose its last digits.
        pairs = np.array([[self.seed] * len(keys), keys], dtype=np.uint64).T
        words = [
            np.random.Philox(key=pair, counter=[0, 0, 0, count]).random_raw(number)
            for pair, count in zip(pairs, counts, strict=True)
        ]
        return np.stack(words)


# The first 128 random bits of an image: crop row, crop column (32 bits each), flip (1), seed of AutoAugment (63). Those
# of a resized crop follow, so that every other step draws the same with and without one.
_WORDS = 2


def _offsets(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column 0..8 at which each crop starts: the high part of a 32-bit product, uniform up to 1e-9."""
    choices = np.uint64(2 * PADDING + 1)
    low = np.uint64(32)
    rows = ((draws[:, 0] >> low) * choices) >> low
    columns = ((draws[:, 0] & np.uint64(0xFFFFFFFF)) * choices) >> low
    return rows.astype(np.int64), columns.astype(np.int64)


def _crop(images: Tensor, draws: np.ndarray) -> Tensor:
    """Random squares of the images padded with black, uint8 `(batch, 3, size, size)`."""
    size = images.shape[-1]
    rows, columns = _offsets(draws)
    padded = functional.pad(images, [PADDING] * 4)
    if len(draws) == 1:
        row, column = int(rows[0]), int(columns[0])
        return padded[:, :, row : row + size, column : column + size]
    # A view of every possible crop; indexing it copies only the chosen ones, in one operation on any device.
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    batch = torch.arange(len(images), device=images.device)
    return windows[batch, :, torch.from_numpy(rows).to(images.device), torch.from_numpy(columns).to(images.device)]


def _flip(images: Tensor, draws: np.ndarray) -> Tensor:
    """The images, mirrored left to right with probability one half, uint8 `(batch, 3, size, size)`."""
    mirrored = (draws[:, 1] & np.uint64(1)).astype(bool)
    if len(draws) == 1:
        return images.flip(-1) if mirrored[0] else images
    chosen = torch.from_numpy(mirrored).to(images.device).view(-1, 1, 1, 1)
    return torch.where(chosen, images.flip(-1), images)


def _auto_augment(images: Tensor, policy: v2.AutoAugment, draws: np.ndarray) -> Tensor:
    """AutoAugment of each image, or of the batch with one draw, uint8 of the same shape."""
    seeds = (draws[:, 1] >> np.uint64(1)).tolist()
    # torchvision draws from the global CPU generator only; no other device's state needs saving.
    with torch.random.fork_rng(devices=[]):
        if len(seeds) == 1:
            torch.default_generator.manual_seed(seeds[0])
            return policy(images)
        results = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            results.append(policy(image))
    return torch.stack(results)


def _require(key: str, value: str, allowed: Sequence[str] | dict) -> None:
    if value not in allowed:
        raise DataError(f"{key}={value} is unknown; allowed are {', '.join(allowed)}")


def _require_images(images: Tensor, ranks: tuple[int, ...]) -> None:
    if images.dtype != torch.uint8 or images.ndim not in ranks or images.shape[-3] != 3:
        raise ValueError(f"images must be uint8 (..., 3, height, width), got {images.dtype} {tuple(images.shape)}")
