"""What holds for every method: one test a promise, one run a method. A new method file is tested by being there."""

from __future__ import annotations

import copy
import io
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from rich.console import Console
from toys import (
    CLASSES,
    Pictures,
    assert_same,
    fingerprint,
    labels,
    learned,
    make_strategy,
    normalise,
    plan_of,
    stream_of,
    train,
)

from cl_prompts.errors import StrategyError
from cl_prompts.evaluation import Evaluator
from cl_prompts.logging import TensorBoardLog, TerminalProgress
from cl_prompts.masks import MASK_POLICIES, ClassTracker
from cl_prompts.plugins import AnytimeEvaluation, PromptUsage, Reservoir
from cl_prompts.strategies import TrainingBatch, load_strategy
from cl_prompts.strategies.declaration import read_settings, strategy_names
from scenarios import TrainTransform, benchmark_from_plan

every_strategy = pytest.mark.parametrize("name", strategy_names())
GRADIENT = [name for name in strategy_names() if read_settings(name).needs.gradient]
gradient_strategies = pytest.mark.parametrize("name", GRADIENT)

# Numeric ids are not the order of arrival, sessions overlap, and each ends with a short batch (19 = 8 + 8 + 3).
SESSIONS = [labels(19, [5, 2, 4], 1), labels(25, [3, 0, 4], 2)]


def two_sessions(**keywords):
    return stream_of(SESSIONS, **keywords)


def optimizer_tensors(strategy) -> set[int]:
    return {id(tensor) for group in strategy.optimizer.param_groups for tensor in group["params"]}


@gradient_strategies
def test_optimizer_holds_exactly_the_trained_tensors_after_two_experiences(name, tiny_backbone):
    strategy = make_strategy(name, tiny_backbone)
    trained = dict(strategy.model.named_trainables())
    assert trained
    assert not any(part.startswith("backbone") for part in trained)
    first_optimizer = strategy.optimizer
    train(strategy, two_sessions())
    trained = dict(strategy.model.named_trainables())
    assert optimizer_tensors(strategy) == {id(tensor) for tensor in trained.values()}
    steps = {int(state["step"]) for state in strategy.optimizer.state.values()}
    if strategy.needs.grows_by_parts:
        # What it trains changes with the session, and with it the optimizer.
        assert strategy.optimizer is not first_optimizer
        assert max(steps) == 2 * 4
        return
    assert strategy.optimizer is first_optimizer
    # State survives the border of an experience: every tensor took every step.
    assert steps == {strategy.updates} == {2 * (3 + 4)}


@every_strategy
def test_two_parameter_groups_are_kept(name, tiny_backbone):
    def groups(tensors):
        halves = [tensors[:1], tensors[1:]]
        return torch.optim.SGD([{"params": half, "lr": 0.1} for half in halves if half])

    strategy = make_strategy(name, tiny_backbone, optimizer=groups)
    train(strategy, two_sessions())
    if strategy.needs.gradient:
        assert optimizer_tensors(strategy) == {id(tensor) for _, tensor in strategy.model.named_trainables()}
    else:
        assert strategy.optimizer is None


@every_strategy
def test_backbone_is_bit_identical_and_in_evaluation_mode(name, tiny_backbone):
    before = fingerprint(tiny_backbone)
    strategy = train(make_strategy(name, tiny_backbone), two_sessions())
    strategy.model.train()
    torch.nn.Sequential(strategy.model).train()
    assert strategy.model.training
    assert not any(module.training for module in tiny_backbone.modules())
    assert fingerprint(tiny_backbone) == before
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in tiny_backbone.parameters())


@gradient_strategies
def test_every_trained_tensor_moves(name, tiny_backbone):
    strategy = make_strategy(name, tiny_backbone)
    before = learned(strategy)
    train(strategy, two_sessions())
    after = learned(strategy)
    trained = [part for part, _ in strategy.model.named_trainables() if part in before]
    assert trained
    assert not [part for part in trained if torch.equal(before[part], after[part])]


@every_strategy
def test_predictions_do_not_depend_on_the_batch(name, tiny_backbone):
    model = train(make_strategy(name, tiny_backbone), two_sessions()).model.eval()
    images = Pictures(labels(64, range(CLASSES)), seed=5).tensors()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        sevens = torch.cat([model(part) for part in images.split(7)])
        shuffled = torch.empty_like(whole)
        shuffled[order] = model(images[order])
        known_query = model(images, model.query(images))
    for other in (alone, sevens, shuffled, known_query):
        torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-4)
        assert torch.equal(other.argmax(-1), whole.argmax(-1))


@every_strategy
def test_prediction_changes_nothing(name, tiny_backbone):
    strategy = train(make_strategy(name, tiny_backbone), two_sessions())
    before = learned(strategy)
    strategy.model.eval()
    with torch.no_grad():
        strategy.model(Pictures([0, 1, 2]).tensors())
    assert_same(learned(strategy), before)


@gradient_strategies
def test_steps_on_one_batch_lower_its_loss(name, tiny_backbone):
    class Losses(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.values: list[float] = []

        def after_update(self, strategy, *args, **kwargs):
            self.values.append(float(strategy.last_losses["classification"]))

    losses = Losses()
    strategy = make_strategy(name, tiny_backbone, updates_per_batch=40, plugins=[losses])
    train(strategy, stream_of([[0, 1, 2, 3, 4, 5, 0, 1]]))
    assert np.mean(losses.values[-5:]) < 0.7 * np.mean(losses.values[1:4])


@every_strategy
def test_a_memorised_stream_is_predicted(name, tiny_backbone):
    strategy = make_strategy(name, tiny_backbone, updates_per_batch=40)
    targets = [0, 3, 5, 1] * 4
    benchmark = stream_of([targets], test_targets=[0, 1, 3, 5] * 5)
    train(strategy, benchmark)
    evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise)
    result = evaluator(strategy.model, strategy.exposed)
    assert np.trace(result.confusion) / result.confusion.sum() >= 0.8


# --- nothing but the stream decides the weights ---------------------------------------------------------------------


class Seen(SupervisedPlugin):
    """Keeps the sample ids of every stream batch."""

    def __init__(self):
        super().__init__()
        self.ids: list[list[int]] = []

    def before_training_iteration(self, strategy, *args, **kwargs):
        self.ids.append(strategy.mb_sample_ids.tolist())


def run_with(name, backbone, *, every=None, workers=0, seed=0, transform=None, between=False, view="sessions"):
    benchmark = two_sessions(view=view)
    plugins = []
    if every is not None:
        evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise, batch_size=7)
        plugins.append(AnytimeEvaluation(evaluator, every=every))
    options = {} if transform is None else {"train_transform": transform}
    strategy = make_strategy(name, backbone, seed=seed, plugins=plugins, **options)
    for experience in benchmark.train_stream:
        strategy.train(experience, num_workers=workers)
        if between:
            strategy.eval(benchmark.test_stream)
    return learned(strategy)


@every_strategy
def test_evaluation_and_workers_leave_weights_and_random_state_alone(name, tiny_backbone):
    augment = TrainTransform(16, (0.5,) * 3, (0.25,) * 3, augmentation="crop_flip", seed=3)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    reference = run_with(name, tiny_backbone, transform=augment)
    assert_same(run_with(name, tiny_backbone, transform=augment, every=1), reference)
    assert_same(run_with(name, tiny_backbone, transform=augment, every=50), reference)
    assert_same(run_with(name, tiny_backbone, transform=augment, every=0), reference)
    assert_same(run_with(name, tiny_backbone, transform=augment, workers=2), reference)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    # Avalanche's own evaluation may draw from the global generator; training does not read it.
    assert_same(run_with(name, tiny_backbone, transform=augment, between=True), reference)


@every_strategy
def test_seeds_decide_initial_values(name, tiny_backbone):
    torch.manual_seed(1)
    first = run_with(name, tiny_backbone, seed=4)
    torch.manual_seed(2)
    assert_same(run_with(name, tiny_backbone, seed=4), first)
    if read_settings(name).needs.gradient:
        other = run_with(name, tiny_backbone, seed=5)
        assert any(not torch.equal(first[part], other[part]) for part in first)


@gradient_strategies
def test_the_augmentation_seed_and_pass_reach_the_pixels(name, tiny_backbone):
    def run(seed):
        transform = TrainTransform(16, (0.5,) * 3, (0.25,) * 3, augmentation="crop_flip", seed=seed)
        return run_with(name, tiny_backbone, transform=transform)

    first = run(3)
    assert_same(run(3), first)
    assert any(not torch.equal(first[part], tensor) for part, tensor in run(4).items())


@pytest.mark.parametrize(
    "name", [name for name in strategy_names() if read_settings(name).needs.boundaries != "required"]
)
def test_both_views_are_one_stream_when_sessions_fill_their_batches(name, tiny_backbone):
    sessions = [labels(16, [5, 2], 1), labels(24, [3, 0, 2], 2), labels(8, [1], 3)]
    results = []
    for view in ("sessions", "merged"):
        seen = Seen()
        strategy = make_strategy(name, tiny_backbone, plugins=[seen], updates_per_batch=1.5)
        train(strategy, stream_of(sessions, view=view))
        results.append((learned(strategy), seen.ids))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert [len(ids) for ids in results[0][1]] == [8] * 6


@pytest.mark.parametrize("name, workers", [*((name, 0) for name in strategy_names()), ("ncm", 2)])
@pytest.mark.parametrize("task_label", [None, 0])
def test_samples_come_in_the_order_of_the_plan(name, task_label, workers, tiny_backbone):
    targets = labels(30, range(CLASSES))
    sessions = [[4, 17, 3, 29, 8, 0, 1, 2, 5, 11], [28, 6, 20]]
    benchmark = benchmark_from_plan(
        plan_of(sessions, targets), Pictures(targets), Pictures([0, 1]), task_label=task_label
    )
    seen = Seen()
    strategy = make_strategy(name, tiny_backbone, plugins=[seen], train_mb_size=4)
    train(strategy, benchmark, num_workers=workers)
    assert seen.ids == [[4, 17, 3, 29], [8, 0, 1, 2], [5, 11], [28, 6, 20]]
    assert strategy.samples_seen == 13


# --- sizes, widths, masks -------------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize(
    "batch, train_mask", [(1, "exposed"), (64, "exposed"), *((5, policy) for policy in sorted(MASK_POLICIES))]
)
def test_any_batch_size_and_mask(name, batch, train_mask, tiny_backbone):
    # 11 samples: batches of one, two full ones and a last one of one, one short batch.
    benchmark = stream_of([labels(11, [4, 1], 3), [2]])
    strategy = make_strategy(name, tiny_backbone, train_mb_size=batch, train_mask=train_mask, updates_per_batch=1)
    train(strategy, benchmark)
    assert strategy.samples_seen == 12
    assert strategy.updates == -(-11 // batch) + 1
    assert strategy.exposed.nonzero().flatten().tolist() == [1, 2, 4]
    assert all(torch.isfinite(tensor).all() for tensor in learned(strategy).values())


@gradient_strategies
def test_a_single_class_under_the_batch_mask_has_loss_zero(name, tiny_backbone):
    strategy = make_strategy(name, tiny_backbone, train_mask="batch")
    before = learned(strategy)
    train(strategy, stream_of([[3] * 8]))
    assert float(strategy.last_losses["classification"]) == 0.0
    head = [part for part, _ in strategy.model.named_trainables() if part.startswith("head.")]
    assert head
    for part in head:
        assert torch.equal(before[part], learned(strategy)[part])


@every_strategy
@pytest.mark.parametrize("width, heads", [(16, 2), (40, 5)])
def test_other_widths(name, width, heads, make_vit):
    backbone = make_vit(width=width, heads=heads)
    strategy = train(make_strategy(name, backbone), two_sessions())
    assert strategy.model(Pictures([0]).tensors()).shape == (1, CLASSES)


@every_strategy
def test_bf16_runs_and_is_near_full_precision(name, tiny_backbone):
    results, logits = {}, {}
    images = Pictures(sorted(list(range(CLASSES)) * 4), seed=1).tensors()
    for precision in ("fp32", "bf16"):
        strategy = make_strategy(name, tiny_backbone, precision=precision)
        train(strategy, two_sessions())
        results[precision] = learned(strategy)
        assert strategy.running_accuracy >= 0
        with torch.no_grad():
            # In full precision both: what differs is what was learned.
            logits[precision] = strategy.model.eval()(images)[:, strategy.exposed]
    for part, tensor in results["fp32"].items():
        assert results["bf16"][part].dtype == tensor.dtype
        assert torch.isfinite(results["bf16"][part]).all()
    deviation = float((logits["bf16"] - logits["fp32"]).norm() / logits["fp32"].norm())
    # Eight bits of a product are right to 0.4 %; sums and steps carry that on.
    assert 0 < deviation < 0.03


# --- Avalanche's side -----------------------------------------------------------------------------------------------


@every_strategy
def test_avalanche_evaluation_agrees_with_ours(name, tiny_backbone):
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    benchmark = stream_of([labels(30, range(CLASSES))])
    plugin = EvaluationPlugin(accuracy_metrics(minibatch=True, stream=True))
    strategy = make_strategy(name, tiny_backbone, evaluator=plugin, updates_per_batch=5)
    train(strategy, benchmark)
    assert strategy.exposed.all()
    metrics = strategy.eval(benchmark.test_stream)
    ours = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise)(
        strategy.model, strategy.exposed
    )
    (accuracy,) = [value for key, value in metrics.items() if key.startswith("Top1_Acc_Stream")]
    assert accuracy == pytest.approx(np.trace(ours.confusion) / ours.confusion.sum())
    assert accuracy > 1 / CLASSES
    assert any(key.startswith("Top1_Acc_MB/train") for key in metrics)


@every_strategy
def test_training_resumes_where_avalanche_evaluation_interrupted(name, tiny_backbone):
    strategy = make_strategy(name, tiny_backbone)
    benchmark = two_sessions()
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    assert strategy.samples_seen == len(SESSIONS[0])
    strategy.train(benchmark.train_stream[1])
    assert strategy.samples_seen == len(SESSIONS[0]) + len(SESSIONS[1])


@pytest.mark.parametrize(
    "name, part",
    [
        *((name, part) for name in GRADIENT for part in ("EWCPlugin", "LwFPlugin", "AGEMPlugin")),
        ("linear_probe", "SynapticIntelligencePlugin"),
    ],
)
def test_plugins_of_avalanche_run_under_ours(name, part, tiny_backbone):
    from avalanche.training import plugins

    arguments = {
        "EWCPlugin": {"ewc_lambda": 1.0},
        "LwFPlugin": {},
        "SynapticIntelligencePlugin": {"si_lambda": 1.0},
        "AGEMPlugin": {"patterns_per_experience": 4, "sample_size": 4},
    }[part]
    plugin = getattr(plugins, part)(**arguments)
    benchmark = two_sessions(task_label=0, train_transform=normalise_one, eval_transform=normalise_one)
    strategy = make_strategy(name, tiny_backbone, plugins=[plugin], train_transform=None, eval_transform=None)
    reference = make_strategy(name, tiny_backbone, train_transform=None, eval_transform=None)
    train(strategy, benchmark)
    train(reference, benchmark)
    after, without = learned(strategy), learned(reference)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    if part != "SynapticIntelligencePlugin":  # its copies alias the weights on a CPU, so that it never acts
        # Without a gradient behind the logits LwF would be silent.
        assert any(not torch.equal(after[key], without[key]) for key in after)


def normalise_one(image):
    return normalise(image[None])[0]


@gradient_strategies
def test_usage_of_pools_is_watched_and_other_methods_refused(name, tiny_backbone):
    plugin = PromptUsage(every=10)
    strategy = make_strategy(name, tiny_backbone, plugins=[plugin])
    if strategy.model.prompt_usage() is None:
        with pytest.raises(StrategyError, match="has no prompt pool"):
            train(strategy, two_sessions())
    else:
        train(strategy, two_sessions())
        assert [seen for seen, _ in plugin.history] == [16, 27, 35, 43]


@pytest.mark.parametrize("name", [name for name in strategy_names() if read_settings(name).needs.replay != "none"])
def test_declared_replay_runs(name, tiny_backbone):
    strategy = make_strategy(name, tiny_backbone, plugins=[Reservoir(6, 4, seed=1)])
    train(strategy, two_sessions())
    assert strategy.samples_seen == 19 + 25
    assert all(torch.isfinite(tensor).all() for tensor in learned(strategy).values())


@every_strategy
def test_classes_are_exported_and_need_nothing_but_their_base(name):
    strategy_class = load_strategy(name)
    import cl_prompts.strategies as room

    assert getattr(room, strategy_class.__name__) is strategy_class
    assert getattr(room, strategy_class.method_class.settings_class.__name__)
    own = {key for key in vars(strategy_class) if not key.startswith("__")}
    assert own <= {"method_class", "_abc_impl", "_is_protocol"}


@gradient_strategies
def test_a_training_step_never_asks_the_device_for_a_value(name, tiny_backbone, monkeypatch):
    """On the meta device there are no values: whatever would make a GPU wait raises here."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **keywords: nullcontext())  # unknown to the meta device
    method = make_strategy(name, copy.deepcopy(tiny_backbone)).model.to("meta").train()
    images = torch.empty(8, 3, 16, 16, device="meta")
    targets = torch.empty(8, dtype=torch.int64, device="meta")
    tracker = ClassTracker(CLASSES, "meta")
    tracker.begin_session()
    tracker.observe(targets)
    for policy in ("none", "exposed", "batch", "session"):
        outputs = method.training_outputs(
            TrainingBatch(images, targets, tracker.allowed(policy, targets), tracker.exposed)
        )
        sum(outputs.losses.values()).backward()
    assert all(tensor.grad.is_meta for _, tensor in method.named_trainables())


@pytest.mark.parametrize("progress", ["plain", "bar"])
def test_watching_changes_nothing(progress, tiny_backbone, tmp_path):
    reference = run_with("mvp", tiny_backbone)
    benchmark = two_sessions()
    evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise)
    evaluation = AnytimeEvaluation(evaluator, every=10, session_ends=benchmark.plan.session_ends)
    console = Console(file=io.StringIO(), force_terminal=progress == "bar")
    with TerminalProgress(44, console=console, mode=progress) as terminal:
        tensorboard = TensorBoardLog(tmp_path, every_samples=1, plan=benchmark.plan)
        evaluation.subscribe(terminal.on_evaluation)
        evaluation.subscribe(tensorboard.on_evaluation)
        plugins = [PromptUsage(every=1), terminal, tensorboard, evaluation]
        strategy = train(make_strategy("mvp", tiny_backbone, plugins=plugins), benchmark)
        tensorboard.close()
    assert_same(learned(strategy), reference)
