"""VPT against timm itself on the longer sequence, its initial values, and its drop-out."""

from __future__ import annotations

import copy

import pytest
import torch
from toys import CLASSES, Pictures, assert_same, learned, make_strategy, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.strategies import TrainingBatch, VPTDeepSettings, VPTShallowSettings
from cl_prompts.strategies.vpt_deep import VPTDeepMethod
from cl_prompts.strategies.vpt_shallow import VPTShallowMethod

METHODS = {"shallow": (VPTShallowMethod, VPTShallowSettings), "deep": (VPTDeepMethod, VPTDeepSettings)}


def make(form, backbone, double=True, **settings):
    method, typed = METHODS[form]
    backbone = copy.deepcopy(backbone)
    made = method(backbone, CLASSES, typed(prompt_length=3, **settings), torch.Generator().manual_seed(0))
    return made.double() if double else made


def slow_logits(method, images, layers, *, joined_once):
    """Timm's own blocks on [class; prompts; patches]: published places, ours are behind the patches."""
    vit = method.backbone.model
    prompts = method.prompt.tokens
    states = vit._pos_embed(vit.patch_embed(images))
    length = prompts.shape[1]
    for index, block in enumerate(vit.blocks):
        if index < layers:
            behind = states[:, 1:] if index == 0 or joined_once else states[:, 1 + length :]
            states = torch.cat([states[:, :1], prompts[index].expand(len(images), -1, -1), behind], dim=1)
        elif not joined_once and index == layers:
            states = torch.cat([states[:, :1], states[:, 1 + length :]], dim=1)
        states = block(states)
    feature = vit.norm(states)[:, 0]
    return feature @ method.head.weight.T + method.head.bias


@pytest.mark.parametrize("form, layers", [("shallow", 1), ("deep", 3), ("deep", 2)])
def test_logits_loss_and_gradients_equal_timm_on_the_longer_sequence(form, layers, short_backbone):
    settings = {"prompt_layers": layers} if form == "deep" and layers < 3 else {}
    method = make(form, short_backbone, **settings)
    assert method.prompt.tokens.shape == (layers, 3, short_backbone.width)
    images, targets = Pictures([0, 3, 5]).tensors().double(), torch.tensor([0, 3, 5])
    expected = slow_logits(method, images, layers, joined_once=form == "shallow")
    torch.testing.assert_close(method(images), expected, rtol=1e-11, atol=1e-11)
    assert (expected - method.head(method.backbone(images))).abs().max() > 1e-4

    allowed = torch.tensor([True, False, True, True, False, True])
    chosen = expected[:, allowed]
    loss = -torch.log_softmax(chosen, dim=-1)[range(3), [0, 2, 3]].mean()
    reference = torch.autograd.grad(loss, method.prompt.tokens)[0]
    outputs = method.training_outputs(TrainingBatch(images, targets, allowed))
    torch.testing.assert_close(outputs.losses["classification"], loss, rtol=1e-11, atol=1e-11)
    gradient = torch.autograd.grad(outputs.losses["classification"], method.prompt.tokens)[0]
    torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-12)
    assert all(float(layer.norm()) > 0 for layer in gradient)


@pytest.mark.parametrize("form", METHODS)
def test_prompts_start_uniform_between_the_published_bounds(form, make_vit):
    tokens = make(form, make_vit(width=48, heads=4), double=False).prompt.tokens.detach()
    bound = (6 / (3 * 8 * 8 + 48)) ** 0.5
    assert float(tokens.abs().max()) == pytest.approx(bound, rel=0.1)
    assert float(tokens.abs().max()) <= bound
    # Of a uniform distribution.
    assert float(tokens.std()) == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize("form", METHODS)
def test_dropout_is_of_training_alone_and_drawn_for_each_image(form, short_backbone):
    with_dropout, without = (make(form, short_backbone, prompt_dropout=rate) for rate in (0.5, 0.0))
    images = Pictures([2, 2]).tensors().double()[:1].expand(2, -1, -1, -1)
    batch = TrainingBatch(images, torch.tensor([2, 2]), torch.ones(CLASSES, dtype=torch.bool))
    assert torch.equal(with_dropout.train()(images), without(images))
    plain = without.training_outputs(batch).features
    torch.testing.assert_close(plain[0], plain[1], rtol=1e-12, atol=1e-12)
    first, second = (with_dropout.training_outputs(batch).features for _ in range(2))
    assert (first[0] - first[1]).abs().max() > 1e-4
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("form", METHODS)
def test_dropped_numbers_are_zero_and_the_rest_enlarged(form, short_backbone):
    prompt = make(form, short_backbone).prompt
    insertions = prompt.dropped(64, 0.25, torch.Generator().manual_seed(1))
    assert sorted(insertions) == list(range(len(prompt.tokens)))
    for layer, (insertion,) in insertions.items():
        ratios = insertion.tokens / prompt.tokens[layer]
        zero = ratios == 0
        torch.testing.assert_close(ratios[~zero], torch.full_like(ratios[~zero], 4 / 3))
        assert float(zero.double().mean()) == pytest.approx(0.25, abs=0.03)
        assert insertion.keep == (form == "shallow")


@pytest.mark.parametrize("form", METHODS)
def test_a_resumed_run_draws_the_dropout_it_would_have_drawn(form, short_backbone):
    options = {"settings": {"prompt_dropout": 0.3}, "train_mb_size": 4}
    benchmark = stream_of([[0, 1, 2, 3, 0, 1, 2, 3]])
    whole = train(make_strategy(f"vpt_{form}", short_backbone, **options), benchmark)

    states = []
    stopped = make_strategy(f"vpt_{form}", short_backbone, **options)
    stopped.batch_listeners.append(lambda strategy: states.append(copy.deepcopy(strategy.state_dict())))
    train(stopped, benchmark)
    resumed = make_strategy(f"vpt_{form}", short_backbone, **options)
    for experience in resumed.resume(states[0], list(benchmark.train_stream)):
        resumed.train(experience)
    assert_same(learned(resumed), learned(whole))


def test_more_blocks_than_there_are_is_one_line(short_backbone):
    with pytest.raises(StrategyError, match=r"prompt_layers=4: the backbone has 3 blocks"):
        make("deep", short_backbone, prompt_layers=4)


def test_the_number_of_blocks_is_recorded_and_fewer_are_a_deviation(short_backbone):
    assert make("deep", short_backbone).effective_settings()["prompt_layers"] == 3
    assert VPTDeepSettings().deviations() == []
    assert "first 2 blocks" in VPTDeepSettings(prompt_layers=2).deviations()[0]
