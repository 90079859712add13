"""What every data set is to the rest of the project: images as uint8, labels, and its own identity.

One label an image is a class id; several are a multi-hot row, one column a class id.

A data set is one file of this folder with two names in it: one subclass of `DatasetSettings` and
`load(settings, *, image_size, progress) -> (train, test)`. A file may add `check(settings)`, which finds what is
missing without importing anything heavy, and `num_classes(settings) -> int | None`, known before loading.
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

    @property
    def multi_label(self) -> bool:
        """Whether an image of this data set has several labels, known before anything is loaded."""
        return False

    def check_places(self) -> None:
        """Refuse folders that loading will write into and cannot; imports nothing heavy.

        Raises:
            DataError: not writable, no space.
        """


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

    @property
    def array(self) -> np.ndarray:
        """All images, uint8 `(images, 3, height, width)`, not to be written to."""
        return self._array


class ImageDataset:
    """Labelled images of one size; labels are class ids 0..classes-1, everywhere and for good.

    Attributes:
        name: the word after `dataset=`.
        targets: int64 `(images,)` class ids, or uint8 `(images, classes)` of 0 and 1 where images have several labels;
            read-only.
        known: bool `(images, classes)`, False where a label is neither positive nor negative and `targets` is 0; None
            where all are known, always so with one label an image; read-only.
        class_names: one name a class id.
        identity: what was loaded, JSON-ready: name, version, part (train or test), sha256 of the content, how the
            parts were split and which subset was drawn.
        normalisation: the data set's own mean and standard deviation, or None where none are known.
        notes: things a reader of the results should know, one sentence each.
        skipped: files left out because they could not be read, as `path: reason`.
        file_digests: sha256 of each image's file, where the files were read before the run; else None.
    """

    def __init__(
        self,
        pixels: PixelSource,
        targets: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        *,
        identity: dict[str, str | int],
        known: np.ndarray | None = None,
        normalisation: Normalisation | None = None,
        notes: Sequence[str] = (),
        skipped: Sequence[str] = (),
        file_digests: Sequence[str] | None = None,
    ) -> None:
        if len(targets) != pixels.shape[0]:
            raise ValueError(f"{pixels.shape[0]} images but {len(targets)} targets")
        self.targets, self.known = _checked_labels(targets, known, len(class_names))
        self._pixels = pixels
        self.name = str(identity["name"])
        self.class_names = tuple(class_names)
        self.identity = dict(identity)
        self.normalisation = normalisation
        self.notes = tuple(notes)
        self.skipped = tuple(skipped)
        self.file_digests = None if file_digests is None else tuple(file_digests)

    @property
    def multi_label(self) -> bool:
        """Whether an image has several labels, that is whether `targets` are multi-hot rows."""
        return self.targets.ndim == 2

    @property
    def num_classes(self) -> int:
        """Number of classes, those without an image in this part included."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels that all images of the data set share."""
        return self._pixels.shape[2], self._pixels.shape[3]

    @property
    def array(self) -> np.ndarray | None:
        """All images, uint8 `(images, 3, height, width)`, where they are in memory; not to be written to."""
        return self._pixels.array if isinstance(self._pixels, ArrayPixels) else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | np.ndarray, int]:
        """(image uint8 `(height, width, 3)`, class id or a copy of its row uint8 `(classes,)`, index)."""
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} of a data set of {len(self)} images")
        position %= len(self)
        image = self._pixels.read(np.array([position]))[0]
        target = self.targets[position].copy() if self.multi_label else int(self.targets[position])
        return np.ascontiguousarray(image.transpose(1, 2, 0)), target, position

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


def _checked_labels(
    targets: Sequence[int] | np.ndarray, known: np.ndarray | None, num_classes: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read-only copies of targets and known labels in their canonical types.

    Raises:
        ValueError: a class id out of range, a row that is not multi-hot, known labels that do not fit the targets.
    """
    given = np.asarray(targets)
    if given.ndim == 2:
        if given.shape[1] != num_classes:
            raise ValueError(f"multi-hot targets have {given.shape[1]} columns for {num_classes} classes")
        if not np.isin(given, (0, 1)).all():
            raise ValueError("multi-hot targets must be 0 or 1")
        labels = given.astype(np.uint8)
    elif given.ndim == 1:
        labels = np.array(given, dtype=np.int64)
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"targets must lie in 0..{num_classes - 1}")
    else:
        raise ValueError(f"targets must have one or two dimensions, they have shape {given.shape}")
    labels.setflags(write=False)
    return labels, None if known is None else _checked_known(known, labels)


def _checked_known(known: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    if known.dtype != bool or known.shape != labels.shape or labels.ndim != 2:
        raise ValueError(f"known must be bool of the shape of multi-hot targets, got {known.dtype} {known.shape}")
    if labels[~known].any():
        raise ValueError("targets must be 0 where a label is not known")
    if known.all():
        return None
    copy = known.copy()
    copy.setflags(write=False)
    return copy


def label_bytes(targets: Sequence[int] | np.ndarray, known: np.ndarray | None = None) -> bytes:
    """Labels as bytes that are alike on every machine, to be hashed into an identity.

    Args:
        targets: class ids `(images,)` or multi-hot 0/1 `(images, classes)`.
        known: bool `(images, classes)` or None, as in `ImageDataset`.
    """
    labels = np.asarray(targets)
    if labels.ndim != 2:
        return labels.astype("<i8").tobytes()
    # 0 negative, 1 positive, 2 unknown; the shape, or other rows could give the same bytes.
    states = labels.astype(np.uint8) if known is None else np.where(known, labels, 2).astype(np.uint8)
    return f"multi-hot {labels.shape[0]} {labels.shape[1]}\n".encode() + states.tobytes()


def array_dataset(
    pixels: np.ndarray,
    targets: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    identity: dict[str, str | int],
    known: np.ndarray | None = None,
    **details: Any,
) -> ImageDataset:
    """A data set in memory whose identity gets the sha256 of its labels and pixels.

    Args:
        pixels: uint8 `(images, 3, height, width)`.
        targets: class ids `(images,)` or multi-hot 0/1 `(images, classes)`.
        class_names: one name a class id.
        identity: name, version and what else tells it apart.
        known: bool `(images, classes)` or None, as in `ImageDataset`.
        details: the remaining arguments of `ImageDataset`.
    """
    source = ArrayPixels(pixels)
    digest = hashlib.sha256(label_bytes(targets, known))
    digest.update(np.ascontiguousarray(pixels).data)
    full_identity = {**identity, "sha256": digest.hexdigest()}
    return ImageDataset(source, targets, class_names, identity=full_identity, known=known, **details)


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
