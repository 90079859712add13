"""`Predictions`: what a model says about images, with the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import UserError

Ranked = list[tuple[str, float]]
"""Names of classes with their probabilities, the most probable first."""


@dataclass(frozen=True)
class Predictions:
    """Probabilities of images; a class that the stream has not shown has 0.

    Attributes:
        probabilities: float32 `(images, classes)`; of one label an image the rows sum to 1 over the exposed classes, of
            several each number stands by itself.
        class_names: one name a column.
        exposed: bool `(classes,)`, the classes seen in the stream.
        multi_label: an image may have several labels.
        names: of the images: path of a file, else the place in what was given.
        skipped: images that were left out because they cannot be read, as `name: reason`.
    """

    probabilities: npt.NDArray[np.float32]
    class_names: tuple[str, ...]
    exposed: npt.NDArray[np.bool_]
    multi_label: bool
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.probabilities)

    def top(self, k: int = 1) -> list[Ranked]:
        """The `k` most probable exposed classes of each image, all of them where there are fewer.

        Raises:
            UserError: `k` below 1.
        """
        if k < 1:
            raise UserError(f"k={k}: must be a whole number of at least 1")
        return [self._named(row, self._order(row)[:k]) for row in self.probabilities]

    def above(self, threshold: float = 0.5) -> list[Ranked]:
        """The classes of each image whose probability is at least `threshold`, perhaps none.

        Raises:
            UserError: a model of one label an image, whose probabilities compete; or no number from 0 to 1.
        """
        if not self.multi_label:
            raise UserError("above: this model gives one label an image; use top(k)")
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold={threshold}: must be a number from 0 to 1")
        return [
            self._named(row, [column for column in self._order(row) if row[column] >= threshold])
            for row in self.probabilities
        ]

    def _order(self, row: npt.NDArray[np.float32]) -> list[int]:
        """Exposed columns, the most probable first; of equals, the first."""
        return [int(column) for column in np.argsort(-row, kind="stable") if self.exposed[column]]

    def _named(self, row: npt.NDArray[np.float32], columns: Sequence[int]) -> Ranked:
        return [(self.class_names[column], float(row[column])) for column in columns]


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of one model on one batch of images after the other, as one."""
    first = parts[0]
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        first.class_names,
        first.exposed,
        first.multi_label,
        tuple(name for part in parts for name in part.names),
        tuple(line for part in parts for line in part.skipped),
    )
