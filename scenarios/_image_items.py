"""What a benchmark asks of a data set, and its images as the tensors that Avalanche's loops take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from avalanche.benchmarks.utils import ConstantSequence, DataAttribute, TaskLabels, TransformGroups

from scenarios.errors import DataError

Transform = Callable[[torch.Tensor], Any]


class ImageSource(Protocol):
    """What a data set must offer: `targets` and `(image, target, index)` items.

    Images are uint8 `(height, width, 3)` arrays or PIL images. A data set with several labels an image may have
    `known`, bool `(samples, classes)`, False where a label is neither positive nor negative.
    """

    @property
    def targets(self) -> Any:
        """Class ids `(samples,)`, or rows of 0 and 1 `(samples, classes)`, in data set order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any, int]: ...


def image_tensor(image: Any, index: int) -> torch.Tensor:
    """The image of a data set as a uint8 tensor `(3, height, width)`.

    Raises:
        DataError: not uint8 `(height, width, 3)`; `index` names the image.
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(f"image {index} is {pixels.dtype} {pixels.shape}: images must be uint8 (height, width, 3)")
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def transform_groups(transforms: dict[str, Transform | None]) -> TransformGroups | None:
    """Avalanche's groups of these transforms; without any none, so that items skip one layer of indexing."""
    return None if set(transforms.values()) == {None} else TransformGroups(transforms)


def task_labels(task_label: int | None, samples: int) -> list[DataAttribute]:
    """The task label attribute that Avalanche appends to every item, or no attribute."""
    return [] if task_label is None else [TaskLabels(ConstantSequence(task_label, samples))]
