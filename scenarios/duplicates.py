"""Images that are in the training and in the test part: a test on them measures memory, not learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from scenarios.datasets.base import ImageDataset

_BLOCK_BYTES = 64_000_000
_SEED = 20_011


@dataclass(frozen=True)
class SharedImages:
    """What was found.

    Attributes:
        compared: `pixels`: every pixel as decoded; `files`: the bytes of the files, so that one picture in two
            encodings counts as two; None: nothing was.
        test_images: test images that are in the training part, too.
        train_images: training images that are in the test part, too.
        total: number of test images.
        reason: why nothing was compared; None where it was.
    """

    compared: Literal["pixels", "files"] | None
    test_images: int = 0
    train_images: int = 0
    total: int = 0
    reason: str | None = None

    @property
    def notice(self) -> str | None:
        """What a reader of the results has to know; None where nothing is shared."""
        if self.compared is None:
            return f"nobody knows whether test images are in the training part, too: {self.reason}"
        if not self.test_images:
            return None
        what = "pixel for pixel" if self.compared == "pixels" else "byte for byte"
        return (
            f"{self.test_images} of {self.total:,} test images are in the training part, too ({what}, "
            f"{self.train_images} training images): scores on them are too good"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        return asdict(self)


def shared_images(train: ImageDataset, test: ImageDataset) -> SharedImages:
    """Look for images of the training part that are in the test part, too.

    Where pixels are in memory they are compared, 60,000 images of 32x32 in about a tenth of a second; where the files
    were read before the run their hashes are; else nothing is, with the reason.
    """
    if train.file_digests is not None and test.file_digests is not None:
        in_train, in_test = (np.array(part.file_digests, dtype=object) for part in (train, test))
        return _counted("files", _found(in_train, in_test), _found(in_test, in_train))
    train_pixels, test_pixels = train.array, test.array
    if train_pixels is None or test_pixels is None:
        return SharedImages(None, total=len(test), reason="dataset.cache=none reads no image before the run")
    if train.image_shape != test.image_shape:
        return SharedImages(None, total=len(test), reason="images of the two parts differ in size")
    return _counted("pixels", *_equal_pixels(train_pixels, test_pixels))


def _counted(compared: Literal["pixels", "files"], in_test: np.ndarray, in_train: np.ndarray) -> SharedImages:
    """Counts of bool `(training images,)` and `(test images,)`."""
    return SharedImages(compared, int(in_train.sum()), int(in_test.sum()), len(in_train))


def _found(those: Sequence[Any] | np.ndarray, among: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Which of `those` are `among` the others, bool `(those,)`."""
    known = set(among)
    return np.fromiter((one in known for one in those), dtype=bool, count=len(those))


def _equal_pixels(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which images of uint8 `(images, 3, height, width)` are in the other array, bool `(images,)` of each."""
    sums = [np.concatenate([*_sums(part), np.empty(0, np.uint64)]) for part in (train, test)]
    # Equal sums are rare, and then the images themselves decide.
    candidates = np.isin(sums[0], sums[1]), np.isin(sums[1], sums[0])
    whole = [
        [part[row].tobytes() for row in np.flatnonzero(chosen)]
        for part, chosen in zip((train, test), candidates, strict=True)
    ]
    for chosen, own, other in zip(candidates, whole, reversed(whole), strict=True):
        chosen[chosen] = _found(own, other)
    return candidates


def _sums(images: np.ndarray) -> Iterator[np.ndarray]:
    """A number for each image, uint64 `(images,)` block by block; equal images have equal ones."""
    rows = images.reshape(len(images), int(np.prod(images.shape[1:])))
    whole = rows.shape[1] // 8 * 8
    weights = np.random.default_rng(_SEED).integers(0, 2**63, whole // 8 + 8, dtype=np.uint64) * np.uint64(2) + 1
    step = max(1, _BLOCK_BYTES // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        # Of unsigned words the sum wraps around, alike everywhere.
        words = np.ascontiguousarray(block[:, :whole]).view(np.uint64) @ weights[: whole // 8]
        rest = block[:, whole:].astype(np.uint64) @ weights[whole // 8 : whole // 8 + rows.shape[1] - whole]
        yield words + rest
