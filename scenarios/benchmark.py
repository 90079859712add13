"""A `StreamPlan` and two data sets become an Avalanche benchmark, in the exact order of the plan.

Two views of one plan. `sessions`: one training experience a session. `merged`: one training experience that holds the
whole order, for learners that must not see where a session ends; nothing reachable from that experience tells.
Train with `strategy.train(experience, shuffle=False)`: Avalanche shuffles by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, DatasetExperience, EagerCLStream
from avalanche.benchmarks.scenarios import ExperienceAttribute
from avalanche.benchmarks.utils import ConstantSequence, DataAttribute, TaskLabels, TransformGroups
from avalanche.benchmarks.utils.classification_dataset import (
    ClassificationDataset,
    TaskAwareSupervisedClassificationDataset,
)

from scenarios.errors import DataError, PlanError
from scenarios.plan import StreamPlan, class_ids
from scenarios.si_blurry import si_blurry_plan

__all__ = ["ImageSource", "PlannedBenchmark", "View", "benchmark_from_plan", "si_blurry_benchmark"]

View = Literal["sessions", "merged"]
Transform = Callable[[torch.Tensor], Any]


class ImageSource(Protocol):
    """What a data set must offer: class ids as `targets (samples,)`, and `(image, target, index)` items.

    Images are uint8 `(height, width, 3)` arrays or PIL images.
    """

    @property
    def targets(self) -> Any:
        """Class ids `(samples,)` in data set order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int, int]: ...


class ImageTensors(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A data set as Avalanche wants it: items are (uint8 tensor `(3, height, width)`, class id)."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, target, _ = self.source[index]
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise DataError(f"image {index} is {pixels.dtype} {pixels.shape}: images must be uint8 (height, width, 3)")
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")), int(target)


class PlannedBenchmark(CLScenario):
    """An Avalanche benchmark that knows its plan; its experiences do not.

    Attributes:
        plan: the stream that the training experiences present. Streams and experiences hold no reference to it or to
            this benchmark, so that no strategy can look ahead.
        view: `sessions` or `merged`.
        sessions: session of every training experience in view `sessions`, where empty sessions have none; else None.
    """

    def __init__(
        self, streams: Sequence[EagerCLStream], plan: StreamPlan, view: View, sessions: tuple[int, ...] | None
    ) -> None:
        super().__init__(streams)
        self.plan = plan
        self.view = view
        self.sessions = sessions


def si_blurry_benchmark(
    train: ImageSource,
    test: ImageSource,
    *,
    num_classes: int | None = None,
    n_sessions: int = 5,
    disjoint_class_pct: int = 50,
    blurry_sample_pct: int = 10,
    seed: int = 1,
    mode: str = "exact",
    varying: bool = True,
    allow_empty_sessions: bool = False,
    allow_home: bool = False,
    class_names: Sequence[str] | None = None,
    dataset_name: str | None = None,
    view: View = "sessions",
    task_label: int | None = None,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> PlannedBenchmark:
    """Si-Blurry as an Avalanche benchmark: `si_blurry_plan` on the training targets, then `benchmark_from_plan`.

    Args:
        train: training data set; its `class_names` and `name`, where it has them, go into the plan.
        test: test data set.
        num_classes: see `si_blurry_plan`, like all arguments up to `dataset_name`.
        n_sessions: sessions of the stream.
        disjoint_class_pct: percent of the classes that belong to a single session.
        blurry_sample_pct: percent of the samples of all other classes that are moved to other sessions.
        seed: of the plan alone.
        mode: `exact`, `official` or `misa`.
        varying: False gives every session as many classes.
        allow_empty_sessions: exact mode: accept sessions without a sample.
        allow_home: exact mode: a moved sample may fall back into its home session.
        class_names: one name a class; None: those of `train`.
        dataset_name: kept with the plan; None: that of `train`.
        view: see `benchmark_from_plan`, like all that follow.
        task_label: one task label for all samples, or None for none.
        train_transform: applied to every training image.
        eval_transform: applied to every test image.

    Raises:
        PlanError: no such stream can be built.
        DataError: unusable test set.
    """
    if class_names is None and num_classes is None:
        class_names = getattr(train, "class_names", None)
    plan = si_blurry_plan(
        train.targets,
        num_classes=num_classes,
        n_sessions=n_sessions,
        disjoint_class_pct=disjoint_class_pct,
        blurry_sample_pct=blurry_sample_pct,
        seed=seed,
        mode=mode,
        varying=varying,
        allow_empty_sessions=allow_empty_sessions,
        allow_home=allow_home,
        class_names=class_names,
        dataset_name=str(getattr(train, "name", "")) if dataset_name is None else dataset_name,
    )
    return benchmark_from_plan(
        plan,
        train,
        test,
        view=view,
        task_label=task_label,
        train_transform=train_transform,
        eval_transform=eval_transform,
    )


def benchmark_from_plan(
    plan: StreamPlan,
    train: ImageSource,
    test: ImageSource,
    *,
    view: View = "sessions",
    task_label: int | None = None,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> PlannedBenchmark:
    """Make the Avalanche benchmark of a plan: `train_stream` in the order of the plan, `test_stream` of one experience.

    Items are `(x, y)`, or `(x, y, task label)` if there is one; y is the class id of the data set; x is a uint8 tensor
    `(3, height, width)`, or what the transform makes of it. The data attribute `sample_ids` of every experience's data
    set holds the data set indices in stream order.

    In view `sessions` every training experience has `session` (its number in the plan: empty sessions have no
    experience), the four class sets of Avalanche's timeline as sets of ints, and `remaining_counts`, int64
    `(classes,)`: the samples of every class that come after it. `future_classes` are, as in Avalanche, classes not seen
    yet; a blurry class that returns later is not among them, but has a remaining count. In view `merged` there is none
    of this.

    Args:
        plan: which sample comes when.
        train: the data set the plan was made for.
        test: test data set with class ids of the same classes.
        view: `sessions` or `merged`.
        task_label: one task label for all samples, or None for none. Several are impossible: Avalanche would regroup
            and oversample the stream.
        train_transform: module-level callable (worker processes pickle it) applied to every training image.
        eval_transform: the same for test images, and for training images in Avalanche's eval transform group.

    Raises:
        PlanError: the plan is empty or was made for other targets; unknown view; unusable task label.
        DataError: the test set is empty or has classes the plan does not know.
    """
    if view not in ("sessions", "merged"):
        raise PlanError(f"view={view!r}: choose sessions or merged")
    if task_label is not None and (isinstance(task_label, bool) or not isinstance(task_label, int) or task_label < 0):
        raise PlanError(f"task_label={task_label!r}: give one whole number from 0 for the whole stream, or None")
    plan.check_targets(train.targets)
    if len(train) != plan.num_samples:
        raise DataError(f"the training set has {len(train)} samples but {plan.num_samples} targets")
    if len(plan.order) == 0:
        raise PlanError(f"plan {plan.sha256[:12]} holds no sample: choose fewer sessions than classes, or mode=exact")
    _check_test(plan, test)

    transforms = {"train": train_transform, "eval": eval_transform}
    train_data = _avalanche_dataset(train, plan.targets.tolist(), task_label, transforms)
    test_data = _avalanche_dataset(test, class_ids(test.targets).tolist(), task_label, transforms).eval()

    sessions = tuple(index for index, session in enumerate(plan.sessions) if len(session))
    parts = [plan.sessions[index] for index in sessions] if view == "sessions" else [plan.order]
    experiences = [_experience(train_data.subset(part.tolist()), task_label) for part in parts]
    if view == "sessions":
        _add_timeline(experiences, sessions, plan)
    streams = [
        EagerCLStream("train", experiences),
        EagerCLStream("test", [_experience(test_data, task_label)]),
    ]
    return PlannedBenchmark(streams, plan, view, sessions if view == "sessions" else None)


def _check_test(plan: StreamPlan, test: ImageSource) -> None:
    if len(test) == 0:
        raise DataError("the test set is empty: an evaluation needs at least one sample")
    try:
        labels = class_ids(test.targets)
    except PlanError as error:
        raise DataError(f"the test set cannot be used: {error}") from error
    if len(labels) != len(test):
        raise DataError(f"the test set has {len(test)} samples but {len(labels)} targets")
    outside = np.flatnonzero((labels < 0) | (labels >= plan.num_classes))
    if outside.size:
        raise DataError(
            f"test sample {outside[0]} has class id {labels[outside[0]]}, outside the plan's 0..{plan.num_classes - 1}:"
            " use the classes of the training set, or make the plan with a larger num_classes"
        )


def _avalanche_dataset(
    source: ImageSource, labels: list[int], task_label: int | None, transforms: dict[str, Transform | None]
) -> ClassificationDataset | TaskAwareSupervisedClassificationDataset:
    attributes = [DataAttribute(labels, "targets"), DataAttribute(range(len(labels)), "sample_ids")]
    images = [ImageTensors(source)]
    # Without a transform, no group at all: items then skip one layer of Avalanche's indexing.
    groups = None if set(transforms.values()) == {None} else TransformGroups(transforms)
    if task_label is None:
        return ClassificationDataset(images, data_attributes=attributes, transform_groups=groups)
    attributes.append(TaskLabels(ConstantSequence(task_label, len(labels))))
    return TaskAwareSupervisedClassificationDataset(images, data_attributes=attributes, transform_groups=groups)


def _experience(dataset: Any, task_label: int | None) -> DatasetExperience:
    experience = DatasetExperience(dataset=dataset)
    if task_label is not None:
        cast(Any, experience).task_label = task_label
        cast(Any, experience).task_labels = [task_label]
    return experience


def _add_timeline(experiences: Sequence[DatasetExperience], sessions: Sequence[int], plan: StreamPlan) -> None:
    seen_after = np.cumsum(plan.counts, axis=0)
    for experience, session in zip(experiences, sessions, strict=True):
        here, seen = plan.counts[session], seen_after[session]
        remaining = seen_after[-1] - seen
        remaining.setflags(write=False)
        values: dict[str, Any] = {
            # Like Avalanche's own experience number, the session is masked on `.train()` and `.eval()` copies.
            "session": ExperienceAttribute(session),
            "classes_in_this_experience": _class_set(here > 0),
            "previous_classes": _class_set(seen - here > 0),
            "classes_seen_so_far": _class_set(seen > 0),
            "future_classes": _class_set((seen == 0) & (remaining > 0)),
            "remaining_counts": remaining,
        }
        for name, value in values.items():
            setattr(experience, name, value)


def _class_set(mask: np.ndarray[Any, Any]) -> set[int]:
    return set(np.flatnonzero(mask).tolist())
