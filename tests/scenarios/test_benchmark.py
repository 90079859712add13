"""The Avalanche benchmark of a plan: exact order, honest timeline, and a merged stream without readable boundaries."""

from __future__ import annotations

import gc
import pickle
import types
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios import MaskedAttributeError
from avalanche.core import SupervisedPlugin
from avalanche.training import LwF, Naive, Replay
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from scenarios.benchmark import PlannedBenchmark, benchmark_from_plan, si_blurry_benchmark
from scenarios.errors import DataError, PlanError
from scenarios.plan import StreamPlan
from scenarios.si_blurry import si_blurry_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CLASSES = 7
LABELS = np.random.default_rng(5).integers(0, CLASSES, 231)
SEED = 5  # of sessions whose sizes and ends are no multiple of a batch and no other number of these tests
VIEWS = ("sessions", "merged")


class Pictures:
    """A data set whose images tell their index: red and green of the first pixel."""

    def __init__(self, targets, class_names=None, name=""):
        self.targets = np.asarray(targets)
        self.class_names = class_names
        self.name = name

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = np.zeros((4, 5, 3), dtype=np.uint8)
        image[0, 0] = index // 256, index % 256, 9
        image.flags.writeable = False
        return image, int(self.targets[index]), index


def index_of(images):
    return (images[:, 0, 0, 0].long() * 256 + images[:, 1, 0, 0].long()).tolist()


def as_float(images):
    return images.float()


class Halved:
    """A module-level transform, as worker processes need it."""

    def __call__(self, image):
        return image.float() / 2


class Recorder(SupervisedPlugin):
    """Notes the samples of every training batch, as the strategy sees them."""

    def __init__(self):
        super().__init__()
        self.batches, self.labels = [], []

    def before_forward(self, strategy, **kwargs):
        self.batches.append(index_of(strategy.mb_x))
        self.labels += strategy.mb_y.tolist()


class TinyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(60, CLASSES)

    def forward(self, images):
        return self.head(images.flatten(1) / 255)


def train_set():
    return Pictures(LABELS)


def test_set():
    return Pictures(np.arange(50) % CLASSES)


def tiny_benchmark(**changes):
    return si_blurry_benchmark(
        train_set(), test_set(), **({"n_sessions": 3, "blurry_sample_pct": 30, "seed": SEED} | changes)
    )


def strategy_with(recorder, kind=Naive, **options):
    model = TinyModel()
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=16,
        eval_mb_size=25,
        plugins=[recorder],
        evaluator=None,
        **options,
    )


def train_on(strategy, benchmark, num_workers=0):
    for experience in benchmark.train_stream:
        strategy.train(experience, shuffle=False, num_workers=num_workers)


# --- order and items -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("task_label", [None, 0])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_strategy_sees_exactly_the_plan(view, task_label, num_workers):
    benchmark = tiny_benchmark(view=view, task_label=task_label, train_transform=as_float)
    recorder = Recorder()
    train_on(strategy_with(recorder), benchmark, num_workers)
    plan = benchmark.plan
    parts = plan.sessions if view == "sessions" else [plan.order]
    expected = [part[a : a + 16].tolist() for part in parts for a in range(0, len(part), 16)]
    assert recorder.batches == expected
    assert recorder.labels == LABELS[plan.order].tolist()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("task_label", [None, 0, 3])
def test_items_and_sample_ids(view, task_label):
    benchmark = tiny_benchmark(view=view, task_label=task_label)
    assert isinstance(benchmark, CLScenario)
    seen = []
    for experience in benchmark.train_stream:
        data = experience.dataset
        seen += list(data.sample_ids)
        assert list(data.targets) == LABELS[list(data.sample_ids)].tolist()
        assert all(type(label) is int for label in data.targets.uniques)
        image, label, *rest = data[5]
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 4, 5))
        assert index_of(image[None]) == [data.sample_ids[5]]
        assert (label, rest) == (data.targets[5], [] if task_label is None else [task_label])
        assert hasattr(experience, "task_labels") == (task_label is not None)
        if task_label is not None:
            assert (experience.task_label, experience.task_labels) == (task_label, [task_label])
    assert seen == benchmark.plan.order.tolist()
    assert all(type(sample) is int for sample in seen)
    (test_experience,) = benchmark.test_stream
    assert list(test_experience.dataset.targets) == test_set().targets.tolist()
    assert list(test_experience.dataset.sample_ids) == list(range(50))


def test_each_part_has_its_transform():
    benchmark = tiny_benchmark(train_transform=Halved(), eval_transform=as_float)
    train_data = benchmark.train_stream[0].dataset
    test_data = benchmark.test_stream[0].dataset
    assert train_data[0][0][2, 0, 0] == 4.5
    assert train_data.eval()[0][0][2, 0, 0] == 9
    assert test_data[0][0][2, 0, 0] == 9
    only_train = tiny_benchmark(train_transform=Halved())
    assert only_train.test_stream[0].dataset[0][0].dtype == torch.uint8
    assert only_train.train_stream[0].dataset.eval()[0][0].dtype == torch.uint8


@pytest.mark.parametrize("view", VIEWS)
def test_data_reaches_spawned_workers(view):
    """Everything a worker needs survives pickling, and gives the same items in the same order."""
    data = tiny_benchmark(view=view, task_label=0, train_transform=Halved()).train_stream[0].dataset
    copy = pickle.loads(pickle.dumps(data))
    pairs = zip(DataLoader(data, batch_size=20), DataLoader(copy, batch_size=20), strict=True)
    assert all(torch.equal(a, b) for batch, twin in pairs for a, b in zip(batch, twin, strict=True))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "kind, options",
    [(Naive, {}), (Replay, {"mem_size": 20}), (LwF, {"alpha": 1.0, "temperature": 2.0})],
    ids=["naive", "replay", "lwf"],
)
def test_stock_strategies_run(view, kind, options):
    benchmark = tiny_benchmark(view=view, task_label=0, train_transform=as_float, eval_transform=as_float)
    recorder = Recorder()
    strategy = strategy_with(recorder, kind, **options)
    before = strategy.model.head.weight.detach().clone()
    train_on(strategy, benchmark)
    strategy.eval(benchmark.test_stream)
    assert not torch.equal(before, strategy.model.head.weight)
    if kind is LwF:
        assert [sample for batch in recorder.batches for sample in batch] == benchmark.plan.order.tolist()


def test_replay_without_task_labels():
    benchmark = tiny_benchmark(train_transform=as_float, eval_transform=as_float)
    train_on(strategy_with(Recorder(), Replay, mem_size=20), benchmark)


def test_two_views_hold_the_same_samples():
    sessions, merged = tiny_benchmark(view="sessions"), tiny_benchmark(view="merged")
    assert sessions.plan == merged.plan
    assert len(merged.train_stream) == 1
    joined = [sample for experience in sessions.train_stream for sample in experience.dataset.sample_ids]
    assert list(merged.train_stream[0].dataset.sample_ids) == joined


# --- the merged stream tells nothing ---------------------------------------------------------------------------------

NOT_DATA = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CodeType)


def reachable(start):
    """Every object that can be reached from `start` through references, without entering code."""
    seen, todo = {}, [start]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, NOT_DATA):
            continue
        seen[id(thing)] = thing
        todo += gc.get_referents(thing)
        if isinstance(thing, np.ndarray | torch.Tensor | range) and len(thing) < 10_000:
            todo.append(list(thing) if isinstance(thing, range) else thing.tolist())
    return seen.values()


def whole_numbers(thing):
    """`thing` as a list of whole numbers if it is a collection of them, else None."""
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset) and thing and all(type(one) is int for one in thing):
        return sorted(thing) if isinstance(thing, set | frozenset) else list(thing)
    return None


def boundary_traces(start, plan):
    """What an inquisitive strategy finds: the plan itself, or numbers that tell where a session ends."""
    sizes = np.diff(plan.session_ends, prepend=0).tolist()
    ends = plan.session_ends.tolist()
    telling = set(sizes) | set(ends[:-1])
    session_of_position = np.repeat(np.arange(len(sizes)), sizes)
    session_of_sample = session_of_position[np.argsort(plan.order)]
    traces = []
    for thing in reachable(start):
        if isinstance(thing, StreamPlan | PlannedBenchmark):
            traces.append(type(thing).__name__)
            continue
        try:
            if 0 < len(thing) < 10_000 and len(thing) in telling:
                traces.append(f"{type(thing).__name__} of length {len(thing)}")
        except (TypeError, NotImplementedError):
            pass
        values = vars(thing).values() if hasattr(thing, "__dict__") else ()
        if any(type(value) is int and value in telling for value in values):
            traces.append(f"attribute of {type(thing).__name__}")
        numbers = whole_numbers(thing)
        if numbers is None:
            continue
        if len(numbers) < plan.num_samples and telling & set(numbers):
            traces.append(f"{type(thing).__name__} {numbers[:5]}")
        for sessions in (session_of_position, session_of_sample):
            if len(numbers) == len(sessions) and len(set(numbers)) > 1:
                # One value a session, constant within it: the samples are labelled with their session.
                per_session = [set(np.array(numbers)[sessions == t].tolist()) for t in range(len(sizes))]
                if all(len(values) == 1 for values in per_session):
                    traces.append(f"{type(thing).__name__} that labels sessions")
    return traces


def test_no_boundary_can_be_found_in_the_merged_stream():
    benchmark = tiny_benchmark(view="merged", task_label=0, train_transform=Halved(), eval_transform=as_float)
    (experience,) = benchmark.train_stream
    for start in (experience, experience.train(), experience.logging(), benchmark.train_stream, benchmark.test_stream):
        assert boundary_traces(start, benchmark.plan) == []
    public = [name for name in dir(experience) if not name.startswith("_")]
    for forbidden in (
        "session",
        "plan",
        "benchmark",
        "remaining_counts",
        "classes_in_this_experience",
        "future_classes",
    ):
        assert forbidden not in public
    assert experience.origin_stream.benchmark is None
    assert set(experience.dataset._data_attributes) == {"targets", "sample_ids", "targets_task_labels"}
    assert experience.dataset.targets_task_labels.uniques == {0}


def test_the_search_for_boundaries_does_find_them():
    """The search above is worth something: it finds every kind of trace where there is one."""
    benchmark = tiny_benchmark(view="merged")
    plan = benchmark.plan
    (experience,) = benchmark.train_stream
    assert boundary_traces(tiny_benchmark(view="sessions").train_stream, plan)
    assert boundary_traces(benchmark, plan)
    for leak in (
        plan,
        int(plan.session_ends[0]),
        plan.session_ends,
        np.repeat([4, 5, 6], np.diff(plan.session_ends, prepend=0)),
        {"parts": [list(range(len(plan.sessions[1])))]},
    ):
        experience.extra = leak
        assert boundary_traces(experience, plan), leak
    del experience.extra
    assert boundary_traces(experience, plan) == []


def test_batches_of_the_merged_stream_show_no_session_end():
    recorder = Recorder()
    benchmark = tiny_benchmark(view="merged", train_transform=as_float)
    train_on(strategy_with(recorder), benchmark)
    sizes = [len(batch) for batch in recorder.batches]
    assert sizes == [16] * 14 + [7]
    assert all(end % 16 for end in benchmark.plan.session_ends[:-1])


def test_experiences_never_lead_to_the_plan():
    """In either view, the benchmark knows its plan and the streams do not."""
    for view in VIEWS:
        benchmark = tiny_benchmark(view=view)
        assert isinstance(benchmark.plan, StreamPlan)
        for stream in benchmark.streams.values():
            assert not any(isinstance(thing, StreamPlan | PlannedBenchmark) for thing in reachable(stream))


# --- sessions --------------------------------------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 5), min_size=12, max_size=80),
    n_sessions=st.integers(1, 6),
    seed=st.integers(0, 1000),
    blurry=st.integers(0, 100),
)
@settings(deadline=None, max_examples=25)
def test_timeline_against_loops(labels, n_sessions, seed, blurry):
    plan = si_blurry_plan(
        labels,
        num_classes=6,
        n_sessions=n_sessions,
        blurry_sample_pct=blurry,
        disjoint_class_pct=30,
        seed=seed,
        allow_empty_sessions=True,
    )
    benchmark = benchmark_from_plan(plan, Pictures(labels), Pictures([0, 1]))
    classes = [[labels[i] for i in session.tolist()] for session in plan.sessions]
    filled = [t for t in range(n_sessions) if classes[t]]
    assert benchmark.sessions == tuple(filled)
    assert [experience.session for experience in benchmark.train_stream] == filled
    assert [experience.current_experience for experience in benchmark.train_stream] == list(range(len(filled)))
    for t, experience in zip(filled, benchmark.train_stream, strict=True):
        before, later = list(chain(*classes[:t])), list(chain(*classes[t + 1 :]))
        assert len(experience.dataset) > 0
        assert experience.classes_in_this_experience == set(classes[t])
        assert experience.previous_classes == set(before)
        assert experience.classes_seen_so_far == set(before + classes[t])
        assert experience.future_classes == set(later) - set(before + classes[t])
        assert experience.remaining_counts.tolist() == [later.count(c) for c in range(6)]
        for name in ("classes_in_this_experience", "previous_classes", "classes_seen_so_far", "future_classes"):
            values = getattr(experience, name)
            assert type(values) is set
            assert all(type(value) is int for value in values)


def test_session_is_hidden_where_avalanche_hides_the_experience_number():
    experience = tiny_benchmark().train_stream[1]
    assert experience.session == 1
    with pytest.raises(MaskedAttributeError):
        _ = experience.train().session


def test_attributes_stay_when_the_stream_is_read_again():
    stream = tiny_benchmark().train_stream
    assert [experience.session for experience in stream[1:]] == [1, 2]
    assert stream[2].session == 2
    assert stream[2].classes_seen_so_far == set(range(CLASSES))


def test_empty_sessions_of_a_published_plan_are_left_out():
    (path,) = (Path(__file__).parent.parent / "golden").glob("si_blurry_official_case06.npz")
    with np.load(path) as golden:
        targets, offsets = golden["targets"], golden["index_offsets"]
    benchmark = si_blurry_benchmark(
        Pictures(targets),
        test_set(),
        n_sessions=10,
        disjoint_class_pct=30,
        blurry_sample_pct=50,
        seed=7,
        mode="official",
    )
    assert benchmark.sessions == (0, 1, 2, 3, 4, 5, 6, 7, 9)
    assert [len(experience.dataset) for experience in benchmark.train_stream] == [n for n in np.diff(offsets) if n]


def test_names_come_from_the_data_set():
    names = tuple("abcdefghi")
    train = Pictures(LABELS, class_names=names, name="digits")
    plan = si_blurry_benchmark(train, test_set(), n_sessions=3).plan
    assert (plan.class_names, plan.num_classes, plan.provenance["dataset"]) == (names, 9, "digits")
    assert plan == si_blurry_plan(LABELS, num_classes=9, n_sessions=3)
    own = si_blurry_benchmark(train, test_set(), n_sessions=3, num_classes=8, dataset_name="mine").plan
    assert (own.class_names, own.num_classes, own.provenance["dataset"]) == (None, 8, "mine")


# --- refusals --------------------------------------------------------------------------------------------------------


class ShortPictures(Pictures):
    def __len__(self):
        return 3


PLAN = si_blurry_plan(LABELS, n_sessions=3)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    EMPTY_PLAN = si_blurry_plan(LABELS, n_sessions=9, mode="official")


class WrongPictures(Pictures):
    """Images that would silently turn black, or have one channel."""

    def __init__(self, image):
        super().__init__(LABELS)
        self.image = image

    def __getitem__(self, index):
        return self.image, int(self.targets[index]), index


@pytest.mark.parametrize("image", [np.full((4, 5, 3), 0.5), np.zeros((4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8)])
def test_images_of_another_kind_are_refused(image):
    data = benchmark_from_plan(PLAN, WrongPictures(image), test_set()).train_stream[0].dataset
    with pytest.raises(DataError, match=r"image \d+ is .*: images must be uint8 \(height, width, 3\)"):
        _ = data[0]


REFUSALS = {
    "unknown view": ({"view": "stream"}, PlanError, "view='stream'"),
    "several task labels": ({"task_label": [0, 1]}, PlanError, r"task_label=\[0, 1\]"),
    "negative task label": ({"task_label": -1}, PlanError, "task_label=-1"),
    "task label as truth value": ({"task_label": True}, PlanError, "task_label=True"),
    "other data": ({"train": Pictures(LABELS[::-1])}, PlanError, "made for other targets"),
    "fewer data": ({"train": Pictures(LABELS[:-1])}, PlanError, "the data set has 230"),
    "fewer images than targets": ({"train": ShortPictures(LABELS)}, DataError, "3 samples but 231 targets"),
    "empty test set": ({"test": Pictures([])}, DataError, "test set is empty"),
    "fewer test images than targets": ({"test": ShortPictures(LABELS)}, DataError, "3 samples but 231 targets"),
    "unknown class in test": ({"test": Pictures([0, 1, 7])}, DataError, "test sample 2 has class id 7, outside"),
    "negative class in test": ({"test": Pictures([0, -1])}, DataError, "test sample 1 has class id -1"),
    "several labels an image": ({"test": Pictures(np.eye(3, dtype=int))}, DataError, r"shape \(3, 3\)"),
    "empty plan": (
        {"plan": EMPTY_PLAN},
        PlanError,
        "holds no sample",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_in_one_line(case):
    change, error, text = REFUSALS[case]
    arguments = {"plan": PLAN, "train": train_set(), "test": test_set()} | change
    with pytest.raises(error, match=text) as refusal:
        benchmark_from_plan(**arguments)
    assert "\n" not in str(refusal.value)
