"""`LogitMask` under Avalanche's loop gives what `train_mask` gives under ours, also with heads that grow."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier
from avalanche_toys import LinearModel, float_stream, foreign, train_in_order, weights
from torch import nn
from toys import CLASSES, SIZE, assert_same, labels, learned, make_strategy, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.masks import FINITE_FILL, MASK_POLICIES
from cl_prompts.plugins import LogitMask, Reservoir
from cl_prompts.strategies import LinearProbeSettings
from cl_prompts.strategies.linear_probe import LinearProbeMethod

SESSIONS = [labels(19, [5, 2, 4], 1), labels(25, [3, 0, 4], 2)]
DISJOINT = [labels(19, [5, 2, 4], 1), labels(25, [3, 0], 2)]


def sessions_for(policy):
    """Our strategies refuse the task mask where classes return."""
    return DISJOINT if policy == "task" else SESSIONS


class Allowed(SupervisedPlugin):
    """Which columns were open in each update; stands behind the mask."""

    def __init__(self):
        super().__init__()
        self.columns: list[list[int]] = []

    def before_backward(self, strategy, *args, **kwargs):
        open_columns = (strategy.mb_output > FINITE_FILL / 2).all(0)
        assert torch.equal(open_columns, (strategy.mb_output > FINITE_FILL / 2).any(0))
        self.columns.append(open_columns.nonzero().flatten().tolist())


@pytest.mark.parametrize("memory", [0, 6])
@pytest.mark.parametrize("policy", sorted(MASK_POLICIES))
def test_equals_the_train_mask_of_our_strategies(policy, memory, tiny_backbone):
    def replay():
        return [Reservoir(memory, 4, seed=3)] if memory else []

    benchmark = float_stream(sessions_for(policy))
    ours_open, theirs_open = Allowed(), Allowed()
    ours = make_strategy(
        "linear_probe",
        tiny_backbone,
        train_mask=policy,
        updates_per_batch=1,
        train_transform=None,
        eval_transform=None,
        plugins=[*replay(), ours_open],
    )
    train(ours, benchmark)
    model = LinearProbeMethod(tiny_backbone, CLASSES, LinearProbeSettings(), torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.head.parameters(), lr=5e-3)
    train_in_order(foreign("Naive", model, [*replay(), LogitMask(policy), theirs_open], optimizer=optimizer), benchmark)
    assert theirs_open.columns == ours_open.columns
    for name, tensor in learned(ours).items():
        torch.testing.assert_close(weights(model)[name], tensor, rtol=1e-5, atol=1e-7)


def test_replayed_classes_compete_but_are_not_taken_up_by_the_session():
    benchmark = float_stream([[0, 1] * 4, [2] * 24])
    mask, watch = LogitMask("session"), Allowed()
    # One remembered sample a batch: either class 0 or class 1 or, later, class 2 competes beside class 2.
    train_in_order(foreign("Naive", LinearModel(), [Reservoir(8, 1, seed=0), mask, watch]), benchmark)
    assert all(len(columns) <= 2 for columns in watch.columns[1:])
    assert mask.classes.session.nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("policy", sorted(MASK_POLICIES))
def test_handed_to_a_strategy_of_ours_it_sets_the_rule(policy, tiny_backbone):
    benchmark = stream_of(sessions_for(policy))
    by_plugin = make_strategy("mvp", tiny_backbone, plugins=[LogitMask(policy, eval_policy="none")])
    by_argument = make_strategy("mvp", tiny_backbone, train_mask=policy, eval_mask="none")
    train(by_plugin, benchmark)
    train(by_argument, benchmark)
    assert (by_plugin.train_mask, by_plugin.eval_mask) == (policy, "none")
    assert_same(learned(by_plugin), learned(by_argument))


@pytest.mark.parametrize("policy", sorted(MASK_POLICIES))
def test_a_growing_head_is_followed(policy):
    model = nn.Sequential(nn.Flatten(), IncrementalClassifier(3 * SIZE**2, initial_out_features=1))
    # The second task is announced before the head has its columns.
    benchmark = float_stream([[1, 0, 1], [5, 4, 1], [2, 3]], test_targets=[0, 1, 2, 3, 4, 5])
    mask, watch = LogitMask(policy), Allowed()
    strategy = foreign("Naive", model, [mask, watch], lr=1e-3)
    train_in_order(strategy, benchmark)
    expected = {
        "none": [[0, 1], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]],
        "exposed": [[0, 1], [0, 1, 4, 5], [0, 1, 2, 3, 4, 5]],
        "task": [[0, 1], [1, 4, 5], [2, 3]],
        "batch": [[0, 1], [1, 4, 5], [2, 3]],
        "session": [[0, 1], [1, 4, 5], [2, 3]],
    }
    assert watch.columns == expected[policy]
    assert mask.classes.exposed.all()
    assert torch.isfinite(model(torch.zeros(1, 3, SIZE, SIZE))).all()


@pytest.mark.parametrize("policy", ["exposed", "batch", "task", "session"])
def test_distillation_stays_finite(policy):
    benchmark = float_stream([[0, 1, 2, 3] * 3, [4, 5] * 4, [1] * 9], task_label=0)
    model = LinearModel()
    train_in_order(foreign("LwF", model, [LogitMask(policy)]), benchmark)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


@pytest.mark.parametrize("eval_policy, predicted", [("exposed", {2, 3}), ("none", {5})])
def test_evaluation_predicts_exposed_classes_only_and_looks_at_no_label(eval_policy, predicted):
    class Predictions(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.seen: set[int] = set()

        def after_eval_forward(self, strategy, *args, **kwargs):
            self.seen |= set(strategy.mb_output.argmax(-1).tolist())

    watch = Predictions()
    model = LinearModel()
    benchmark = float_stream([[2, 3] * 4])
    strategy = foreign("Naive", model, [LogitMask("exposed", eval_policy=eval_policy), watch], lr=1e-6)
    train_in_order(strategy, benchmark)
    with torch.no_grad():
        model.head.bias[5] = 100.0
    strategy.eval(benchmark.test_stream)
    assert watch.seen <= predicted
    assert watch.seen


def test_evaluation_before_training_is_not_masked():
    benchmark = float_stream([[2, 3] * 4])
    mask = LogitMask()
    strategy = foreign("Naive", LinearModel(), [mask])
    strategy.eval(benchmark.test_stream)
    assert mask.classes is None


def test_unknown_policies_and_a_stream_without_tasks_are_refused():
    with pytest.raises(StrategyError, match="LogitMask policy 'exposd' is unknown; choose one of none, exposed"):
        LogitMask("exposd")
    with pytest.raises(StrategyError, match="LogitMask eval_policy 'batch' is unknown; choose one of exposed, none"):
        LogitMask(eval_policy="batch")
    with pytest.raises(StrategyError, match="'task' needs the classes of the current task"):
        train_in_order(foreign("Naive", LinearModel(), [LogitMask("task")]), float_stream([[0, 1]], view="merged"))
