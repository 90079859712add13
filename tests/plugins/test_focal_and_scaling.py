"""Focal loss and feature scaling on Avalanche's Naive: the step that a hand computation gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EWCPlugin
from avalanche_toys import LinearModel, Losses, float_stream, foreign, train_in_order, weights
from torch import nn
from toys import CLASSES, Pictures, make_strategy, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.plugins import AdaptiveFeatureScaling, GradientSimilarityFocalLoss, LogitMask
from cl_prompts.plugins.head_inputs import find_head
from cl_prompts.strategies import TrainingBatch

TARGETS = [0, 2, 2, 5, 0, 1]
ALPHA, GAMMA, MARGIN = 0.7, 1.5, 0.4


def hand_loss(features, head, targets, *, focal=None, scaling=False, columns=None):
    """The loss by hand, one sample at a time, head gradients by autograd."""
    columns = list(range(CLASSES)) if columns is None else columns
    targets = [columns.index(target) for target in targets]

    def cross_entropy(feature, target, weight):
        logits = (weight @ feature + head.bias)[columns]
        return torch.log(torch.exp(logits).sum()) - logits[target]

    gradients = []
    for feature, target in zip(features, targets, strict=True):
        weight = head.weight.detach().clone().requires_grad_()
        gradients.append(torch.autograd.grad(cross_entropy(feature.detach(), target, weight), weight)[0][columns])
    mean = sum(gradients) / len(gradients)
    ign = [
        float(1 - F.cosine_similarity(own[target], mean[target], dim=0)) ** GAMMA
        for own, target in zip(gradients, targets, strict=True)
    ]
    terms = []
    for feature, target in zip(features, targets, strict=True):
        row = head.weight[columns[target]].detach()
        divisor = float(1 - F.cosine_similarity(row, feature.detach(), dim=0)) + MARGIN if scaling else 1.0
        terms.append(cross_entropy(feature / divisor, target, head.weight))
    factors = {
        None: [1.0] * len(terms),
        "none": [1.0] * len(terms),
        "sample": [(1 - ALPHA) + ALPHA * value for value in ign],
        "batch": [(1 - ALPHA) + ALPHA * sum(ign) / len(ign)] * len(terms),
    }[focal]
    return sum(factor * term for factor, term in zip(factors, terms, strict=True)) / len(terms)


def one_step(plugins, columns=None, **hand):
    """(weights after one step with the plugins, weights after one step of plain SGD on the loss by hand)."""
    model, twin = LinearModel(), LinearModel()
    train_in_order(foreign("Naive", model, plugins, lr=0.1), float_stream([TARGETS]))
    loss = hand_loss(twin.features(Pictures(TARGETS).tensors()), twin.head, TARGETS, columns=columns, **hand)
    loss.backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    return weights(model), weights(twin)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("focal", [None, "none", "batch", "sample"])
def test_one_step_equals_the_step_by_hand(focal, scaling, mask):
    plugins = [LogitMask("batch")] if mask else []
    if scaling:
        plugins.append(AdaptiveFeatureScaling(MARGIN))
    if focal is not None:
        plugins.append(GradientSimilarityFocalLoss(focal, alpha=ALPHA, gamma=GAMMA))
    ours, by_hand = one_step(plugins, focal=focal, scaling=scaling, columns=[0, 1, 2, 5] if mask else None)
    start = weights(LinearModel())
    for name, tensor in by_hand.items():
        torch.testing.assert_close(ours[name] - start[name], tensor - start[name], rtol=1e-3, atol=1e-6)
        assert not torch.equal(ours[name], start[name])


def test_the_variants_differ_from_each_other():
    steps = [one_step([], focal=focal, scaling=scaling)[1] for focal in (None, "batch", "sample") for scaling in (0, 1)]
    for index, step in enumerate(steps):
        for other in steps[:index]:
            assert (step["head.weight"] - other["head.weight"]).abs().max() > 1e-5


def test_penalties_of_other_plugins_survive():
    """With focal mode none the plugin exchanges nothing: EWC's penalty must still be in the loss."""
    losses = []
    for plugins in ([], [GradientSimilarityFocalLoss("none")], [GradientSimilarityFocalLoss("batch", alpha=0.0)]):
        for first in (True, False):
            record, penalty = Losses(), EWCPlugin(ewc_lambda=50.0)
            order = [penalty, *plugins] if first else [*plugins, penalty]
            train_in_order(foreign("Naive", LinearModel(), [*order, record]), float_stream([TARGETS, [3, 4] * 12]))
            losses.append(record.values)
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)
    without = Losses()
    train_in_order(foreign("Naive", LinearModel(), [without]), float_stream([TARGETS, [3, 4] * 12]))
    assert without.values != pytest.approx(losses[0], rel=1e-5)


def test_scaling_is_for_training_alone():
    class Outputs(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.logits = []

        def after_eval_forward(self, strategy, *args, **kwargs):
            self.logits.append(strategy.mb_output)

    outputs = Outputs()
    model = LinearModel()
    benchmark = float_stream([TARGETS])
    strategy = foreign("Naive", model, [AdaptiveFeatureScaling(), outputs])
    train_in_order(strategy, benchmark)
    strategy.eval(benchmark.test_stream)
    images = torch.stack([item[0] for item in benchmark.test_stream[0].dataset])
    torch.testing.assert_close(torch.cat(outputs.logits), model(images))


@pytest.mark.parametrize("name", ["linear_probe", "single_prompt"])
@pytest.mark.parametrize("focal, scaling", [("sample", False), ("batch", True), (None, True)])
def test_under_strategies_of_ours(name, focal, scaling, tiny_backbone):
    plugins = [AdaptiveFeatureScaling(MARGIN)] if scaling else []
    if focal:
        plugins.insert(0, GradientSimilarityFocalLoss(focal, alpha=ALPHA, gamma=GAMMA))

    def strategy(parts):
        return make_strategy(
            name,
            tiny_backbone,
            settings={"head": "linear"},
            updates_per_batch=1,
            plugins=parts,
            optimizer=lambda tensors: torch.optim.SGD(tensors, lr=0.1),
        )

    ours = train(strategy(plugins), stream_of([TARGETS]))
    model = strategy([]).model
    images = Pictures(TARGETS).tensors()
    features = model.training_outputs(TrainingBatch(images, torch.tensor(TARGETS), torch.ones(CLASSES).bool())).features
    loss = hand_loss(features, model.head, TARGETS, focal=focal, scaling=scaling, columns=[0, 1, 2, 5])
    loss.backward()
    for tensor_name, tensor in model.named_trainables():
        after = dict(ours.model.named_trainables())[tensor_name]
        torch.testing.assert_close(after - tensor, -0.1 * tensor.grad, rtol=1e-3, atol=1e-6)
        assert (tensor.grad != 0).any()


@pytest.mark.parametrize("plugin", [AdaptiveFeatureScaling, GradientSimilarityFocalLoss])
def test_what_has_no_head_to_hook_is_refused(plugin, tiny_backbone):
    benchmark = stream_of([TARGETS])
    with pytest.raises(StrategyError, match="MVPMethod has this part itself; use its setting strategy"):
        train(make_strategy("mvp", tiny_backbone, plugins=[plugin()]), benchmark)
    # A cosine head is no nn.Linear, and those of the frozen backbone are no heads.
    for name in ("single_prompt", "ncm"):
        with pytest.raises(StrategyError, match=r"has no trained nn\.Linear that could be its classifier"):
            train(make_strategy(name, tiny_backbone, plugins=[plugin()]), benchmark)
    with pytest.raises(StrategyError, match=r"head='classifier': LinearModel has no nn\.Linear of that name"):
        train_in_order(foreign("Naive", LinearModel(), [plugin(head="classifier")]), float_stream([TARGETS]))


def test_an_unknown_mode_and_an_unused_head_are_refused():
    with pytest.raises(StrategyError, match="focal mode 'samples' is unknown; choose one of none, batch, sample"):
        GradientSimilarityFocalLoss("samples")
    model = LinearModel()
    model.spare = nn.Linear(4, 4)
    with pytest.raises(StrategyError, match="the head was not used in this forward pass"):
        train_in_order(foreign("Naive", model, [GradientSimilarityFocalLoss()]), float_stream([TARGETS]))
    train_in_order(foreign("Naive", model, [GradientSimilarityFocalLoss(head="head")]), float_stream([TARGETS]))


def test_the_head_is_the_last_trained_linear_layer(tiny_backbone):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert find_head(model, None) is model[2]
    assert find_head(model, "0") is model[0]
    model[2].requires_grad_(False)
    assert find_head(model, None) is model[0]
    probe = make_strategy("linear_probe", tiny_backbone).model
    assert find_head(probe, None) is probe.head
