"""`PicturedImages`: the few test images on which a run shows where a model looks, chosen by the test set alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cl_prompts.logging.axis_marks import names_of

MOST_LABELS = 4
"""Images with more labels than that are a last resort: their captions would not fit."""


@dataclass(frozen=True, eq=False)
class PicturedImages:
    """Images as people see them and as the network gets them.

    Attributes:
        images: uint8 `(n, 3, height, width)`.
        inputs: float32 `(n, 3, size, size)`, the same images resized and normalised, nothing cut off.
        captions: names of the true labels of each image.
    """

    images: npt.NDArray[np.uint8]
    inputs: Tensor
    captions: Sequence[str]


def pictured_indices(targets: npt.ArrayLike, count: int = 4) -> list[int]:
    """Images with several labels that together show as many classes as possible; no chance, no model in it.

    One after the other is taken the image with the most labels that no chosen one has; first among those with 2 to
    `MOST_LABELS` labels, then among those with more, then among the rest. Of equals the first in the data set.

    Args:
        targets: 0/1 `(n, classes)`; anything but 1 is no label.
        count: images to choose.

    Returns:
        At most `count` indices, in the order of the choice.
    """
    labels = np.asarray(targets) == 1
    number = labels.sum(axis=1)
    rank = np.select([(number >= 2) & (number <= MOST_LABELS), number > MOST_LABELS], [2, 1], 0)
    covered = np.zeros(labels.shape[1], bool)
    chosen: list[int] = []
    for _ in range(min(count, len(labels))):
        news = labels[:, ~covered].sum(axis=1)
        # Stable: the first of equals is the first in the data set.
        order = np.lexsort((-number, -news, -rank))
        chosen.append(next(int(index) for index in order if int(index) not in chosen))
        covered |= labels[chosen[-1]]
    return chosen


def pictured_images(
    dataset: Any, class_names: Sequence[str], transform: Callable[[Tensor], Tensor], count: int = 4
) -> PicturedImages:
    """Choose images of a test set with several labels an image, and read them.

    Args:
        dataset: items (uint8 image, ...), height x width x 3, with multi-hot `targets` `(n, classes)`.
        class_names: one name a class.
        transform: uint8 `(n, 3, height, width)` -> network inputs, as in evaluation.
        count: images to choose.
    """
    targets = np.asarray(dataset.targets)
    indices = pictured_indices(targets, count)
    images = torch.stack([torch.as_tensor(np.asarray(dataset[index][0])).permute(2, 0, 1) for index in indices])
    captions = [", ".join(names_of(class_names, np.flatnonzero(targets[index] == 1))[0]) for index in indices]
    return PicturedImages(images.numpy(), transform(images), captions)
