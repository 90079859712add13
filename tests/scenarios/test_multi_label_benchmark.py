"""Multi-label streams in Avalanche: order, hidden labels that stay hidden, and refusals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios import MaskedAttributeError
from multi_label_scenes import (
    CLASSES,
    LABELS,
    TEST_LABELS,
    Halved,
    Recorder,
    Scenes,
    TinyModel,
    as_float,
    blurry,
    every_stream,
    expected_rows,
    index_of,
    strategy_with,
    tasks,
    train_on,
)
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from scenarios.benchmark import PlannedBenchmark, benchmark_from_plan
from scenarios.errors import DataError, PlanError
from scenarios.ml_si_blurry import ml_si_blurry_plan
from scenarios.mlcil import mlcil_plan
from scenarios.multi_label_benchmark import ml_si_blurry_benchmark, mlcil_benchmark
from scenarios.multi_label_dataset import MultiLabelDataset
from scenarios.multi_label_plan import MultiLabelPlan

pytestmark = [
    pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


# --- order, items and labels -----------------------------------------------------------------------------------------


@every_stream
@pytest.mark.parametrize("task_label, num_workers", [(None, 0), (0, 0), (0, 2)])
def test_a_strategy_sees_exactly_the_plan(make, task_label, num_workers):
    benchmark = make(task_label=task_label, train_transform=as_float)
    recorder = Recorder()
    train_on(strategy_with([recorder]), benchmark, num_workers)
    plan = benchmark.plan
    parts = plan.sessions if benchmark.view == "sessions" else [plan.order]
    assert recorder.batches == [part[a : a + 8].tolist() for part in parts for a in range(0, len(part), 8)]
    rows = [row for session in range(len(plan.sessions)) for row in expected_rows(plan, session)]
    assert np.array_equal(np.concatenate(recorder.labels), rows, equal_nan=True)


@every_stream
@pytest.mark.parametrize("task_label", [None, 3])
def test_items_label_rows_and_sample_ids(make, task_label):
    benchmark = make(task_label=task_label)
    assert isinstance(benchmark, CLScenario)
    assert isinstance(benchmark.plan, MultiLabelPlan)
    seen = []
    for experience in benchmark.train_stream:
        data = experience.dataset
        seen += list(data.sample_ids)
        assert data.label_rows.array.shape == (len(data), CLASSES)
        assert data.label_rows.array.dtype == data.label_rows[0].dtype == np.float32
        image, labels, *rest = data[4]
        assert (image.dtype, tuple(image.shape), rest) == (
            torch.uint8,
            (3, 2, 3),
            [] if task_label is None else [task_label],
        )
        assert index_of(image[None]) == [data.sample_ids[4]]
        assert labels.dtype == torch.float32
        assert np.array_equal(labels.numpy(), data.label_rows[4], equal_nan=True)
        assert np.array_equal(data.label_rows.array[4], data.label_rows[4], equal_nan=True)
    assert seen == benchmark.plan.order.tolist()
    (test_experience,) = benchmark.test_stream
    assert test_experience.dataset.label_rows.array.tolist() == TEST_LABELS.tolist()
    assert list(test_experience.dataset.sample_ids) == list(range(30))


def test_unknown_labels_are_hidden_in_training_and_test():
    known = np.ones_like(LABELS, dtype=bool)
    known[LABELS == 0] = np.random.default_rng(1).random(int((LABELS == 0).sum())) < 0.5
    test_known = (TEST_LABELS == 1) | (np.arange(CLASSES) > 2)
    train, test = Scenes(LABELS, known), Scenes(TEST_LABELS, test_known)
    benchmark = mlcil_benchmark(train, test, base=6)
    (experience,) = benchmark.train_stream
    rows = list(experience.dataset.sample_ids)
    assert np.array_equal(np.isnan(experience.dataset.label_rows.array), ~known[rows])
    assert np.array_equal(np.isnan(benchmark.test_stream[0].dataset.label_rows.array), ~test_known)


@pytest.mark.parametrize("make", [tasks, blurry])
def test_timeline_against_loops(make):
    benchmark = make()
    plan = benchmark.plan
    shown = [{c for row in plan.visible(s) for c in range(CLASSES) if row[c]} for s in range(len(plan.sessions))]
    assert [experience.session for experience in benchmark.train_stream] == list(benchmark.sessions)
    for t, experience in enumerate(benchmark.train_stream):
        before, later = set().union(*shown[:t]), set().union(*shown[t + 1 :])
        assert experience.classes_in_this_experience == shown[t]
        assert experience.previous_classes == before
        assert experience.classes_seen_so_far == before | shown[t]
        assert experience.future_classes == later - before - shown[t]
        assert all(type(one) is int for one in experience.classes_seen_so_far)
        remaining = np.zeros(CLASSES)
        for s in range(t + 1, len(plan.sessions)):
            remaining += (np.array(expected_rows(plan, s)) == 1).sum(axis=0)
        assert experience.remaining_counts.tolist() == remaining.tolist()
        with pytest.raises(MaskedAttributeError):
            _ = experience.train().session
    assert [len(task) for task in tasks().plan.tasks] == [2, 2, 2]


def test_a_blurry_stream_has_no_tasks_and_a_stream_of_tasks_says_its_classes():
    assert not any(hasattr(experience, "task_classes") for experience in blurry().train_stream)
    for experience in tasks().train_stream:
        assert experience.task_classes == experience.classes_in_this_experience


@every_stream
def test_each_part_has_its_transform(make):
    benchmark = make(train_transform=Halved(), eval_transform=as_float)
    train_data, test_data = benchmark.train_stream[0].dataset, benchmark.test_stream[0].dataset
    assert train_data[0][0][2, 0, 0] == train_data.train()[0][0][2, 0, 0] == 4.5
    assert train_data.eval()[0][0][2, 0, 0] == test_data[0][0][2, 0, 0] == 9
    assert np.array_equal(train_data.eval()[0][1].numpy(), train_data[0][1].numpy(), equal_nan=True)
    assert type(train_data.eval()) is type(train_data.train()) is MultiLabelDataset


@every_stream
def test_data_reaches_spawned_workers(make):
    data = make(task_label=0, train_transform=Halved()).train_stream[0].dataset
    unpickled = pickle.loads(pickle.dumps(data))
    assert np.array_equal(unpickled.label_rows.array, data.label_rows.array, equal_nan=True)
    for batch, twin in zip(DataLoader(data, batch_size=20), DataLoader(unpickled, batch_size=20), strict=True):
        assert all(
            torch.equal(torch.nan_to_num(a, 5), torch.nan_to_num(b, 5)) for a, b in zip(batch, twin, strict=True)
        )


# --- labels through subset and concat --------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [[3, 1, 1], range(5), np.array([2, -1]), torch.tensor([4, 0])])
def test_subsets_keep_their_rows(indices):
    data = tasks().train_stream[1].dataset
    part = data.subset(indices)
    positions = [int(index) for index in indices]
    assert np.array_equal(part.label_rows.array, data.label_rows.array[positions], equal_nan=True)
    assert list(part.sample_ids) == [list(data.sample_ids)[position] for position in positions]
    for position in range(len(part)):
        assert np.array_equal(part[position][1].numpy(), part.label_rows[position], equal_nan=True)


def test_concatenated_parts_keep_their_own_hidden_labels():
    stream = tasks().train_stream
    first, second = stream[0].dataset.subset([0, 1, 2]), stream[2].dataset.subset([1, 0])
    for joined in (first.concat(second), first + second, first.concat(second).train().subset(range(5))):
        visible = ~np.isnan(joined.label_rows.array)
        assert visible.tolist() == [[True] * 2 + [False] * 4] * 3 + [[False] * 4 + [True] * 2] * 2
        items = np.stack([joined[position][1].numpy() for position in range(5)])
        assert np.array_equal(items, joined.label_rows.array, equal_nan=True)
        assert list(joined.sample_ids) == [*first.sample_ids, *second.sample_ids]
        assert joined.label_rows.uniques == first.label_rows.uniques | second.label_rows.uniques
    with pytest.raises(DataError, match="columns cannot be joined"):
        first.concat(mlcil_benchmark(Scenes(LABELS[:, :4]), Scenes(TEST_LABELS[:, :4])).train_stream[0].dataset)


@every_stream
def test_uniques_are_class_ids_with_visible_positives(make):
    for experience in make().train_stream:
        rows = experience.dataset.label_rows
        positions = {c: np.flatnonzero(rows.array[:, c] == 1).tolist() for c in range(CLASSES)}
        positions = {c: found for c, found in positions.items() if found}
        assert rows.val_to_idx == positions
        assert rows.uniques == set(positions)
        assert rows.count == {c: len(found) for c, found in positions.items()}
        assert all(type(one) is int for one in rows.uniques)


# --- nothing hidden can be read --------------------------------------------------------------------------------------


def everything_shown(benchmark):
    """All that a script reads from a training stream: batches, rows, timeline."""
    found = []
    for experience in benchmark.train_stream:
        data = experience.dataset
        timeline = [
            sorted(getattr(experience, name)) if hasattr(experience, name) else None
            for name in ("classes_in_this_experience", "previous_classes", "classes_seen_so_far", "future_classes")
        ]
        for images, labels in DataLoader(data, batch_size=7):
            found.append((index_of(images), torch.nan_to_num(labels, 5).tolist()))
        rows = np.nan_to_num(data.label_rows.array, nan=5).tolist()
        remaining = getattr(experience, "remaining_counts", np.zeros(0)).tolist()
        found.append((timeline, rows, remaining, data.label_rows.val_to_idx, list(data.sample_ids)))
    return found


@every_stream
def test_replacing_hidden_labels_changes_nothing(make):
    """The same stream over other hidden labels: the plan is rebuilt with them, what can be read stays the same."""
    plan = make().plan
    shown_once = np.zeros(LABELS.shape, dtype=bool)
    for session, rows in enumerate(plan.sessions):
        shown_once[rows] |= plan.visible(session)
    replaced = LABELS.copy()
    replaced[~shown_once] = 1 - replaced[~shown_once]
    assert (replaced != LABELS).sum() > 50
    parts = {name: getattr(plan, name) for name in ("block_sizes", "block_columns", "drawn_kind", "drawn_home")}
    other = MultiLabelPlan(
        sessions=plan.sessions, targets=replaced, anchors=_anchors(plan), requested=plan.requested, **parts
    )
    view = make().view
    test = Scenes(TEST_LABELS)
    before = everything_shown(benchmark_from_plan(plan, Scenes(LABELS), test, view=view))
    assert everything_shown(benchmark_from_plan(other, Scenes(replaced), test, view=view)) == before


def _anchors(plan):
    if plan.anchors is None:
        return None
    return plan.anchors


def test_a_label_hidden_here_but_shown_elsewhere_reaches_no_item_here():
    """In a stream of tasks every label is shown in its own task: what an experience holds is cut per experience."""
    plan = tasks().plan
    for session, experience in enumerate(benchmark_from_plan(plan, Scenes(LABELS), Scenes(TEST_LABELS)).train_stream):
        replaced = LABELS.copy()
        hidden = np.setdiff1d(np.arange(CLASSES), plan.tasks[session])
        replaced[:, hidden] = 1 - replaced[:, hidden]
        other = mlcil_plan(replaced, increment=2)
        twin = benchmark_from_plan(other, Scenes(replaced), Scenes(TEST_LABELS)).train_stream[session]
        assert list(twin.dataset.sample_ids) == list(experience.dataset.sample_ids)
        assert np.array_equal(twin.dataset.label_rows.array, experience.dataset.label_rows.array, equal_nan=True)


def test_reading_a_hidden_label_gives_a_loss_that_is_no_number():
    experience = tasks(train_transform=as_float).train_stream[1]
    images, labels = next(iter(DataLoader(experience.dataset, batch_size=4)))
    assert torch.isnan(((TinyModel()(images) - labels) ** 2).mean())


LOSSES = {
    "BCEWithLogitsLoss": torch.nn.BCEWithLogitsLoss(),
    "BCELoss": lambda logits, labels: torch.nn.BCELoss()(logits.sigmoid(), labels),
    "MSELoss": torch.nn.MSELoss(),
    "L1Loss": torch.nn.L1Loss(),
    "SmoothL1Loss": torch.nn.SmoothL1Loss(),
    "HuberLoss": torch.nn.HuberLoss(),
    "MultiLabelSoftMarginLoss": torch.nn.MultiLabelSoftMarginLoss(),
    "SoftMarginLoss": torch.nn.SoftMarginLoss(),
    "CrossEntropyLoss": torch.nn.CrossEntropyLoss(),
    "KLDivLoss": torch.nn.KLDivLoss(reduction="batchmean"),
    "PoissonNLLLoss": torch.nn.PoissonNLLLoss(),
    "HingeEmbeddingLoss": torch.nn.HingeEmbeddingLoss(),
    "by name": lambda logits, labels: binary_cross_entropy_with_logits(input=logits, target=labels),
    "labels as input": lambda logits, labels: torch.nn.functional.mse_loss(labels, logits),
    "on another type": lambda logits, labels: torch.nn.BCEWithLogitsLoss()(logits, labels.double()),
    "torch": lambda logits, labels: torch.binary_cross_entropy_with_logits(logits, labels),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_torch_refuse_hidden_labels_and_take_visible_ones(name):
    loss = LOSSES[name]
    experience = tasks(train_transform=as_float).train_stream[1]
    images, labels = next(iter(DataLoader(experience.dataset, batch_size=4)))
    logits = TinyModel()(images)
    with pytest.raises(
        DataError, match=r"labels .* hidden \(nan\).*cl_prompts\.labels\.VisibleLabelLoss\(\)"
    ) as refusal:
        loss(logits, labels)
    assert "\n" not in str(refusal.value)
    shown = [column for column in range(CLASSES) if not torch.isnan(labels[:, column]).any()]
    plain = torch.from_numpy(experience.dataset.label_rows.array[:4][:, shown])
    value = loss(logits[:, shown], labels[:, shown])
    assert type(value) is torch.Tensor
    torch.testing.assert_close(value, loss(logits[:, shown], plain))  # strides differ, and so the order of the sum


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stock_strategy_stops_at_hidden_labels_before_its_weights_change(num_workers):
    benchmark = tasks(train_transform=as_float)
    strategy = strategy_with(loss=torch.nn.BCEWithLogitsLoss())
    before = strategy.model.head.weight.detach().clone()
    with pytest.raises(DataError, match="as criterion, which reads visible labels only"):
        train_on(strategy, benchmark, num_workers)
    assert torch.equal(strategy.model.head.weight, before)


# --- refusals --------------------------------------------------------------------------------------------------------


class ShortScenes(Scenes):
    def __len__(self):
        return 3


class GreyScenes(Scenes):
    def __getitem__(self, index):
        return np.zeros((4, 4), dtype=np.uint8), self.targets[index], index


PLAN = mlcil_plan(np.eye(CLASSES, dtype=np.uint8).repeat(2, axis=0))
TRAIN = Scenes(PLAN.targets)
REFUSALS = {
    "merged": ({"view": "merged"}, PlanError, "view='merged': the visible labels"),
    "unknown view": ({"view": "all"}, PlanError, "view='all'"),
    "task labels": ({"task_label": [0, 1]}, PlanError, r"task_label=\[0, 1\]"),
    "other labels": ({"train": Scenes(PLAN.targets[::-1])}, PlanError, "made for other targets: sample 0"),
    "unknown labels": ({"train": Scenes(PLAN.targets, PLAN.targets == 1)}, PlanError, "others of them are known"),
    "fewer images": ({"train": ShortScenes(PLAN.targets)}, DataError, "3 samples but 12 targets"),
    "class ids": ({"train": Scenes(np.arange(12))}, PlanError, "one class id a sample"),
    "empty test": ({"test": Scenes(np.zeros((0, CLASSES), np.uint8))}, DataError, "test set is empty"),
    "test of class ids": ({"test": Scenes([0, 1])}, DataError, "test set cannot be used: .*one class id a sample"),
    "fewer test columns": ({"test": Scenes(TEST_LABELS[:, :4])}, DataError, "4 label columns, the plan 6"),
    "fewer test images": ({"test": ShortScenes(TEST_LABELS)}, DataError, "3 samples but 30 targets"),
    "no plan": ({"plan": [[0, 1]]}, PlanError, "plan is a list: give a StreamPlan or a MultiLabelPlan"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_in_one_line(case):
    change, error, text = REFUSALS[case]
    arguments = {"plan": PLAN, "train": TRAIN, "test": Scenes(TEST_LABELS)} | change
    with pytest.raises(error, match=text) as refusal:
        benchmark_from_plan(**arguments)
    assert "\n" not in str(refusal.value)


def test_images_of_another_kind_are_refused():
    data = benchmark_from_plan(PLAN, GreyScenes(PLAN.targets), TRAIN).train_stream[1].dataset
    with pytest.raises(DataError, match=r"image 4 is uint8 \(4, 4\): images must be"):
        _ = data[0]


def test_names_come_from_the_data_set():
    names = tuple("fedcba")
    train = Scenes(LABELS, class_names=names, name="scenes")
    for benchmark in (tasks(train), blurry(train)):
        assert isinstance(benchmark, PlannedBenchmark)
        assert (benchmark.plan.class_names, benchmark.plan.provenance["dataset"]) == (names, "scenes")
    assert tasks(train).plan.tasks == ((4, 5), (2, 3), (0, 1))
    own = tasks(train, class_names=tuple("abcdef"), dataset_name="mine").plan
    assert (own.class_names, own.provenance["dataset"], own.tasks[0]) == (tuple("abcdef"), "mine", (0, 1))
    assert blurry(train).plan == ml_si_blurry_plan(LABELS, n_sessions=3, stream_batch=8)


def test_empty_sessions_have_no_experience():
    labels = np.zeros((9, 6), dtype=np.uint8)
    labels[:, 0] = 1
    benchmark = ml_si_blurry_benchmark(
        Scenes(labels),
        Scenes(labels),
        n_sessions=3,
        blurry_sample_pct=0,
        allow_empty_sessions=True,
        stream_batch=4,
    )
    (experience,) = benchmark.train_stream
    assert benchmark.sessions == (experience.session,)
    assert experience.session == int(np.argmax(np.diff(benchmark.plan.session_ends, prepend=0)))
    assert (experience.classes_in_this_experience, experience.previous_classes, experience.future_classes) == (
        {0},
        set(),
        set(),
    )
