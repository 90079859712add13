"""`PicturedImages`: the few test images on which a run shows where a model looks, chosen by the test set alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cl_prompts.logging.axis_marks import names_of

if TYPE_CHECKING:
    from scenarios.datasets.base import ImageDataset
    from scenarios.transforms import EvalTransform

MOST_LABELS = 4
"""Images with more labels than that are a last resort: their captions would not fit."""


@dataclass(frozen=True, eq=False)
class PicturedImages:
    """Images for people and for the network.

    Attributes:
        images: uint8 `(n, 3, height, width)`.
        inputs: float32 `(n, 3, size, size)`, the same part of the same images, normalised.
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


def pictured_images(dataset: ImageDataset, transform: EvalTransform, count: int = 4) -> PicturedImages:
    """Choose images of a test set with several labels an image, and read them.

    Args:
        dataset: the test set.
        transform: that of the evaluation; what it cuts off or resizes is shown as the network gets it.
        count: images to choose.
    """
    labels = np.asarray(dataset.targets) == 1
    indices = pictured_indices(labels, count)
    images = transform.square(dataset.images(indices))
    captions = [", ".join(names_of(dataset.class_names, np.flatnonzero(labels[index]))[0]) for index in indices]
    return PicturedImages(images.numpy(), transform.normalise(images), captions)
