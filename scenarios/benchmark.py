"""A plan and two data sets become an Avalanche benchmark, in the exact order of the plan.

Two views of one plan. `sessions`: one training experience a session. `merged`: one training experience that holds the
whole order, for learners that must not see where a session ends; nothing reachable from that experience tells, except
that labels which are visible in one session only are hidden in the next.
Train with `strategy.train(experience, shuffle=False)`: Avalanche shuffles by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from avalanche.benchmarks import CLScenario, DatasetExperience, EagerCLStream
from avalanche.benchmarks.scenarios import ExperienceAttribute

from scenarios._image_items import ImageSource, Transform
from scenarios._presented_data import presented_data
from scenarios.errors import DataError, PlanError
from scenarios.multi_label_dataset import MultiLabelDataset, WithoutTaskLabels
from scenarios.plan import StreamPlan
from scenarios.plans import Plan
from scenarios.si_blurry import si_blurry_plan

__all__ = ["ImageSource", "PlannedBenchmark", "View", "benchmark_from_plan", "si_blurry_benchmark"]

View = Literal["sessions", "merged"]


class PlannedBenchmark(CLScenario):
    """An Avalanche benchmark that knows its plan; its experiences do not.

    Attributes:
        plan: the stream that the training experiences present. Streams and experiences hold no reference to it or to
            this benchmark, so that no strategy can look ahead.
        view: `sessions` or `merged`.
        sessions: session of every training experience in view `sessions`, where empty sessions have none; else None.
    """

    def __init__(
        self, streams: Sequence[EagerCLStream], plan: Plan, view: View, sessions: tuple[int, ...] | None
    ) -> None:
        super().__init__(streams)
        self.plan = plan
        self.view = view
        self.sessions = sessions

    @property
    def n_classes(self) -> int:
        """Classes of the data set, those that the stream leaves out included."""
        return self.plan.num_classes


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
    plan: Plan,
    train: ImageSource,
    test: ImageSource,
    *,
    view: View = "sessions",
    task_label: int | None = None,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> PlannedBenchmark:
    """Make the Avalanche benchmark of a plan: `train_stream` in the order of the plan, `test_stream` of one experience.

    Items are `(x, y)`, or `(x, y, task label)` if there is one; x is a uint8 tensor `(3, height, width)`, or what the
    transform makes of it. The data attribute `sample_ids` of every experience's data set holds the data set indices in
    stream order. With one label an image, y is the class id of the data set. With several, y is float32 `(classes,)`:
    1 has the label, 0 has not, nan hidden; `dataset.label_rows` holds the same rows, `label_rows.array` all of them,
    and there is no `dataset.targets`. Test items show all labels that are known.

    In view `sessions` every training experience has `session` (its number in the plan: empty sessions have no
    experience), the four class sets of Avalanche's timeline as sets of ints, and `remaining_counts`, int64
    `(classes,)`: the samples of every class that come after it. `future_classes` are, as in Avalanche, classes not seen
    yet; a blurry class that returns later is not among them, but has a remaining count. With several labels an image,
    the classes of an experience are the columns that it shows, and what is counted are visible positives. In view
    `merged` there is none of this.

    Args:
        plan: which sample comes when.
        train: the data set the plan was made for.
        test: test data set with labels of the same classes.
        view: `sessions` or `merged`; a stream of tasks has `sessions` only.
        task_label: one task label for all samples, or None for none. Several are impossible: Avalanche would regroup
            and oversample the stream.
        train_transform: module-level callable (worker processes pickle it) applied to every training image.
        eval_transform: the same for test images, and for training images in Avalanche's eval transform group.

    Raises:
        PlanError: the plan is empty or was made for other targets; unknown or unfit view; unusable task label.
        DataError: the test set is empty or has classes the plan does not know.
    """
    if view not in ("sessions", "merged"):
        raise PlanError(f"view={view!r}: choose sessions or merged")
    if task_label is not None and (isinstance(task_label, bool) or not isinstance(task_label, int) or task_label < 0):
        raise PlanError(f"task_label={task_label!r}: give one whole number from 0 for the whole stream, or None")
    if len(test) == 0:
        raise DataError("the test set is empty: an evaluation needs at least one sample")
    data = presented_data(plan, train, test, task_label, {"train": train_transform, "eval": eval_transform})
    if len(plan.order) == 0:
        raise PlanError(f"plan {plan.sha256[:12]} holds no sample: choose fewer sessions than classes, or mode=exact")
    if view == "merged" and not isinstance(plan, StreamPlan):
        raise PlanError(
            "view='merged': the visible labels of a stream with several labels an image tell where its sessions end,"
            " nothing can hide it; use view='sessions'"
        )

    sessions = tuple(index for index, session in enumerate(plan.sessions) if len(session))
    parts = [(index,) for index in sessions] if view == "sessions" else [sessions]
    experiences = [_experience(data.part(part), task_label) for part in parts]
    if view == "sessions":
        _add_timeline(experiences, sessions, plan)
    streams = [
        EagerCLStream("train", experiences),
        EagerCLStream("test", [_experience(data.test.eval(), task_label)]),
    ]
    return PlannedBenchmark(streams, plan, view, sessions if view == "sessions" else None)


def _experience(dataset: Any, task_label: int | None) -> DatasetExperience:
    several = task_label is None and isinstance(dataset, MultiLabelDataset)
    experience = (WithoutTaskLabels if several else DatasetExperience)(dataset=dataset)
    if task_label is not None:
        cast(Any, experience).task_label = task_label
        cast(Any, experience).task_labels = [task_label]
    return experience


def _add_timeline(experiences: Sequence[DatasetExperience], sessions: Sequence[int], plan: Plan) -> None:
    columns, counted = plan.session_columns, np.cumsum(plan.counts, axis=0)
    # A blurry stream has no tasks: which classes a session will show is known only once they have come.
    is_tasks = getattr(plan, "anchors", None) is None and not (columns.sum(axis=0) > 1).any()
    for experience, session in zip(experiences, sessions, strict=True):
        before = columns[:session].any(axis=0)
        seen = before | columns[session]
        later = columns[session + 1 :].any(axis=0)
        remaining = counted[-1] - counted[session]
        remaining.setflags(write=False)
        values: dict[str, Any] = {
            # Like Avalanche's own experience number, the session is masked on `.train()` and `.eval()` copies.
            "session": ExperienceAttribute(session),
            "classes_in_this_experience": _class_set(columns[session]),
            "previous_classes": _class_set(before),
            "classes_seen_so_far": _class_set(seen),
            "future_classes": _class_set(later & ~seen),
            "remaining_counts": remaining,
        }
        if is_tasks:
            values["task_classes"] = values["classes_in_this_experience"]
        for name, value in values.items():
            setattr(experience, name, value)


def _class_set(mask: Any) -> set[int]:
    return set(np.flatnonzero(mask).tolist())
