"""MULTI-LANE on streams: what a session may move, who owns a class, when a lane opens, what the loss reads."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from multi_label_toys import (
    BATCH,
    CLASSES,
    LANES,
    LossLog,
    Scenes,
    blurry,
    evaluation,
    lane_state,
    learner,
    mlcil,
    train_scenes,
    trained_with,
    unseen_scenes,
)
from toys import assert_same, fingerprint, labels, make_strategy, normalise, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.evaluation import Evaluator
from cl_prompts.plugins import AnytimeEvaluation
from cl_prompts.strategies import TrainingBatch
from cl_prompts.strategies.optimization import Optimization

SGD = partial(torch.optim.SGD, lr=0.5, momentum=0.9, weight_decay=0.1)
ABLATIONS = {
    "released": {},
    "every block prompted": {"prompt_layers": 3},
    "no prompts": {"prompt_layers": 0},
    "no drop-and-replace": {"dandr": "off"},
    "selectors reset": {"dandr": "reset"},
    "blind": {"num_selectors": 0},
    "merged tokens": {"num_selectors": 0, "tome": 3},
    "key": {"head_mode": "key"},
    "no norm": {"normalize": "none", "loss_norm": "active", "temperature": 2.0},
    "uniform, fresh": {"prompt_init": "uniform", "lane_init": "fresh"},
}


@pytest.fixture(scope="module")
def stream():
    return mlcil()


def images(count: int = 10) -> torch.Tensor:
    return normalise(torch.from_numpy(unseen_scenes(count).images).permute(0, 3, 1, 2))


def frozen_part(strategy, lanes: range, classes: list[int]) -> dict[str, torch.Tensor]:
    """What finished sessions left: their lanes, and the rows of their classes as prediction reads them."""
    rows = strategy.model.head.rows(torch.tensor(classes, dtype=torch.int64))
    return lane_state(strategy, lanes) | {name: row.detach().clone() for name, row in zip("wb", rows, strict=True)}


class NewOptimizers(SupervisedPlugin):
    """Notes the optimizer of each session and whether it remembers anything at its first update."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizers: list[torch.optim.Optimizer] = []
        self.remembers: list[bool] = []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.optimizers.append(strategy.optimizer)
        self.remembers.append(bool(strategy.optimizer.state))


@pytest.mark.parametrize("settings", ABLATIONS.values(), ids=ABLATIONS)
def test_a_session_moves_its_lane_and_its_rows_alone(short_backbone, stream, settings):
    strategy = learner(short_backbone, settings=settings, optimizer=SGD, epochs=2)
    backbone, done = fingerprint(short_backbone), []
    for task, experience in enumerate(stream.train_stream):
        before = frozen_part(strategy, range(task), done)
        waiting = [index for index in range(CLASSES) if index not in stream.plan.tasks[task] and index not in done]
        rows = [row.detach().clone() for row in strategy.model.head.rows(torch.tensor(waiting, dtype=torch.int64))]
        start = lane_state(strategy, range(task, task + 1)) if len(strategy.model.lanes) > task else None
        strategy.train(experience)
        assert len(strategy.model.lanes) == task + 1
        assert_same(before, frozen_part(strategy, range(task), done))
        for old, new in zip(rows, strategy.model.head.rows(torch.tensor(waiting, dtype=torch.int64)), strict=True):
            assert torch.equal(old, new.detach())
        done += stream.plan.tasks[task]
        if start is not None and settings != {"num_selectors": 0} and settings.get("prompt_layers") != 0:
            moved = lane_state(strategy, range(task, task + 1))
            assert any(not torch.equal(start[name], moved[name]) for name in start if start[name].numel())
    assert fingerprint(short_backbone) == backbone
    assert strategy.model.owner.tolist() == [0, 0, 1, 1, 2, 2]


def test_an_optimizer_of_someone_else_that_holds_everything_cannot_move_what_is_finished(short_backbone, stream):
    strategy = learner(short_backbone)
    first, second, third = stream.train_stream
    strategy.train(first)
    strategy.train(second)
    foreign = torch.optim.SGD(strategy.model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for parameter in strategy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    foreign.step()  # moments and decay on everything that still learns
    strategy.model.begin_session(torch.tensor([4, 5]))
    foreign.add_param_group({"params": list(strategy.model.lanes[2].parameters())})
    kept, done = frozen_part(strategy, range(2), [0, 1, 2, 3]), [0, 1, 2, 3]
    old = strategy.model(images())[:, done].detach()
    for _ in range(3):
        foreign.zero_grad()
        x, y = next(iter(torch.utils.data.DataLoader(third.dataset, batch_size=BATCH)))
        allowed = torch.ones(CLASSES, dtype=torch.bool)
        outputs = strategy.model.training_outputs(TrainingBatch(normalise(x), y, allowed))
        sum(outputs.losses.values()).backward()
        foreign.step()
    assert_same(kept, frozen_part(strategy, range(2), done))
    assert torch.equal(strategy.model(images())[:, done].detach(), old)


@pytest.mark.parametrize("settings", ABLATIONS.values(), ids=ABLATIONS)
def test_logits_of_old_classes_never_change(short_backbone, stream, settings):
    strategy = learner(short_backbone, settings=settings, optimizer=SGD)
    evaluator = evaluation(stream, eval_images="all").evaluator
    exposed = torch.zeros(CLASSES, dtype=torch.bool)
    stored, computed = [], []
    for task, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        exposed[list(stream.plan.tasks[task])] = True
        evaluator(strategy.model, exposed)
        stored.append(evaluator.latest.logits.copy())
        with torch.no_grad():
            computed.append(strategy.model.eval()(images(16)))
    if settings.get("head_mode") == "key":
        assert not np.array_equal(stored[0][:, :2], stored[-1][:, :2])  # another lane may be chosen
        return
    for task in range(len(stored)):
        columns = [column for done in stream.plan.tasks[: task + 1] for column in done]
        assert np.array_equal(stored[task][:, columns], stored[-1][:, columns])
        # Without the unit norm logits are some 5 times as large.
        atol = 1e-5 if settings.get("normalize") == "none" else 1e-6
        torch.testing.assert_close(computed[task][:, columns], computed[-1][:, columns], rtol=0, atol=atol)
        np.testing.assert_allclose(stored[task][:, columns], computed[task][:, columns].numpy(), rtol=0, atol=atol)


def test_each_session_has_a_fresh_optimizer(short_backbone, stream):
    for scope in ("session", "stream"):  # lanes change what is trained, so even one of the stream is rebuilt
        noted = NewOptimizers()
        trained_with(short_backbone, stream, plugins=[noted], optimizer=torch.optim.Adam, optimizer_scope=scope)
        assert len({id(optimizer) for optimizer in noted.optimizers}) == 3
        assert noted.remembers == [False] * 3


def test_the_rate_follows_the_cosine_of_each_session(short_backbone):
    stream, rates = mlcil(train_scenes(8)), []

    class Rates(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    for name in ("multi_lane", "linear_probe"):
        for scope in ("session", "stream"):
            rates.clear()
            learned = learner(
                short_backbone,
                name,
                plugins=[Rates()],
                epochs=3,
                lr_schedule="cosine",
                optimizer_scope=scope,
                optimizer=partial(torch.optim.Adam, lr=0.02),
            )
            train(learned, stream)
            expected = [0.02 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)] * 3
            assert rates == pytest.approx(expected, rel=1e-9)


def test_schedules_leave_moments_where_the_scope_says():
    tensor = torch.nn.Parameter(torch.ones(2))
    for scope, kept in (("stream", True), ("session", False)):
        optimization = Optimization(partial(torch.optim.Adam, lr=1.0), scope, "cosine", 2)
        optimizer = optimization.begin([tensor])
        first = optimization.begin_session(optimizer, [tensor], is_first=True)
        assert first is optimizer
        tensor.sum().backward()
        first.step()
        optimization.end_epoch()
        optimization.end_epoch()
        assert first.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
        second = optimization.begin_session(first, [tensor], is_first=False)
        assert (second is first) is kept
        assert bool(second.state) is kept
        assert second.param_groups[0]["lr"] == 1.0


def test_a_lane_is_appended_for_a_task_nobody_planned(short_backbone, stream):
    strategy, _ = trained_with(short_backbone, stream)
    old = strategy.model.eval()(images())[:, :4].detach()
    more = mlcil(train_scenes(20, seed=7), order=[4, 5, 0, 1, 2, 3])
    strategy.train(next(iter(more.train_stream)))  # classes that return: their lane learns, beside a new one
    assert len(strategy.model.lanes) == 4
    assert strategy.model.owner.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(strategy.model.eval()(images())[:, :4].detach(), old, rtol=0, atol=1e-6)


def test_a_stream_can_go_on_after_the_last_task_with_new_classes(short_backbone):
    rows = train_scenes(40).targets
    benchmark = mlcil(Scenes(rows))
    strategy = learner(short_backbone)
    experiences = list(benchmark.train_stream)
    for experience in experiences[:2]:
        strategy.train(experience)
    before = strategy.model.eval()(images())[:, :4].detach()
    assert strategy.model.owner.tolist() == [0, 0, 1, 1, -1, -1]
    assert not strategy.model.eval()(images())[:, 4:].any()  # no lane, no logit
    strategy.train(experiences[2])
    assert strategy.model.owner.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(strategy.model.eval()(images())[:, :4].detach(), before, rtol=0, atol=1e-6)
    assert strategy.model.eval()(images())[:, 4:].any()


def test_lanes_start_as_copies_or_anew(short_backbone, stream):
    for init, equal in (("copy", True), ("fresh", False)):
        strategy = learner(short_backbone, settings={"lane_init": init})
        strategy.train(stream.train_stream[0])
        last = strategy.model.lanes[0].selectors.detach().clone()
        strategy.model.begin_session(torch.tensor([2, 3]))
        assert torch.equal(strategy.model.lanes[1].selectors, last) is equal
        assert [lane.learns for lane in strategy.model.lanes] == [False, True]
        assert all(tensor.grad is None for tensor in strategy.model.lanes[0].parameters())


def test_classes_that_are_not_announced_belong_to_the_lane_that_sees_them_first(short_backbone, stream):
    strategy = learner(short_backbone)
    for experience in mlcil().train_stream:
        del experience.classes_in_this_experience
        strategy.train(experience)
    assert strategy.model.owner.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(strategy.model.lanes) == 3


def test_one_class_a_batch_is_enough(short_backbone):
    """Class by class within a session, as unannounced labels trickle in."""
    method = learner(short_backbone).model
    method.begin_session(None)
    exposed = torch.zeros(CLASSES, dtype=torch.bool)
    for column in range(3):
        exposed[column] = True
        method.observe(exposed)
        assert (~method.head.pinned).nonzero().flatten().tolist() == list(range(column + 1))
    method.lanes.updates[0] = 1
    method.begin_session(None)
    assert (~method.head.pinned).nonzero().flatten().tolist() == [0, 1, 2]  # owner: earlier lanes may learn on
    exposed[3] = True
    method.observe(exposed)
    assert method.owner.tolist() == [0, 0, 0, 1, -1, -1]


# --- losses ----------------------------------------------------------------------------------------------------------


class Updates(SupervisedPlugin):
    """Checks each update's loss against the definition, from the logits of each class's own lane."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self.policy = policy
        self.checked = 0
        self.trained: list[list[int]] = []

    def before_update(self, strategy, *args, **kwargs):
        model, labels_, hidden_images = strategy.model, torch.as_tensor(strategy.mb_y), strategy.mb_x
        with torch.no_grad():
            logits = model(hidden_images)
        visible = ~torch.isnan(labels_)
        current = len(model.lanes) - 1
        if self.policy == "current":
            visible = visible & (model.owner == current)
        total = sum(
            float(F.binary_cross_entropy_with_logits(logits[i, c], labels_[i, c]))
            for i, c in visible.nonzero().tolist()
        )
        expected = (total + float((~visible).sum()) * math.log(2)) / visible.numel()
        assert float(strategy.last_losses["classification"]) == pytest.approx(expected, rel=1e-5)
        moved = [n for n, lane in enumerate(model.lanes) if any(p.grad is not None for p in lane.prompts)]
        owners = set(model.owner[(~torch.isnan(labels_)).any(0)].tolist()) | {current}
        assert set(moved) <= ({current} if self.policy == "current" else owners)
        self.trained.append(moved)
        self.checked += 1


@pytest.mark.parametrize("policy", ["owner", "current"])
@pytest.mark.parametrize("kind", ["tasks", "blurry"])
def test_losses_and_trained_lanes_are_those_of_the_definition(short_backbone, policy, kind):
    benchmark = mlcil() if kind == "tasks" else blurry(seed=10)
    check = Updates(policy)
    strategy, _ = trained_with(short_backbone, benchmark, plugins=[check], settings={"lane_policy": policy})
    assert check.checked == strategy.updates > 10
    first = np.argmax(benchmark.plan.seen_after, axis=0)
    assert strategy.model.owner.tolist() == first.tolist()
    together = max(len(lanes) for lanes in check.trained)
    assert (together > 1) is (policy == "owner" and kind == "blurry")


def test_the_current_lane_alone_moves_under_its_policy(short_backbone):
    benchmark = blurry(seed=10)
    strategy = learner(short_backbone, settings={"lane_policy": "current"}, optimizer=SGD)
    for task, experience in enumerate(benchmark.train_stream):
        seen = np.flatnonzero(benchmark.plan.seen_after[task - 1]).tolist() if task else []
        before = frozen_part(strategy, range(task), seen)
        strategy.train(experience)
        assert_same(before, frozen_part(strategy, range(task), seen))


def test_owners_of_returning_classes_learn_on(short_backbone):
    benchmark = blurry(seed=10)
    strategy = learner(short_backbone)
    first, second, _ = benchmark.train_stream
    strategy.train(first)
    before = lane_state(strategy, [0])
    assert first.classes_in_this_experience & second.classes_in_this_experience
    strategy.train(second)
    after = lane_state(strategy, [0])
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_a_session_without_a_new_class_gets_a_lane_that_owns_nothing(short_backbone):
    benchmark = blurry()  # all six classes come in the first session
    assert benchmark.plan.seen_after[0].all()
    for policy in ("owner", "current"):
        strategy, measured = trained_with(short_backbone, benchmark, settings={"lane_policy": policy})
        assert strategy.model.owner.tolist() == [0] * CLASSES
        assert len(strategy.model.lanes) == len(benchmark.plan.sessions)
        scores = [point.score for point in measured.sessions]
        assert np.isfinite(scores).all()
        assert (len(set(scores)) == 1) is (policy == "current")


def test_hidden_columns_of_the_released_loss_are_ln_2(short_backbone, stream):
    log_all, log_active = LossLog(), LossLog()
    for norm, log in (("all", log_all), ("active", log_active)):
        strategy = learner(short_backbone, plugins=[log.plugin], settings={"loss_norm": norm})
        strategy.train(stream.train_stream[0])
    (left, right) = (log.losses[0]["classification"] for log in (log_all, log_active))
    assert left == pytest.approx((2 * right + 4 * math.log(2)) / 6, rel=1e-6)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_are_orthogonal_unit_vectors_and_drawn_to_the_images_of_their_lane(short_backbone, stream):
    strategy = learner(short_backbone, settings={"head_mode": "key"}, optimizer=partial(torch.optim.SGD, lr=0.5))
    starts = []
    for task, experience in enumerate(stream.train_stream):
        if task:
            keys = [key.detach().clone() for key in strategy.model.lanes.keys]
        strategy.train(experience)
        if task:
            assert_same(dict(enumerate(keys)), dict(enumerate(strategy.model.lanes.keys[:task])))  # type: ignore[arg-type]
        with torch.no_grad():
            x = normalise(torch.stack([item[0] for item in experience.dataset]))
            query = strategy.model.query(x)
            starts.append(F.cosine_similarity(query.mean(0), strategy.model.lanes.keys[task], dim=0))
    assert min(float(value) for value in starts) > 0.3
    fresh = learner(short_backbone, settings={"head_mode": "key"}).model
    for _ in range(3):
        fresh.lanes.open()
    keys = torch.stack([key.detach() for key in fresh.lanes.keys])
    torch.testing.assert_close(keys @ keys.T, torch.eye(4), rtol=0, atol=1e-6)


def test_the_nearest_key_of_the_lanes_in_use_answers_for_every_class(short_backbone, stream):
    strategy, _ = trained_with(short_backbone, stream, settings={"head_mode": "key"})
    model, x = strategy.model.eval(), images()
    model.lanes.open()  # not in use: it owns no class
    model.lanes[3].key.data = model.query(x[:1])[0]
    with torch.no_grad():
        query, logits = model.query(x), model(x)
        features, _ = model._features(x, range(4), needs_query=False)
        everything = torch.arange(CLASSES)
        for index in range(len(x)):
            similarity = [float(F.cosine_similarity(query[index], key, dim=0)) for key in model.lanes.keys[:3]]
            lane = int(np.argmax(similarity))
            torch.testing.assert_close(logits[index], model.head(features[index, lane], everything), rtol=0, atol=1e-6)
    # The query is the frozen class token after the final norm, of a network without any lane.
    with torch.no_grad():
        torch.testing.assert_close(query, short_backbone.model.norm(_tokens(short_backbone, x))[:, 0])


def _tokens(backbone, x):
    model = backbone.model
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for block in model.blocks:
        tokens = block(tokens)
    return tokens


# --- one label an image ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["concat", "key"])
def test_class_incremental_learning_with_one_label_an_image(short_backbone, mode):
    stream = stream_of([labels(24, [2 * task, 2 * task + 1], task) for task in range(3)])
    evaluator = Evaluator(stream.test_stream[0].dataset, num_classes=CLASSES, transform=normalise)
    plugin = AnytimeEvaluation(evaluator, every=10, session_ends=stream.plan.session_ends)
    strategy = make_strategy(
        "multi_lane",
        short_backbone,
        settings=LANES | {"head_mode": mode, "temperature": 0.1},
        plugins=[plugin],
        optimizer=partial(torch.optim.Adam, lr=0.05),
        updates_per_batch=5,
    )
    train(strategy, stream)
    assert strategy.model.owner.tolist() == [0, 0, 1, 1, 2, 2]
    assert plugin.sessions[0].accuracy > 0.9  # two classes, three batches
    assert [point.session for point in plugin.sessions] == [0, 1, 2]
    assert 0 < strategy.running_accuracy <= 1
    assert math.isnan(strategy.running_f1)


def test_one_label_learns_by_cross_entropy_over_the_classes_of_the_task(short_backbone):
    stream = stream_of([labels(8, [0, 1]), labels(8, [2, 3], 1)])
    strategy = make_strategy("multi_lane", short_backbone, settings=LANES | {"temperature": 2.0}, updates_per_batch=1)

    class Check(SupervisedPlugin):
        def before_update(self, strategy, *args, **kwargs):
            columns = sorted(strategy.experience.classes_in_this_experience)
            with torch.no_grad():
                logits = strategy.model(strategy.mb_x)[:, columns] / 2
            target = torch.tensor([columns.index(int(label)) for label in strategy.mb_y])
            expected = float(F.cross_entropy(logits, target))
            assert float(strategy.last_losses["classification"]) == pytest.approx(expected, rel=1e-5)

    strategy.plugins.insert(0, Check())
    train(strategy, stream)
    assert strategy.updates == 2


def test_one_label_on_a_blurry_stream_learns_with_its_owners(short_backbone):
    stream = stream_of([labels(16, [0, 1, 2], 0), labels(16, [0, 2, 3, 4], 1)])
    strategy = train(make_strategy("multi_lane", short_backbone, settings=LANES), stream)
    assert strategy.model.owner.tolist() == [0, 0, 0, 1, 1, -1]


def test_one_label_on_a_blurry_stream_leaves_returning_classes_alone_where_only_the_current_lane_learns(short_backbone):
    stream = stream_of([labels(16, [0, 1, 2], 0), labels(16, [0, 2, 3, 4], 1)])
    train(make_strategy("multi_lane", short_backbone, settings=LANES | {"lane_policy": "current"}), stream)


# --- refusals and notices --------------------------------------------------------------------------------------------


def test_a_batch_that_shows_another_class_than_announced_is_refused(short_backbone):
    first, second, _ = mlcil().train_stream
    second.classes_in_this_experience = {2}
    strategy = learner(short_backbone)
    strategy.train(first)
    with pytest.raises(StrategyError, match=r"[^\n]*class 3[^\n]*"):
        strategy.train(second)


def test_lanes_that_are_blind_say_so(short_backbone, stream):
    strategy, _ = trained_with(short_backbone, stream, settings={"num_selectors": 0})
    (notice,) = strategy.model.notices()
    assert "num_selectors=0" in notice
    assert "\n" not in notice
    with torch.no_grad():
        logits = strategy.model.eval()(images())
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), rtol=0, atol=1e-5)
    assert learner(short_backbone, settings={"num_selectors": 0, "tome": 3}).model.notices() == []
    assert learner(short_backbone).model.notices() == []


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"prompt_layers": 4}, "prompt_layers=4"),
        ({"tome": 1}, "tome=1"),
        ({"tome": 4}, "tome=4"),
        ({"tome": -1}, "tome"),
        ({"num_selectors": -1}, "num_selectors"),
        ({"prompt_layers": -1}, "prompt_layers"),
        ({"variant": "paper"}, "variant=paper"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_cannot_be(short_backbone, settings, words):
    with pytest.raises(ValueError, match=words):
        learner(short_backbone, settings=settings)
