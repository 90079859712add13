"""`check_scenario`: what a stream promises: decided by its seed, whole, honest about itself, and silent about later."""

from __future__ import annotations

import copy
import pickle
import random
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from cl_prompts.config_folder import config_folder
from cl_prompts.contract.check import Check, Promise, checks_of, require, require_refusal
from cl_prompts.contract.toys import Pictures, Scenes, label_rows
from cl_prompts.errors import PlanError
from scenarios import benchmark_from_plan, load_plan
from scenarios.plan import DISJOINT

BATCH = 5


class ScenarioSubject:
    """A scenario under the contract, on toy images.

    Args:
        name: the word after `scenario=`.

    Raises:
        KeyError: no such scenario.
    """

    def __init__(self, name: str) -> None:
        from cl_prompts.runs.schema import group_schema, schema_name

        path = config_folder() / "scenario" / f"{name}.yaml"
        if not path.is_file():
            raise KeyError(name)
        self.name = name
        self.values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        self.values.pop("defaults", None)
        self.schema = group_schema("scenario", schema_name("scenario", self.values))
        self.settings: Any = self.schema(**self.values)

    @cached_property
    def train(self) -> Any:
        """Toy images for training, with one label each or several as the scenario has it."""
        if not self.settings.multi_label:
            return Pictures(np.random.default_rng(4).permutation(np.arange(10).repeat(16)).tolist())
        return Scenes(label_rows(150, seed=4, classes=self.num_classes, share=min(0.3, 3 / self.num_classes)))

    @cached_property
    def test(self) -> Any:
        """Toy images for testing."""
        if not self.settings.multi_label:
            return Pictures(list(range(10)) * 2, seed=1)
        return Scenes(label_rows(30, seed=5, classes=self.num_classes))

    @property
    def num_classes(self) -> int:
        """Classes that a division into tasks leaves nothing of."""
        increment = getattr(self.settings, "increment", 2)
        return (getattr(self.settings, "base", 0) or increment) + 2 * increment if self.settings.multi_label else 10

    def make(self, seed: int = 3) -> Any:
        """The stream with this seed."""
        from cl_prompts.runs.build import GENERATORS

        scenario = self.settings.model_copy(update={"seed": seed})
        config: Any = SimpleNamespace(scenario=scenario, plan_seed=seed, protocol=SimpleNamespace(stream_batch=BATCH))
        train: Any = SimpleNamespace(
            targets=self.train.targets,
            known=getattr(self.train, "known", None),
            class_names=tuple(f"class {number}" for number in range(self.num_classes)),
            name="toys",
        )
        return GENERATORS[scenario.generator](config, train)

    @cached_property
    def plan(self) -> Any:
        """The stream that checks look at."""
        return self.make()

    def benchmark(self, view: Any = "sessions") -> Any:
        """It as Avalanche has it."""
        return benchmark_from_plan(self.plan, self.train, self.test, view=view)


def the_seed_decides_the_stream(subject: ScenarioSubject) -> None:
    """One seed gives one stream, another seed another."""
    require(subject.make(3) == subject.plan, "the same seed gives another stream")
    require(len({subject.make(seed).sha256 for seed in range(3, 8)}) > 1, "every seed gives the same stream")


def global_generators_are_left_alone(subject: ScenarioSubject) -> None:
    """Making a stream neither reads nor moves the global generators."""
    plans = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]  # noqa: NPY002
        plans.append(subject.make())
        after = np.random.get_state()[1], random.getstate()  # type: ignore[index]  # noqa: NPY002
        require(np.array_equal(before[0], after[0]), "NumPy's global generator was drawn from")
        require(before[1] == after[1], "Python's global generator was drawn from")
    require(plans[0] == plans[1], "the stream depends on a global generator")


def samples_come_once(subject: ScenarioSubject) -> None:
    """No sample comes twice in a session; none at all twice where images have one label, and none is lost."""
    for number, session in enumerate(subject.plan.sessions):
        require(len(set(session.tolist())) == len(session), f"session {number} presents a sample twice")
    order = subject.plan.order.tolist()
    require(set(order) <= set(range(len(subject.train))), "a sample does not exist")
    if not subject.settings.multi_label:
        require(sorted(order) == list(range(len(subject.train))), f"{len(order)} of {len(subject.train)} samples come")


def sessions_are_as_many_as_asked(subject: ScenarioSubject) -> None:
    """There are as many sessions as the settings ask for, and what is asked for is kept with the stream."""
    plan, settings = subject.plan, subject.settings
    asked = getattr(settings, "n_sessions", None)
    if asked is None:
        asked = 1 + (subject.num_classes - (settings.base or settings.increment)) // settings.increment
    require(len(plan.sessions) == asked, f"{len(plan.sessions)} sessions, asked for {asked}")
    for key in ("n_sessions", "disjoint_class_pct", "blurry_sample_pct"):
        if hasattr(settings, key):
            require(plan.requested[key] == getattr(settings, key), f"{key} is recorded as {plan.requested[key]}")
    require(plan.requested["seed"] == 3, f"the seed is recorded as {plan.requested['seed']}")
    require(plan.session_ends.tolist() == np.cumsum([len(one) for one in plan.sessions]).tolist(), "ends are wrong")


def what_it_says_of_itself_is_so(subject: ScenarioSubject) -> None:
    """Counts and kinds of classes are those that a loop over all samples finds."""
    plan = subject.plan
    targets = np.asarray(subject.train.targets)
    for number, session in enumerate(plan.sessions):
        columns = plan.session_columns[number]
        if targets.ndim == 1:
            found = [int((targets[session] == label).sum()) for label in range(subject.num_classes)]
            require(plan.counts[number].tolist() == found, f"counts of session {number} are wrong")
            require(set(np.flatnonzero(columns)) == set(targets[session]), f"columns of session {number} are wrong")
        else:
            require(not (plan.counts[number][~columns]).any(), f"session {number} counts labels that it hides")
    if targets.ndim == 1:
        for label in np.flatnonzero(plan.class_kind == DISJOINT):
            homes = {number for number, one in enumerate(plan.sessions) if label in targets[one]}
            require(homes == {int(plan.home_session[label])}, f"disjoint class {label} comes in sessions {homes}")
    require(all(isinstance(line, str) and "\n" not in line for line in plan.describe()), "its description is no lines")


def it_survives_files_and_copies(subject: ScenarioSubject) -> None:
    """Saved, read, copied and pickled it is the same stream."""
    with tempfile.TemporaryDirectory() as folder:
        subject.plan.save(Path(folder) / "plan")
        read = load_plan(Path(folder) / "plan")
    for twin in (read, copy.deepcopy(subject.plan), pickle.loads(pickle.dumps(subject.plan))):
        require(twin == subject.plan, "a copy is another stream")
        same = all(map(np.array_equal, twin.sessions, subject.plan.sessions))
        require(same, "a copy presents other samples")


def it_cannot_be_changed(subject: ScenarioSubject) -> None:
    """Neither its order nor its labels can be written to."""
    for name in ("order", "targets", "session_ends"):
        require(not getattr(subject.plan, name).flags.writeable, f"{name} can be changed")


def other_labels_are_refused(subject: ScenarioSubject) -> None:
    """A data set with other labels than those it was made for is refused in one line."""
    other = np.array(subject.train.targets)
    other[0] = (other[0] + 1) % subject.num_classes if other.ndim == 1 else 1 - other[0]
    require_refusal(lambda: subject.plan.check_targets(other), PlanError, "a data set with other labels")


def the_benchmark_keeps_its_order(subject: ScenarioSubject) -> None:
    """Avalanche's experiences present its samples in exactly its order, with images and labels of these samples."""
    benchmark = subject.benchmark()
    ids = [int(one) for experience in benchmark.train_stream for one in experience.dataset.sample_ids]
    require(ids == subject.plan.order.tolist(), "experiences present another order")
    dataset = benchmark.train_stream[0].dataset
    image, label, *_ = dataset[0]
    expected, target, _ = subject.train[ids[0]]
    require(bool((image.numpy().transpose(1, 2, 0) == expected).all()), "the first image is another")
    label = np.asarray(label)
    shown = ~np.isnan(label.astype(float))
    require(bool((label[shown] == np.asarray(target)[shown]).all()), "the first image has other labels")
    require(len(benchmark.test_stream[0].dataset) == len(subject.test), "test images are missing")


def nothing_of_later_sessions_is_told(subject: ScenarioSubject) -> None:
    """An experience leads neither to the plan nor to the classes of a session before or after as its own."""
    benchmark = subject.benchmark()
    seen: set[int] = set()
    for experience in benchmark.train_stream:
        session = experience.session
        own = set(np.flatnonzero(subject.plan.session_columns[session]).tolist())
        require(set(experience.classes_in_this_experience) == own, f"session {session} announces other classes")
        require(set(experience.previous_classes) == seen, f"session {session} tells of classes not seen")
        seen |= own
        held = [name for name, value in vars(experience).items() if value is subject.plan or value is benchmark]
        require(not held, f"experiences hold the plan in {', '.join(held)}")


def hidden_labels_are_not_shown(subject: ScenarioSubject) -> None:
    """Labels outside the visible columns are NaN, those inside are those of the data set."""
    benchmark = subject.benchmark()
    for experience in benchmark.train_stream:
        rows = np.asarray(experience.dataset.label_rows.array)
        truth = np.asarray(subject.train.targets)[np.asarray(list(experience.dataset.sample_ids))]
        shown = ~np.isnan(rows)
        require(bool((rows[shown] == truth[shown]).all()), "a visible label is not that of the data set")
        outside = ~subject.plan.session_columns[experience.session]
        require(not shown[:, outside].any(), f"session {experience.session} shows labels of other sessions")


def a_merged_stream_has_no_session(subject: ScenarioSubject) -> None:
    """Merged into one experience, a stream of one label an image tells of no session; one of several is refused."""
    if subject.settings.multi_label:
        require_refusal(lambda: subject.benchmark("merged"), PlanError, "a merged stream of several labels an image")
        return
    (experience,) = subject.benchmark("merged").train_stream
    telling: Sequence[str] = (
        "session",
        "classes_in_this_experience",
        "previous_classes",
        "future_classes",
        "classes_seen_so_far",
        "remaining_counts",
        "task_classes",
    )
    told = [name for name in telling if getattr(experience, name, None) is not None]
    require(not told, f"a merged experience tells of {', '.join(told)}")
    ids = [int(one) for one in experience.dataset.sample_ids]
    require(ids == subject.plan.order.tolist(), "it presents another order")


def settings_survive_yaml(subject: ScenarioSubject) -> None:
    """Settings written as YAML and read again are the same, and an unknown key is refused."""
    written = yaml.safe_dump(subject.settings.model_dump(mode="json"))
    require(subject.schema(**yaml.safe_load(written)) == subject.settings, "settings read from YAML differ")
    require_refusal_of_key(subject)


def require_refusal_of_key(subject: ScenarioSubject) -> None:
    """Raise an AssertionError unless the settings refuse a key that they do not have."""
    from pydantic import ValidationError

    try:
        subject.schema(**{**subject.values, "no_such_key": 1})
    except ValidationError:
        return
    raise AssertionError("settings accept a key that they do not have")


PROMISES: tuple[Promise[ScenarioSubject], ...] = (
    Promise(the_seed_decides_the_stream),
    Promise(global_generators_are_left_alone),
    Promise(samples_come_once),
    Promise(sessions_are_as_many_as_asked),
    Promise(what_it_says_of_itself_is_so),
    Promise(it_survives_files_and_copies),
    Promise(it_cannot_be_changed),
    Promise(other_labels_are_refused),
    Promise(the_benchmark_keeps_its_order),
    Promise(nothing_of_later_sessions_is_told),
    Promise(hidden_labels_are_not_shown, lambda subject: subject.settings.multi_label),
    Promise(a_merged_stream_has_no_session),
    Promise(settings_survive_yaml),
)


def check_scenario(name: str) -> list[Check]:
    """The checks of a scenario on toy images; nothing runs yet.

    Args:
        name: the word after `scenario=`, a file of `configs/scenario`.

    Raises:
        KeyError: no such scenario.
    """
    subject = ScenarioSubject(name)
    return checks_of(subject, name, PROMISES)
