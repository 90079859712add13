"""The data that a plan presents, as Avalanche data sets: one class for each kind of plan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, Protocol

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.classification_dataset import (
    ClassificationDataset,
    TaskAwareSupervisedClassificationDataset,
)

from scenarios._image_items import ImageSource, Transform, image_tensor, task_labels, transform_groups
from scenarios._label_matrix import known_matrix, label_matrix
from scenarios.errors import DataError, PlanError
from scenarios.multi_label_dataset import MultiLabelDataset, label_states, multi_label_dataset
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.plan import StreamPlan, class_ids

Transforms = dict[str, Transform | None]


class PresentedData(Protocol):
    """Training data in the order of a plan, and the test data."""

    test: AvalancheDataset

    def part(self, sessions: Sequence[int]) -> AvalancheDataset:
        """The samples of these sessions, one after the other."""


@singledispatch
def presented_data(
    plan: Any, train: ImageSource, test: ImageSource, task_label: int | None, transforms: Transforms
) -> PresentedData:
    """The data sets of a plan, checked against it.

    Raises:
        PlanError: no plan, or one for other targets.
        DataError: a data set that does not fit the plan.
    """
    raise PlanError(f"plan is a {type(plan).__name__}: give a StreamPlan or a MultiLabelPlan, or load_plan(path)")


class ImageTensors(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A data set as Avalanche wants it: items are (uint8 tensor `(3, height, width)`, class id)."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, target, _ = self.source[index]
        return image_tensor(image, index), int(target)


class SingleLabelData:
    """One class id an image: all parts are subsets of one data set."""

    def __init__(
        self, plan: StreamPlan, train: ImageSource, test: ImageSource, task_label: int | None, transforms: Transforms
    ) -> None:
        plan.check_targets(train.targets)
        _check_length("training", train, plan.num_samples)
        labels = self._test_labels(plan, test)
        self._plan = plan
        self._train = self._dataset(train, plan.targets.tolist(), task_label, transforms)
        self.test = self._dataset(test, labels, task_label, transforms)

    def part(self, sessions: Sequence[int]) -> AvalancheDataset:
        """The samples of these sessions, one after the other."""
        return self._train.subset(np.concatenate([self._plan.sessions[session] for session in sessions]).tolist())

    @staticmethod
    def _test_labels(plan: StreamPlan, test: ImageSource) -> list[int]:
        try:
            labels = class_ids(test.targets)
        except PlanError as error:
            raise DataError(f"the test set cannot be used: {error}") from error
        _check_length("test", test, len(labels))
        outside = np.flatnonzero((labels < 0) | (labels >= plan.num_classes))
        if outside.size:
            raise DataError(
                f"test sample {outside[0]} has class id {labels[outside[0]]}, outside the plan's"
                f" 0..{plan.num_classes - 1}: use the classes of the training set, or make the plan with a larger"
                " num_classes"
            )
        return labels.tolist()

    @staticmethod
    def _dataset(
        source: ImageSource, labels: list[int], task_label: int | None, transforms: Transforms
    ) -> ClassificationDataset | TaskAwareSupervisedClassificationDataset:
        attributes = [
            DataAttribute(labels, "targets"),
            DataAttribute(range(len(labels)), "sample_ids"),
            *task_labels(task_label, len(labels)),
        ]
        kind = ClassificationDataset if task_label is None else TaskAwareSupervisedClassificationDataset
        return kind([ImageTensors(source)], data_attributes=attributes, transform_groups=transform_groups(transforms))


class MultiLabelData:
    """Several labels an image: every part is a data set of its own, which holds only the labels that it shows."""

    def __init__(
        self,
        plan: MultiLabelPlan,
        train: ImageSource,
        test: ImageSource,
        task_label: int | None,
        transforms: Transforms,
    ) -> None:
        plan.check_targets(train.targets, getattr(train, "known", None))
        _check_length("training", train, plan.num_samples)
        self._plan, self._train = plan, train
        self._task_label, self._transforms = task_label, transforms
        self.test = self._dataset(test, range(len(test)), self._test_states(plan, test))

    def part(self, sessions: Sequence[int]) -> MultiLabelDataset:
        """The samples of these sessions, one after the other, each with the labels visible in its session."""
        rows = np.concatenate([self._plan.sessions[session] for session in sessions])
        visible = np.concatenate([self._plan.visible(session) for session in sessions])
        return self._dataset(self._train, rows.tolist(), label_states(self._plan.targets[rows], visible))

    def _dataset(self, source: ImageSource, samples: Sequence[int], states: Any) -> MultiLabelDataset:
        return multi_label_dataset(source, samples, states, task_label=self._task_label, transforms=self._transforms)

    @staticmethod
    def _test_states(plan: MultiLabelPlan, test: ImageSource) -> Any:
        try:
            labels = label_matrix(test.targets)
            known = known_matrix(getattr(test, "known", None), labels)
        except PlanError as error:
            raise DataError(f"the test set cannot be used: {error}") from error
        _check_length("test", test, len(labels))
        if labels.shape[1] != plan.num_classes:
            raise DataError(
                f"the test set has {labels.shape[1]} label columns, the plan {plan.num_classes}: use the classes of the"
                " training set"
            )
        return label_states(labels, known)


presented_data.register(StreamPlan, SingleLabelData)
presented_data.register(MultiLabelPlan, MultiLabelData)


def _check_length(part: str, source: ImageSource, labels: int) -> None:
    if len(source) != labels:
        raise DataError(f"the {part} set has {len(source)} samples but {labels} targets")
