"""Plugins as Avalanche sees them: hook names, all of them together under its own strategies, nothing left behind."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche_toys import FOREIGN, LinearModel, float_stream, foreign, train_in_order, weights
from toys import CLASSES, labels

import cl_prompts.plugins as room
from cl_prompts.evaluation import Evaluator
from cl_prompts.plugins import (
    AdaptiveFeatureScaling,
    AnytimeEvaluation,
    GradientSimilarityFocalLoss,
    LogitMask,
    Reservoir,
)

KNOWN_HOOKS = {name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))}
SESSIONS = [labels(19, [5, 2, 4], 1), labels(25, [3, 0, 4], 2)]


@pytest.mark.parametrize("name", room.__all__)
def test_every_hook_is_one_that_avalanche_calls(name):
    plugin = getattr(room, name)
    assert issubclass(plugin, SupervisedPlugin)
    hooks = {attribute for attribute in dir(plugin) if attribute.startswith(("before", "after"))}
    assert hooks <= KNOWN_HOOKS
    own = {attribute for attribute in vars(plugin) if attribute in KNOWN_HOOKS}
    assert own


def everything(benchmark):
    evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES)
    return {
        "mask": LogitMask("exposed"),
        "focal": GradientSimilarityFocalLoss("sample"),
        "scaling": AdaptiveFeatureScaling(),
        "evaluation": AnytimeEvaluation(evaluator, every=10),
        "reservoir": Reservoir(8, 4),
    }


@pytest.mark.parametrize(
    "name, task_label",
    # Avalanche's LwF itself asks for task labels.
    [(name, label) for name in FOREIGN for label in (0, None) if (name, label) != ("LwF", None)],
)
def test_all_together_under_avalanches_strategies(name, task_label):
    if name == "GEM":
        pytest.importorskip("quadprog", reason="Avalanche's GEM needs this solver")
    torch.manual_seed(0)
    benchmark = float_stream(SESSIONS, task_label=task_label)
    model = LinearModel()
    plugins = everything(benchmark)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*incompatible callbacks.*")
        strategy = foreign(name, model, plugins.values())
    before = weights(model)
    train_in_order(strategy, benchmark)
    after = weights(model)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert not torch.equal(before["head.weight"], after["head.weight"])
    if name not in ("AGEM", "GEM"):  # their projections add gradients of unmasked passes over the memory
        # Class 1 was never seen, never competed and never moved.
        assert torch.equal(before["head.weight"][1], after["head.weight"][1])
    assert [point.samples_seen for point in plugins["evaluation"].points] == [16, 27, 35, 43]
    strategy.eval(benchmark.test_stream)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("plugin", ["mask", "focal", "scaling", "evaluation", "reservoir"])
def test_each_alone_under_avalanches_strategies(name, plugin):
    if name == "GEM":
        pytest.importorskip("quadprog", reason="Avalanche's GEM needs this solver")
    benchmark = float_stream([[0, 1, 2, 3, 4, 5, 0, 1, 2], [3, 4, 5]], task_label=0)
    model = LinearModel()
    train_in_order(foreign(name, model, [everything(benchmark)[plugin]]), benchmark)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_the_order_of_plugins_changes_nothing():
    results = []
    for order in itertools.permutations(["mask", "focal", "scaling", "reservoir"]):
        benchmark = float_stream(SESSIONS)
        model = LinearModel()
        plugins = everything(benchmark)
        train_in_order(foreign("Naive", model, [plugins[name] for name in order]), benchmark)
        results.append(weights(model))
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=1e-7)


def test_unhooking_leaves_the_model_as_it_was():
    benchmark = float_stream(SESSIONS)
    model = LinearModel()
    keys = list(model.state_dict())
    images = torch.stack([item[0] for item in benchmark.test_stream[0].dataset])
    plugins = everything(benchmark)
    strategy = foreign("Naive", model, plugins.values())
    train_in_order(strategy, benchmark)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert list(model.state_dict()) == keys
    bare = LinearModel()
    bare.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), bare.eval()(images))
    # The same strategy trains on: hooks come back for the next experience, once.
    strategy.train(benchmark.train_stream[0], shuffle=False)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_weights_of_a_stream_do_not_depend_on_evaluation_under_naive():
    results = []
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for every in (None, 1, 7, 0):
        benchmark = float_stream(SESSIONS)
        evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, batch_size=5)
        plugins = [] if every is None else [AnytimeEvaluation(evaluator, every=every)]
        torch.set_rng_state(state)
        model = LinearModel()
        train_in_order(foreign("Naive", model, plugins), benchmark)
        results.append((weights(model), torch.get_rng_state()))
    for result, random_state in results[1:]:
        assert all(torch.equal(result[name], tensor) for name, tensor in results[0][0].items())
        assert torch.equal(random_state, results[0][1])
