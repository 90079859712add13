"""The loop with several labels an image: nothing hidden reaches a weight, epochs, orders, curves, replay, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from multi_label_toys import (
    BATCH,
    CLASSES,
    LossLog,
    Scenes,
    blurry,
    evaluation,
    label_rows,
    learner,
    mlcil,
    same_points,
    train_scenes,
    trained_with,
    unseen_scenes,
)
from toys import assert_same, labels, learned, make_strategy, normalise, stream_of, train

import cl_prompts.strategies.linear_probe as linear_probe
from cl_prompts.errors import StrategyError, UserError
from cl_prompts.labels import visible_labels
from cl_prompts.plugins import Reservoir
from scenarios import benchmark_from_plan
from scenarios.multi_label_plan import MultiLabelPlan

PROMPTS = {"single_prompt": {"prompt_layers": 3, "prompt_length": 2}}
METHODS = ("multi_lane", "linear_probe", "single_prompt")


def weights(name, backbone, benchmark, **keywords):
    log = LossLog()
    strategy, plugin = trained_with(
        backbone,
        benchmark,
        plugins=[log.plugin, *keywords.pop("plugins", ())],
        name=name,
        settings=PROMPTS.get(name, {}) | keywords.pop("settings", {}),
        **keywords,
    )
    return learned(strategy), log.losses, plugin


# --- leaks -----------------------------------------------------------------------------------------------------------


def with_other_hidden_labels(plan: MultiLabelPlan, draws: np.random.Generator):
    """A plan of the same order and visible columns over labels that agree in what is ever visible, and that only.

    Rows of the data set that are shown in several sessions agree in the columns of all of them.
    """
    shown = np.zeros(plan.targets.shape, dtype=bool)
    for session, rows in enumerate(plan.sessions):
        np.logical_or.at(shown, rows, plan.visible(session))
    targets = np.where(shown, plan.targets, draws.integers(0, 2, shown.shape)).astype(np.uint8)
    if plan.anchors is not None:
        anchored = plan.anchors >= 0
        assert targets[anchored, plan.anchors[anchored]].all()
    saved = plan.saved_arrays() | {"targets": targets}
    described = {"requested": plan.requested, "provenance": {}, "class_names": plan.class_names}
    return MultiLabelPlan.from_saved(saved, **described), shown


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["tasks", "blurry"])
def test_hidden_labels_can_be_anything(short_backbone, name, kind):
    scenes = train_scenes(30)
    plan = (mlcil(scenes) if kind == "tasks" else blurry(scenes, seed=8)).plan
    other, shown = with_other_hidden_labels(plan, np.random.default_rng(1))
    assert (other.targets != plan.targets).any()
    assert not (other.targets != plan.targets)[shown].any()
    runs = []
    for used in (plan, other):
        source = Scenes(scenes.targets)  # the images stay those of the true labels
        source.targets = used.targets
        runs.append(weights(name, short_backbone, benchmark_from_plan(used, source, unseen_scenes())))
    assert_same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    for left, right in zip(runs[0][2].sessions, runs[1][2].sessions, strict=True):
        same_points(left, right)


class Peeking(linear_probe.LinearProbeMethod):
    """Reads every label, hidden ones included."""

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        logits = linear_probe.apply_head(self.head, self.query(batch.images))
        # By hand: torch's own losses are refused at once, with another line.
        outputs.losses["peek"] = (logits.sigmoid() - batch.targets).square().mean()
        return outputs


class PeekingStrategy(linear_probe.ContinualStrategy):
    method_class = Peeking


def test_a_method_that_reads_a_hidden_label_stops_in_one_line(short_backbone):
    benchmark = mlcil()
    strategy = PeekingStrategy(
        backbone=short_backbone,
        num_classes=CLASSES,
        train_transform=lambda images, *rest: normalise(images),
        eval_transform=normalise,
        train_mb_size=BATCH,
    )
    keep = learned(strategy)
    with pytest.raises(StrategyError, match=r"\A[^\n]*not finite[^\n]*peek=nan[^\n]*hidden label[^\n]*\Z"):
        strategy.train(benchmark.train_stream[0])
    assert_same(keep, learned(strategy))  # before any weight became NaN


# --- epochs and orders -----------------------------------------------------------------------------------------------


class Presented(SupervisedPlugin):
    """What is presented: sample ids of each batch, and the passes that augmentation is asked for."""

    is_random = True

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[list[int]] = []
        self.pairs: list[tuple[int, int]] = []

    def before_training_epoch(self, strategy, *args, **kwargs):
        self.epochs.append([])

    def before_training_iteration(self, strategy, *args, **kwargs):
        self.epochs[-1] += strategy.mb_sample_ids.tolist()

    def __call__(self, images, sample_ids, passes):
        self.pairs += zip(sample_ids.tolist(), passes, strict=True)
        return normalise(images)


def test_orders_differ_between_epochs_and_sessions_and_come_back_with_the_seed(short_backbone):
    benchmark = mlcil(Scenes(np.ones((12, CLASSES), np.uint8)))  # the same twelve images in every task
    orders = {}
    for seed in (None, 1, 1, 2):
        seen = Presented()
        train(learner(short_backbone, "linear_probe", plugins=[seen], epochs=3, shuffle_seed=seed), benchmark)
        assert len(seen.epochs) == 9
        assert all(sorted(epoch) == list(range(12)) for epoch in seen.epochs)
        distinct = len({tuple(epoch) for epoch in seen.epochs})
        assert distinct == (1 if seed is None else 9)
        if seed in orders:
            assert orders[seed] == seen.epochs
        orders[seed] = seen.epochs
    assert orders[1] != orders[2]
    assert orders[None][0] == list(range(12))


@pytest.mark.parametrize("updates", [1, 2, 0.5])
def test_no_image_is_augmented_twice_alike(short_backbone, updates):
    seen = Presented()
    strategy = learner(
        short_backbone,
        "linear_probe",
        plugins=[seen],
        train_transform=seen,
        epochs=3,
        shuffle_seed=1,
        updates_per_batch=updates,
    )
    benchmark = mlcil()
    train(strategy, benchmark)
    assert len(seen.pairs) == len(set(seen.pairs))
    presented = 3 * len(benchmark.plan.order)
    assert strategy.samples_seen == presented
    assert sum(map(len, seen.epochs)) == presented
    if updates >= 1:
        assert len(seen.pairs) == updates * presented


def test_presentations_are_the_x_axis(short_backbone):
    benchmark = mlcil()
    strategy, plugin = trained_with(short_backbone, benchmark, epochs=3, name="linear_probe")
    ends = (3 * benchmark.plan.session_ends).tolist()
    assert [point.samples_seen for point in plugin.sessions] == ends
    assert (strategy.samples_seen, plugin.points[-1].samples_seen) == (ends[-1], ends[-1])
    assert [point.exposed.sum() for point in plugin.sessions] == [2, 4, 6]


@pytest.mark.parametrize("name", ["multi_lane", "linear_probe"])
def test_how_often_one_looks_changes_no_weight(short_backbone, name):
    benchmark = mlcil()
    found = []
    for every in (0, 4, 11):
        strategy, plugin = trained_with(
            short_backbone, benchmark, evaluation(benchmark, every=every, epochs=2), name=name, epochs=2, shuffle_seed=3
        )
        found.append((learned(strategy), plugin))
    for other, plugin in found[1:]:
        assert_same(found[0][0], other)
        for left, right in zip(found[0][1].sessions, plugin.sessions, strict=True):
            same_points(left, right)
    assert len(found[1][1].points) > len(found[2][1].points) > 3


@pytest.mark.slow
def test_workers_change_nothing(short_backbone):
    benchmark, found = mlcil(train_scenes(16)), []
    for workers in (0, 2):
        strategy = learner(short_backbone, epochs=2, shuffle_seed=3)
        train(strategy, benchmark, num_workers=workers)
        found.append(learned(strategy))
    assert_same(*found)


@pytest.mark.parametrize("keywords, words", [({"epochs": 0}, "epochs=0"), ({"lr_schedule": "step"}, "lr_schedule")])
def test_arguments_that_cannot_be(short_backbone, keywords, words):
    with pytest.raises(StrategyError, match=words):
        learner(short_backbone, **keywords)


# --- running scores --------------------------------------------------------------------------------------------------


def test_running_f1_is_of_the_visible_labels_before_each_update(short_backbone):
    class Oracle(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.hits, self.values = np.zeros(2), []

        def after_forward(self, strategy, *args, **kwargs):
            targets = torch.as_tensor(strategy.mb_y)
            visible = visible_labels(targets)
            predicted, positive = (strategy.mb_output > 0) & visible, (targets == 1) & visible
            counts = [2 * int((predicted & positive).sum()), int(predicted.sum() + positive.sum())]
            self.hits = 0.98 * self.hits + 0.02 * np.array(counts)
            assert strategy.running_f1 == pytest.approx(self.hits[0] / self.hits[1], rel=1e-4)
            self.values.append(strategy.running_f1)

    oracle = Oracle()
    strategy = learner(short_backbone, "linear_probe", plugins=[oracle], updates_per_batch=3)
    assert np.isnan(strategy.running_f1)
    train(strategy, mlcil())
    assert max(oracle.values) > 0.3
    assert np.isnan(strategy.running_accuracy)


def test_running_accuracy_is_of_one_label(short_backbone):
    strategy = train(make_strategy("linear_probe", short_backbone), stream_of([labels(16, [0, 1])]))
    assert np.isnan(strategy.running_f1)
    assert strategy.running_accuracy > 0


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_methods_for_several_labels_learn(short_backbone, name):
    benchmark = mlcil(train_scenes(60), increment=3)
    scores = {}
    for rate in (1e-6, 0.02):
        plugin = evaluation(benchmark, epochs=4)
        strategy = learner(
            short_backbone,
            name,
            plugins=[plugin],
            settings=PROMPTS.get(name, {}),
            epochs=4,
            optimizer=lambda tensors, rate=rate: torch.optim.Adam(tensors, lr=rate),
        )
        strategy.train(benchmark.train_stream[0])
        scores[rate] = plugin.sessions[0].score
    assert scores[0.02] > scores[1e-6] + 0.1


@pytest.mark.parametrize("name", ["mvp", "ncm"])
def test_methods_of_one_label_refuse_in_one_line(tiny_backbone, name):
    strategy = make_strategy(name, tiny_backbone)
    with pytest.raises(StrategyError, match=r"\A[^\n]*one label an image[^\n]*several[^\n]*\Z"):
        train(strategy, mlcil())


def test_another_number_of_columns_is_refused(short_backbone):
    with pytest.raises(StrategyError, match=r"\A[^\n]*6 label columns[^\n]*num_classes=6\Z"):
        train(learner(short_backbone, num_classes=8), mlcil())


@pytest.mark.parametrize("keywords", [{"minibatch": True}, {"epoch": True}])
def test_avalanches_accuracy_on_rows_of_labels_is_an_error_with_the_right_name(short_backbone, keywords):
    evaluator = EvaluationPlugin(accuracy_metrics(**keywords))
    strategy = learner(short_backbone, "linear_probe", evaluator=evaluator)
    with pytest.raises(UserError, match=r"\A[^\n]*mAP[^\n]*\Z"):
        train(strategy, mlcil())


def test_so_it_is_in_avalanches_own_evaluation(short_backbone):
    benchmark = mlcil()
    strategy = learner(short_backbone, "linear_probe", evaluator=EvaluationPlugin(accuracy_metrics(stream=True)))
    train(strategy, benchmark)
    with pytest.raises(UserError, match=r"\A[^\n]*mAP[^\n]*\Z"):
        strategy.eval(benchmark.test_stream)


def test_avalanches_own_evaluation_loop_runs(short_backbone):
    benchmark = mlcil()
    strategy = train(learner(short_backbone), benchmark)
    kept = learned(strategy)
    assert isinstance(strategy.eval(benchmark.test_stream), dict)
    assert_same(kept, learned(strategy))


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tasks", "blurry"])
def test_replay_keeps_what_was_hidden_hidden(short_backbone, kind):
    scenes = train_scenes(30)
    plan = (mlcil(scenes) if kind == "tasks" else blurry(scenes, seed=8)).plan
    other, _ = with_other_hidden_labels(plan, np.random.default_rng(1))
    runs = []
    for used in (plan, other):
        source = Scenes(scenes.targets)
        source.targets = used.targets
        benchmark = benchmark_from_plan(used, source, unseen_scenes())
        runs.append(weights("linear_probe", short_backbone, benchmark, plugins=[Reservoir(10, 3, seed=1)]))
    assert_same(runs[0][0], runs[1][0])
    without = weights("linear_probe", short_backbone, benchmark_from_plan(plan, scenes, unseen_scenes()))
    assert any(not torch.equal(runs[0][0][name], value) for name, value in without[0].items())


def test_replay_joins_rows_with_the_labels_of_their_own_session(short_backbone):
    class Check(SupervisedPlugin):
        replayed = 0

        def after_forward(self, strategy, *args, **kwargs):
            targets = torch.as_tensor(strategy.mb_y)
            for row, sample in zip(targets, strategy.mb_sample_ids.tolist(), strict=True):
                shown = ~torch.isnan(row)
                assert torch.equal(row[shown], torch.from_numpy(scenes.targets[sample])[shown].float())
                assert 0 < int(shown.sum()) <= 2
            self.replayed += len(targets) - strategy.stream_size

    scenes, check = train_scenes(30), Check()
    trained_with(short_backbone, mlcil(scenes), name="linear_probe", plugins=[Reservoir(10, 3, seed=1), check])
    assert check.replayed > 20


def test_replay_and_a_shuffled_order_are_refused_by_the_right_name(short_backbone):
    stream = stream_of([labels(16, [0, 1]), labels(16, [2, 3])])
    strategy = make_strategy("linear_probe", short_backbone, plugins=[Reservoir(10, 3)], shuffle_seed=1)
    with pytest.raises(StrategyError, match=r"shuffle_seed|protocol\.shuffle"):
        train(strategy, stream)


def test_labels_that_nobody_knows_count_as_hidden(short_backbone):
    rows = label_rows(24)
    known = np.random.default_rng(2).random(rows.shape) > 0.3
    known[np.arange(24), rows.argmax(1)] = True
    scenes = Scenes(rows)
    scenes.targets, scenes.known = np.where(known, rows, 0).astype(np.uint8), known
    found = [weights("multi_lane", short_backbone, mlcil(data))[1] for data in (scenes, Scenes(rows))]
    assert all(np.isfinite(loss["total"]) for loss in found[0])
    # Before the first update logits are near 0: every label, known or not, costs about ln 2.
    assert found[0][0]["classification"] == pytest.approx(np.log(2), abs=0.05)
    assert found[0] != found[1]
