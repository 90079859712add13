"""`TestSetImages`: the images of a test set as network input, decoded once where they fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from cl_prompts.errors import MetricError

CACHE_BYTES = 2 << 30
"""Test sets up to this size are decoded once and kept in memory."""


class TestSetImages:
    """Images of a test set, by their positions in it.

    Args:
        dataset: items (image, ...); an Avalanche data set in evaluation mode is fine.
        transform: uint8 images (batch, 3, h, w) -> float; None if the items are float already.
        batch_size: images read at once.

    Raises:
        MetricError: an empty set, raw images without a transform or float images with one.
    """

    __test__ = False  # pytest takes names like this for test classes

    def __init__(self, dataset: Any, transform: Callable[[Tensor], Tensor] | None, batch_size: int) -> None:
        if len(dataset) == 0:
            raise MetricError("the test set is empty; an evaluation needs at least one image")
        self.dataset = dataset
        self.transform = transform
        self.batch_size = batch_size
        raw = torch.as_tensor(dataset[0][0]).dtype == torch.uint8
        if raw != (transform is not None):
            needed = "uint8 images: pass a transform" if raw else "float images already: pass no transform"
            raise MetricError(f"the test set gives {needed}")
        self._images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self) -> Iterator[Tensor]:
        """Positions of all images, int64, a batch at a time."""
        return iter(torch.arange(len(self)).split(self.batch_size))

    def load(self, positions: Tensor, device: torch.device) -> Tensor:
        """Float images (batch, 3, h, w) on `device`, as the model takes them."""
        images = self.decoded(positions).to(device)
        return images if self.transform is None else self.transform(images)

    def decoded(self, positions: Tensor) -> Tensor:
        """The items' own images, before the transform."""
        if self._images is None:
            first = torch.as_tensor(self.dataset[0][0])
            if len(self) * first.nbytes > CACHE_BYTES:
                return torch.cat(list(self._read(positions)))
            self._images = torch.cat(list(self._read(torch.arange(len(self)))))
        return self._images[positions]

    def _read(self, positions: Tensor) -> Iterator[Tensor]:
        # Its own generator: iterating a loader draws a seed, by default from the generator that training uses.
        loader = DataLoader(
            Subset(self.dataset, positions.tolist()),
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(0),
            collate_fn=_first_of_each,
        )
        return iter(loader)


def _first_of_each(items: list[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(item[0]) for item in items])
