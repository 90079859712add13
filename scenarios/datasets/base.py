"""What every data set is to the rest of the project: images as uint8, class ids, and its own identity.

A data set is one file of this folder with two names in it: one subclass of `DatasetSettings` and
`load(settings, *, image_size, progress) -> (train, test)`. A file may add `check(settings)`, which finds what is
missing without importing anything heavy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import Field

from scenarios.errors import DataError
from scenarios.settings import Settings

if TYPE_CHECKING:
    import torch

ChannelTriple = tuple[float, float, float]
Normalisation = tuple[ChannelTriple, ChannelTriple]
"""Mean and standard deviation of red, green and blue, for pixels scaled to [0, 1]."""

Progress = Callable[[int, int], None]
"""Called with (files done, files in all) while a data set is read."""


class DatasetSettings(Settings):
    """Settings that every data set has; a subclass is the schema of `configs/dataset/<name>.yaml`."""

    train_per_class: int | None = Field(
        None, ge=1, description="training images used of each class, drawn at random; null: all"
    )
    subset_seed: int = Field(0, ge=0, description="seed of that draw; smaller subsets lie inside larger ones")


class PixelSource(Protocol):
    """Where the pixels of a data set come from: an array in memory or files decoded on access."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels (3), height, width."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 `(len(indices), 3, height, width)` of int64 indices `(n,)`."""


class ArrayPixels:
    """Decoded images in memory, uint8 `(images, 3, height, width)`."""

    def __init__(self, array: np.ndarray) -> None:
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3:
            raise TypeError(f"pixels must be uint8 (images, 3, height, width), got {array.dtype} {array.shape}")
        self._array = np.ascontiguousarray(array)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels (3), height, width."""
        count, channels, height, width = self._array.shape
        return count, channels, height, width

    def read(self, indices: np.ndarray) -> np.ndarray:
        """A copy of the chosen images, uint8 `(len(indices), 3, height, width)`."""
        return self._array[indices]


class ImageDataset:
    """Labelled images of one size; labels are class ids 0..classes-1, everywhere and for good.

    Attributes:
        name: the word after `dataset=`.
        targets: int64 `(images,)`, read-only.
        class_names: one name a class id.
        identity: what was loaded, JSON-ready: name, version, part (train or test), sha256 of the content, how the
            parts were split and which subset was drawn.
        normalisation: the data set's own mean and standard deviation, or None where none are known.
        notes: things a reader of the results should know, one sentence each.
        skipped: files left out because they could not be read, as `path: reason`.
    """

    def __init__(
        self,
        pixels: PixelSource,
        targets: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        *,
        identity: dict[str, str | int],
        normalisation: Normalisation | None = None,
        notes: Sequence[str] = (),
        skipped: Sequence[str] = (),
    ) -> None:
        self.targets = np.array(targets, dtype=np.int64)
        self.targets.setflags(write=False)
        if self.targets.shape != pixels.shape[:1]:
            raise ValueError(f"{pixels.shape[0]} images but targets of shape {self.targets.shape}")
        if self.targets.size and not 0 <= self.targets.min() <= self.targets.max() < len(class_names):
            raise ValueError(f"targets must lie in 0..{len(class_names) - 1}")
        self._pixels = pixels
        self.name = str(identity["name"])
        self.class_names = tuple(class_names)
        self.identity = dict(identity)
        self.normalisation = normalisation
        self.notes = tuple(notes)
        self.skipped = tuple(skipped)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image in this part included."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels that all images of the data set share."""
        return self._pixels.shape[2], self._pixels.shape[3]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        """(image uint8 `(height, width, 3)`, class id, index)."""
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} of a data set of {len(self)} images")
        position %= len(self)
        image = self._pixels.read(np.array([position]))[0]
        return np.ascontiguousarray(image.transpose(1, 2, 0)), int(self.targets[position]), position

    def images(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Images as a tensor of their own, uint8 `(len(indices), 3, height, width)` on the CPU.

        Raises:
            IndexError: an index outside 0..len-1.
        """
        import torch

        # Through a list, an empty selection would become floating point: the type is said here.
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}")
        return torch.from_numpy(self._pixels.read(chosen))

    def __repr__(self) -> str:
        height, width = self.image_shape
        return (
            f"ImageDataset({self.name}, {self.identity.get('part', '')}: {len(self)} images of {height}x{width}, "
            f"{self.num_classes} classes)"
        )


def array_dataset(
    pixels: np.ndarray,
    targets: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    identity: dict[str, str | int],
    **details: Any,
) -> ImageDataset:
    """A data set in memory whose identity gets the sha256 of its targets and pixels.

    Args:
        pixels: uint8 `(images, 3, height, width)`.
        targets: class ids `(images,)`.
        class_names: one name a class id.
        identity: name, version and what else tells it apart.
        details: the remaining arguments of `ImageDataset`.
    """
    source = ArrayPixels(pixels)
    digest = hashlib.sha256(np.asarray(targets, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return ImageDataset(source, targets, class_names, identity={**identity, "sha256": digest.hexdigest()}, **details)


def require_settings(settings: object, expected: type[DatasetSettings], name: str) -> None:
    """Refuse the settings of another data set.

    Raises:
        DataError: `settings` is no instance of `expected`.
    """
    if not isinstance(settings, expected):
        raise DataError(
            f"dataset={name} takes {expected.__name__}, got {type(settings).__name__}; "
            f"build it with read_dataset_settings({name!r})(...)"
        )
