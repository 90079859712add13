"""MVP, every variant and every part switched off, against a slow second version that shares no code with it."""

from __future__ import annotations

import copy

import pytest
import torch
from slow_mvp import slow_step

from cl_prompts.strategies import MVPSettings, TrainingBatch
from cl_prompts.strategies.mvp import MVPMethod, resolve_switches

CLASSES = 6
SIZES = {"pool_size": 4, "general_length": 2, "expert_length": 3}
GRID = {
    "paper": {"variant": "paper"},
    "released": {"variant": "released"},
    "base": {"contrast": "none", "focal": "none", "logit_mask": False, "feature_scaling": False},
    "mask alone": {"contrast": "none", "focal": "none", "feature_scaling": False},
    "contrastive alone": {"focal": "none", "logit_mask": False, "feature_scaling": False},
    "focal batch alone": {"contrast": "none", "focal": "batch", "logit_mask": False, "feature_scaling": False},
    "focal sample alone": {"contrast": "none", "focal": "sample", "logit_mask": False, "feature_scaling": False},
    "scaling alone": {"contrast": "none", "focal": "none", "logit_mask": False},
    "paper without focal": {"variant": "paper", "focal": "none"},
    "paper, plain routing": {"variant": "paper", "route": "plain"},
    "released, plain routing": {"route": "plain"},
    "paper, query with norm": {"variant": "paper", "query_norm": True, "query_blocks": 3},
    "paper, other constants": {"variant": "paper", "alpha": 0.8, "gamma": 1.5, "margin": 0.3},
    "paper, prefixes": {"variant": "paper", "insertion": "prefix_tuning"},
    "prompts share a block": {"general_layers": (1, 2), "expert_layers": (2, 5)},
    "prefixes share a block": {"general_layers": (1, 2), "expert_layers": (2, 5), "insertion": "prefix_tuning"},
}


@pytest.fixture(scope="module")
def double_backbone(tiny_backbone):
    return copy.deepcopy(tiny_backbone).double()


def method_and_batch(backbone, settings, batch=5):
    generator = torch.Generator().manual_seed(3)
    method = MVPMethod(backbone, CLASSES, settings, generator).double().train()
    with torch.no_grad():
        # A head and masks as training leaves them: at their initial values some gradients nearly vanish.
        method.head.weight.mul_(20)
        method.head.bias.copy_(torch.randn(CLASSES, generator=generator))
        method.soft_masks.copy_(torch.randn(method.soft_masks.shape, generator=generator))
    method.usage_counts.copy_(torch.tensor([1.0, 1.0, 1.0, 2.0]))
    images = torch.randn(batch, 3, 16, 16, generator=generator).double() * 2
    # Keys beside the first images' queries, so that not all images choose the same prompt.
    near = method.query(images)[:2]
    method.keys.data[: len(near)] = near + 0.1 * torch.randn(near.shape, generator=generator)
    targets = torch.tensor([0, 4, 4, 2, 0])[:batch]
    return method, images, targets


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("changes", GRID.values(), ids=GRID.keys())
def test_step_equals_the_slow_version(changes, batch, double_backbone):
    settings = MVPSettings(**SIZES | changes)
    method, images, targets = method_and_batch(double_backbone, settings, batch)
    allowed = torch.tensor([True, False, True, True, True, False])
    before = {name: tensor.detach().clone().requires_grad_() for name, tensor in method.named_trainables()}
    before.setdefault("soft_masks", method.soft_masks.detach().clone())
    resolved = settings.model_copy(update=resolve_switches(settings, double_backbone.depth)._asdict())
    usage = method.usage_counts.tolist()

    classification, prompt, usage_after = slow_step(
        double_backbone.model, resolved, before, images, targets.tolist(), usage, allowed.nonzero().flatten().tolist()
    )
    outputs = method.training_outputs(TrainingBatch(images, targets, allowed))

    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(outputs.losses["classification"], classification, **close)
    torch.testing.assert_close(outputs.losses["prompt"], prompt, **close)
    assert method.usage_counts.tolist() == usage_after

    ours = dict(method.named_trainables())
    total, slow_total = sum(outputs.losses.values()), classification + prompt
    mine = torch.autograd.grad(total, list(ours.values()), allow_unused=True)
    slow = torch.autograd.grad(slow_total, [before[name] for name in ours], allow_unused=True)
    for name, gradient, expected in zip(ours, mine, slow, strict=True):
        expected = torch.zeros_like(ours[name]) if expected is None else expected
        gradient = torch.zeros_like(ours[name]) if gradient is None else gradient
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: name + text)


def test_the_images_of_the_oracle_choose_different_prompts(double_backbone):
    method, images, _ = method_and_batch(double_backbone, MVPSettings(**SIZES, variant="paper"))
    assert len(set(method._select(method.query(images)).choice.flatten().tolist())) > 1


@pytest.mark.parametrize("variant, trained_keys", [("paper", "chosen"), ("released", "all")])
def test_what_receives_gradient(variant, trained_keys, double_backbone):
    method, images, targets = method_and_batch(double_backbone, MVPSettings(**SIZES, variant=variant))
    allowed = torch.tensor([True, False, True, False, True, False])
    chosen = sorted(set(method._select(method.query(images)).choice.flatten().tolist()))
    assert len(chosen) < 4
    outputs = method.training_outputs(TrainingBatch(images, targets, allowed))
    outputs.losses["classification"].backward(retain_graph=True)
    assert method.keys.grad is None
    for tensor in (method.expert_prompts, method.soft_masks):
        rows = tensor.grad.flatten(1).abs().sum(-1).nonzero().flatten().tolist()
        assert rows == chosen
    assert (method.soft_masks.grad[:, ~allowed] == 0).all()
    assert (method.head.weight.grad[~allowed] == 0).all()
    assert (method.head.weight.grad[allowed] != 0).any()
    assert (method.general_prompt.grad != 0).all()
    for tensor in method.backbone.parameters():
        assert tensor.grad is None

    method.zero_grad()
    outputs.losses["prompt"].backward()
    moved = method.keys.grad.abs().sum(-1).nonzero().flatten().tolist()
    assert moved == (chosen if trained_keys == "chosen" else [0, 1, 2, 3])
    assert method.head.weight.grad is None


def test_a_batch_of_one_class_moves_keys_only(double_backbone):
    method, images, _ = method_and_batch(double_backbone, MVPSettings(**SIZES))
    outputs = method.training_outputs(TrainingBatch(images, torch.full((5,), 3), torch.arange(CLASSES) == 3))
    assert float(outputs.losses["classification"].detach()) == 0.0
    sum(outputs.losses.values()).backward()
    moved = {name for name, tensor in method.named_trainables() if tensor.grad is not None and (tensor.grad != 0).any()}
    assert moved == {"keys"}
    assert all(torch.isfinite(tensor.grad).all() for _, tensor in method.named_trainables() if tensor.grad is not None)
