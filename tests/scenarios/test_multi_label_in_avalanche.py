"""Multi-label streams under Avalanche's own strategies, metrics and timeline: nothing can mislead."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from avalanche.benchmarks import with_classes_timeline
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    class_accuracy_metrics,
    confusion_matrix_metrics,
    forgetting_metrics,
    loss_metrics,
    topk_acc_metrics,
)
from avalanche.training import AGEM, EWC, LwF, Naive, Replay
from multi_label_scenes import (
    CLASSES,
    TEST_LABELS,
    as_float,
    every_stream,
    strategy_with,
    tasks,
    train_on,
)
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from scenarios.errors import DataError

pytestmark = [
    pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


# --- stock Avalanche -------------------------------------------------------------------------------------------------


STOCK = {
    "naive": (Naive, {}),
    "replay": (Replay, {"mem_size": 20}),
    "ewc": (EWC, {"ewc_lambda": 0.1}),
    "agem": (AGEM, {"patterns_per_exp": 10, "sample_size": 5}),
    "lwf": (LwF, {"alpha": 1.0, "temperature": 2.0}),
}


@every_stream
@pytest.mark.parametrize("task_label", [None, 0])
@pytest.mark.parametrize("name", STOCK)
def test_stock_strategies_run(make, task_label, name):
    kind, options = STOCK[name]
    benchmark = make(task_label=task_label, train_transform=as_float, eval_transform=as_float)
    strategy = strategy_with(kind=kind, metrics=[loss_metrics(experience=True)], **options)
    before = strategy.model.head.weight.detach().clone()
    train_on(strategy, benchmark)
    strategy.eval(benchmark.test_stream)
    weight = strategy.model.head.weight
    assert torch.isfinite(weight).all()
    assert not torch.equal(before, weight)


def test_a_stock_loss_learns_where_everything_is_visible():
    benchmark = tasks(base=CLASSES, train_transform=as_float, eval_transform=as_float)
    strategy = strategy_with(loss=torch.nn.BCEWithLogitsLoss(), metrics=[loss_metrics(stream=True)])
    losses = []
    for _ in range(2):
        train_on(strategy, benchmark)
        losses.append(strategy.eval(benchmark.test_stream)["Loss_Stream/eval_phase/test_stream"])
    with torch.no_grad():
        batches = DataLoader(benchmark.test_stream[0].dataset, batch_size=30)
        images, _ = next(iter(batches))
        by_hand = binary_cross_entropy_with_logits(strategy.model(images), torch.tensor(TEST_LABELS).float())
    assert losses[1] == pytest.approx(by_hand.item(), rel=1e-5)
    assert losses[1] < losses[0]


MEANINGLESS = {
    "epoch accuracy": accuracy_metrics(epoch=True),
    "minibatch accuracy": accuracy_metrics(minibatch=True),
    "stream accuracy": accuracy_metrics(stream=True),
    "experience accuracy": accuracy_metrics(experience=True),
    "class accuracy": class_accuracy_metrics(stream=True),
    "forgetting": forgetting_metrics(experience=True),
    "confusion": confusion_matrix_metrics(num_classes=CLASSES, stream=True),
    "top k": topk_acc_metrics(top_k=2, epoch=True),
    "minibatch top k": topk_acc_metrics(top_k=2, minibatch=True),
    "stream top k": topk_acc_metrics(top_k=2, stream=True),
}


def train_and_evaluate(strategy, benchmark, num_workers):
    train_on(strategy, benchmark, num_workers)
    strategy.eval(benchmark.test_stream, num_workers=num_workers)


@pytest.mark.parametrize(
    "name, task_label, num_workers",
    [*((name, 0, 0) for name in MEANINGLESS), ("epoch accuracy", None, 0), ("stream accuracy", None, 2)],
)
def test_metrics_of_class_ids_are_refused_with_the_right_ones(name, task_label, num_workers):
    benchmark = tasks(base=CLASSES, task_label=task_label, train_transform=as_float, eval_transform=as_float)
    strategy = strategy_with(loss=torch.nn.BCEWithLogitsLoss(), metrics=[MEANINGLESS[name]])
    with pytest.raises(DataError, match=r"no class id, so an accuracy.*mean average precision \(mAP\), CF1 or OF1"):
        train_and_evaluate(strategy, benchmark, num_workers)


@pytest.mark.parametrize("name", ["top k", "stream top k"])
def test_without_task_labels_a_metric_that_asks_for_them_is_refused_with_the_right_ones(name):
    benchmark = tasks(base=CLASSES, train_transform=as_float, eval_transform=as_float)
    strategy = strategy_with(loss=torch.nn.BCEWithLogitsLoss(), metrics=[MEANINGLESS[name]])
    with pytest.raises(DataError, match=r"task_label=None.*mean average precision \(mAP\), CF1 or OF1") as refusal:
        train_and_evaluate(strategy, benchmark, 0)
    assert "\n" not in str(refusal.value)


@every_stream
@pytest.mark.parametrize("task_label", [None, 2])
def test_what_avalanche_asks_of_data_sets_and_benchmarks(make, task_label):
    benchmark = make(task_label=task_label)
    assert benchmark.n_classes == CLASSES
    label = 0 if task_label is None else task_label
    for experience in (*benchmark.train_stream, *benchmark.test_stream):
        data = experience.dataset
        for part in (data, data.subset([0, 1]), data.concat(data), data.eval()):
            assert part.targets_task_labels.uniques == {label}
            assert len(part.targets_task_labels) == len(part)
            assert set(part.task_set) == {label}
            assert part.task_set[label].label_rows.states.tolist() == part.label_rows.states.tolist()
            assert len(part[0]) == (2 if task_label is None else 3)
        assert hasattr(experience, "task_labels") == (task_label is not None)
        assert getattr(experience.eval(), "task_labels", None) == (None if task_label is None else [task_label])


def test_label_batches_are_otherwise_ordinary_tensors():
    data = tasks(base=CLASSES).train_stream[0].dataset
    _, labels = next(iter(DataLoader(data, batch_size=5)))
    plain = torch.from_numpy(data.label_rows.array[:5])
    assert torch.equal(labels, plain)
    assert type(labels * 2) is type(labels > 0.5) is type(labels.sum()) is torch.Tensor
    assert labels.max() == torch.max(labels) == 1
    assert (labels.max().item(), int(labels[0, 0]), float(labels.max())) == (1.0, int(plain[0, 0]), 1.0)
    assert torch.equal(torch.max(labels, plain), plain)
    moved = (labels.to("cpu", torch.float64), labels.clone(), labels[1:], labels[:, [0, 2]], labels.double())
    joined = (torch.cat([labels, labels]), torch.stack([labels.detach()[i] for i in range(5)]))
    copies = (copy.deepcopy(labels), pickle.loads(pickle.dumps(labels)))
    for same in (*moved, *joined, *copies):
        with pytest.raises(DataError, match="no class id"):
            same.argmax(dim=1)
    for call in (lambda: torch.max(labels, 1), lambda: labels.max(dim=-1), lambda: torch.argmax(labels, dim=1)):
        with pytest.raises(DataError, match="no class id") as refusal:
            call()
        assert "\n" not in str(refusal.value)


def test_targets_tell_the_classes_and_are_no_class_ids():
    benchmark = tasks()
    data = benchmark.train_stream[0].dataset
    assert data.targets.uniques == data.label_rows.uniques
    assert data.targets.count == data.label_rows.count
    assert data.subset([1]).targets.val_to_idx == data.subset([1]).label_rows.val_to_idx
    for ask in (
        lambda: data.targets[0],
        lambda: list(data.targets),
        lambda: len(data.targets),
        lambda: np.asarray(data.targets),
    ):
        with pytest.raises(DataError, match=r"dataset.label_rows .*mAP, CF1 or OF1 instead of accuracy"):
            ask()


def test_avalanches_own_class_timeline_reads_them():
    benchmark = tasks()
    timeline = with_classes_timeline(benchmark)
    for experience, own in zip(timeline.train_stream, benchmark.train_stream, strict=True):
        assert experience.classes_in_this_experience == own.dataset.label_rows.uniques
