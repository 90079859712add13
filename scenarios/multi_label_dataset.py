"""Images with several labels as an Avalanche data set that no script can mistake for one with class ids.

Items are `(x, y)` with y float32 `(classes,)`: 1 has the label, 0 has not, nan hidden. `targets`, which Avalanche takes
for class ids, tells the classes that occur and refuses to be read image by image; `label_rows` holds the labels through
subset and concat, also of parts whose visible columns differ, as in a replay buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from avalanche.benchmarks import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, DataAttribute
from avalanche.benchmarks.utils.utils import TaskSet

from scenarios._image_items import ImageSource, Transform, image_tensor, task_labels, transform_groups
from scenarios._label_tensor import LabelTensor
from scenarios.errors import DataError

__all__ = ["LabelRows", "MultiLabelDataset", "MultiLabelImages", "NoClassIds", "label_states", "multi_label_dataset"]

HIDDEN = -1
"""How a hidden label is stored, beside 0 and 1; it is nan wherever it can be read."""

States = npt.NDArray[np.int8]


class NoClassIds(DataError):
    """Class ids were asked of a data set with several labels an image."""


def label_states(targets: npt.NDArray[np.uint8], visible: npt.NDArray[np.bool_] | None) -> States:
    """Labels as int8 `(samples, classes)` in which nothing is left of the hidden ones; None: all are visible."""
    states = targets.astype(np.int8)
    if visible is not None:
        states[~visible] = HIDDEN
    states.flags.writeable = False
    return states


def _as_float(states: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    rows = states.astype(np.float32)
    rows[states == HIDDEN] = np.nan
    return rows


class LabelRows(DataAttribute):
    """Label rows of a data set: index them, or read all as `array`.

    Unlike the rows, the values that Avalanche asks a data attribute for are class ids, ints: `uniques` are the classes
    with a visible positive, `val_to_idx` the positions where each of them is one, `count` their number.
    """

    NAME = "label_rows"

    def __init__(self, states: States) -> None:
        self.states = states
        super().__init__(states, self.NAME)

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """All rows, float32 `(samples, classes)`: 1 has the label, 0 has not, nan hidden."""
        return _as_float(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: Any) -> npt.NDArray[np.float32]:
        """A row float32 `(classes,)`, or rows for a slice."""
        return _as_float(self.states[index])

    @property
    def uniques(self) -> set[int]:
        """Classes with a visible positive."""
        return set(self.count)

    @property
    def count(self) -> dict[int, int]:
        """Visible positives of every class that has one."""
        positives = (self.states == 1).sum(axis=0)
        return {int(column): int(positives[column]) for column in np.flatnonzero(positives)}

    @property
    def val_to_idx(self) -> dict[int, list[int]]:
        """Positions of the visible positives of every class that has one; a position may occur under several."""
        return {column: np.flatnonzero(self.states[:, column] == 1).tolist() for column in self.count}

    def subset(self, indices: Iterable[int]) -> LabelRows:
        """The rows at these positions, in their order."""
        return LabelRows(self.states[np.array([int(index) for index in indices], dtype=np.int64)])

    def concat(self, other: DataAttribute) -> LabelRows:
        """These rows, then those of `other`; every row keeps its own hidden labels.

        Raises:
            DataError: other columns, or no label rows.
        """
        if not isinstance(other, LabelRows) or other.states.shape[1] != self.states.shape[1]:
            raise DataError(
                f"label_rows of {self.states.shape[1]} columns cannot be joined with another number of columns or"
                " another attribute: concatenate data sets of the same classes"
            )
        return LabelRows(np.concatenate([self.states, other.states]))


class ClassesOfLabels:
    """Which classes occur in a data set with several labels an image, in the words of Avalanche's `targets`.

    `uniques`, `count` and `val_to_idx` as of `LabelRows`. It has no items: an image has no class id here.
    """

    def __init__(self, rows: LabelRows) -> None:
        self.uniques = rows.uniques
        self.count = rows.count
        self.val_to_idx = rows.val_to_idx

    def _refuse(self, *arguments: Any) -> Any:
        raise NoClassIds(
            "this data set has several labels an image and no class ids: read dataset.label_rows (float32 rows, nan"
            " where hidden), and use mAP, CF1 or OF1 instead of accuracy"
        )

    __getitem__ = __iter__ = __len__ = __array__ = _refuse


class MultiLabelImages(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Some images of a data set in presentation order, with label rows of their own.

    The labels of the data set itself are never read here, so nothing that is hidden can reach an item.
    """

    def __init__(self, source: ImageSource, samples: Sequence[int], rows: LabelRows) -> None:
        self.source = source
        self.samples = samples
        self.rows = rows

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = int(self.samples[index])
        return image_tensor(self.source[sample][0], sample), torch.from_numpy(self.rows[index]).as_subclass(LabelTensor)


class MultiLabelDataset(AvalancheDataset):
    """An Avalanche data set with the attributes `label_rows` and `sample_ids`."""

    label_rows: LabelRows
    sample_ids: DataAttribute
    targets_task_labels: DataAttribute

    @property
    def targets(self) -> ClassesOfLabels:
        """What Avalanche's class timeline reads: the classes with a visible positive, and no class id of an image."""
        return ClassesOfLabels(self.label_rows)

    @property
    def task_set(self) -> TaskSet:
        """Avalanche's mapping of task labels to their parts."""
        return TaskSet(self)


class NoTaskLabels(NoClassIds, AttributeError):
    """Task labels were asked of a benchmark without them; to `hasattr` and `getattr` they are simply not there."""


class WithoutTaskLabels(DatasetExperience):
    """An experience of images with several labels and no task label, which tells what to use instead."""

    @property
    def task_labels(self) -> list[int]:
        """Refused.

        Raises:
            NoTaskLabels: always. Avalanche takes batches for triples as soon as an experience has task labels.
        """
        raise NoTaskLabels(
            "this benchmark was made with task_label=None and has no task labels; give task_label=0 where a strategy"
            " needs them; of several labels an image accuracy metrics would be meaningless: use mean average precision"
            " (mAP), CF1 or OF1"
        )


def multi_label_dataset(
    source: ImageSource,
    samples: Sequence[int],
    states: States,
    *,
    task_label: int | None = None,
    transforms: dict[str, Transform | None] | None = None,
) -> MultiLabelDataset:
    """The Avalanche data set of some images of a data set.

    Args:
        source: where the images come from.
        samples: data set indices in presentation order; the data attribute `sample_ids`.
        states: int8 `(len(samples), classes)` of `label_states`.
        task_label: one task label for all items, or None for none.
        transforms: the x transforms of Avalanche's `train` and `eval` group.
    """
    rows = LabelRows(states)
    samples = [int(sample) for sample in samples]
    # Without a task label Avalanche still finds the one task there is, but items stay pairs.
    one_task = DataAttribute(ConstantSequence(0, len(samples)), "targets_task_labels", use_in_getitem=False)
    tasks = task_labels(task_label, len(samples)) or [one_task]
    return MultiLabelDataset(
        [MultiLabelImages(source, samples, rows)],
        data_attributes=[rows, DataAttribute(samples, "sample_ids"), *tasks],
        transform_groups=transform_groups(transforms or {"train": None, "eval": None}),
    )
