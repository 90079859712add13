"""MVP's switches: what each does, what excludes what, and that counting happens where it should."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from toys import CLASSES, SETTINGS, Pictures, labels, learned, make_strategy, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.strategies import MVPSettings
from cl_prompts.strategies.mvp import MVPMethod, resolve_switches


def build(backbone, **changes):
    return MVPMethod(backbone, CLASSES, MVPSettings(**SETTINGS["mvp"] | changes), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("logit_mask", [True, False])
def test_any_selection_size(size, logit_mask, tiny_backbone):
    settings = {"contrast": "none", "selection_size": size, "logit_mask": logit_mask}
    strategy = make_strategy("mvp", tiny_backbone, settings=settings)
    before = learned(strategy)
    train(strategy, stream_of([labels(20, range(CLASSES))]))
    after = learned(strategy)
    assert float(after["usage_counts"].sum()) == 20 * 2 * size
    if size == 4:
        assert after["usage_counts"].tolist() == [40.0] * 4
        assert not torch.equal(before["keys"], after["keys"])
    assert torch.equal(before["soft_masks"], after["soft_masks"]) != logit_mask


def test_several_choices_average_their_masks_and_insert_the_first(tiny_backbone):
    method = build(tiny_backbone, contrast="none", selection_size=3).eval()
    with torch.no_grad():
        method.soft_masks.normal_(generator=torch.Generator().manual_seed(1))
    images = Pictures([0, 3]).tensors()
    choice = method._select(method.query(images)).choice
    logits = method.head(method._features(images, choice[:, :1], None))
    mask = torch.stack([2 * torch.sigmoid(sum(method.soft_masks[p] for p in row) / 3) for row in choice.tolist()])
    torch.testing.assert_close(method(images), mask * logits)


def test_equal_counts_route_by_distance_and_unequal_ones_balance(tiny_backbone):
    method = build(tiny_backbone).eval()
    images = Pictures(labels(12, range(CLASSES))).tensors()
    distance = 1 - torch.nn.functional.cosine_similarity(method.query(images)[:, None], method.keys, dim=-1)
    assert torch.equal(method._select(method.query(images)).choice[:, 0], distance.argmin(-1))
    method.usage_counts.copy_(torch.tensor([50.0, 50.0, 0.0, 50.0]))
    assert method._select(method.query(images)).choice.flatten().tolist() == [2] * 12


@pytest.mark.parametrize(
    "route, route_at_test, balanced_in_training, balanced_at_test",
    [
        ("count", "count", True, True),
        ("count", "plain", True, False),
        ("plain", "count", False, True),
        ("plain", "plain", False, False),
    ],
)
def test_routing_switches_of_training_and_test(
    route, route_at_test, balanced_in_training, balanced_at_test, tiny_backbone
):
    method = build(tiny_backbone, route=route, route_at_test=route_at_test)
    query = method.query(Pictures(labels(12, range(CLASSES))).tensors())
    plain = torch.nn.functional.cosine_similarity(query[:, None], method.keys, dim=-1).argmax(-1)
    unused = 3 if int(plain[0]) != 3 else 0
    method.usage_counts.fill_(1e6)[unused] = 0
    for mode, balanced in ((True, balanced_in_training), (False, balanced_at_test)):
        choice = method.train(mode)._select(query).choice[:, 0]
        assert torch.equal(choice, torch.full_like(plain, unused) if balanced else plain)


def test_without_the_contrastive_loss_usage_is_idle(tiny_backbone):
    method = build(tiny_backbone, contrast="none").eval()
    query = method.query(Pictures(labels(12, range(CLASSES))).tensors())
    before = method._select(query).choice
    method.usage_counts.copy_(torch.tensor([0.0, 1e6, 1e6, 1e6]))
    assert torch.equal(method._select(query).choice, before)


def test_usage_counts_images_times_updates_and_only_in_training(tiny_backbone):
    strategy = make_strategy("mvp", tiny_backbone, updates_per_batch=3)
    train(strategy, stream_of([labels(20, range(CLASSES))]))
    assert float(strategy.model.usage_counts.sum()) == 60
    assert torch.equal(strategy.model.prompt_usage(), strategy.model.usage_counts)
    strategy.model.eval()(Pictures([0, 1]).tensors())
    assert float(strategy.model.usage_counts.sum()) == 60


def test_under_a_foreign_loop_forward_counts_in_training_mode(tiny_backbone):
    method = build(tiny_backbone).train()
    method(Pictures([0, 1, 2]).tensors())
    assert float(method.usage_counts.sum()) == 3


def test_the_mask_weakens_logits_including_the_bias_and_is_used_at_test(tiny_backbone):
    images = Pictures([0, 1]).tensors()
    with_mask, without = build(tiny_backbone).eval(), build(tiny_backbone, logit_mask=False).eval()
    with torch.no_grad():
        for method in (with_mask, without):
            method.head.bias.fill_(2.0)
    # All masks start at the logit -1.
    torch.testing.assert_close(with_mask(images), without(images) * 2 * torch.sigmoid(torch.tensor(-1.0)))


def test_initial_values(tiny_backbone):
    method = build(tiny_backbone, general_layers=(0, 1), expert_layers=(2, 3, 4))
    shapes = {name: tuple(tensor.shape) for name, tensor in method.named_trainables()}
    assert shapes == {
        "general_prompt": (1, 2 * 2, 24),
        "expert_prompts": (4, 3 * 3, 24),
        "keys": (4, 24),
        "soft_masks": (4, CLASSES),
        "head.weight": (CLASSES, 24),
        "head.bias": (CLASSES,),
    }
    assert (method.soft_masks == -1).all()
    assert (method.head.bias == 0).all()
    assert 0.5 < float(method.expert_prompts.std()) < 1.5
    assert (method.usage_counts == 0).all()
    prefixes = build(tiny_backbone, insertion="prefix_tuning")
    assert prefixes.expert_prompts.shape == (4, 2 * 3 * 3, 24)


@pytest.mark.parametrize("insertion", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize(
    "changes",
    [
        {"general_length": 0},
        {"expert_length": 0},
        {"general_length": 0, "expert_length": 0},
        {"general_layers": ()},
        {"general_layers": (), "expert_layers": ()},
    ],
)
def test_parts_without_tokens(changes, insertion, tiny_backbone):
    strategy = make_strategy("mvp", tiny_backbone, settings=changes | {"insertion": insertion})
    train(strategy, stream_of([labels(9, range(CLASSES))]))
    assert all(torch.isfinite(tensor).all() for tensor in learned(strategy).values())


def test_variants_fill_the_open_switches_only():
    assert resolve_switches(MVPSettings(), 12) == ("released", "batch", 11)
    assert resolve_switches(MVPSettings(variant="paper"), 12) == ("per_query", "sample", 12)
    mixed = MVPSettings(variant="paper", focal="none", query_blocks=3)
    assert resolve_switches(mixed, 12) == ("per_query", "none", 3)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"general_layers": (0, 6)}, "name block 6: the backbone has blocks 0 to 5"),
        ({"expert_layers": (7,)}, "name block 7"),
        ({"query_blocks": 7}, "strategy.query_blocks=7: the backbone has 6 blocks; set 1 to 6"),
    ],
)
def test_blocks_beyond_the_backbone_are_refused(changes, match, tiny_backbone):
    with pytest.raises(StrategyError, match=match) as error:
        build(tiny_backbone, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"expert_layers": (2, 2)}, r"expert_layers=\[2,2\]: names a block twice"),
        ({"selection_size": 11, "contrast": "none"}, "selection_size=11: at most strategy.pool_size=10"),
        ({"selection_size": 2}, "set strategy.contrast=none or strategy.selection_size=1"),
        ({"selection_size": 2, "contrast": "none", "insertion": "prefix_tuning"}, "strategy.insertion=prompt_tuning"),
        ({"pool_size": 1, "variant": "paper"}, "pool_size=1: strategy.contrast=per_query compares keys"),
        ({"gamma": math.inf}, "finite"),
        ({"margin": math.inf}, "finite"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(changes, match):
    with pytest.raises(ValidationError, match=match):
        MVPSettings(**changes)


def test_a_backbone_of_one_block_needs_its_query_named(make_vit):
    layers = {"general_layers": (0,), "expert_layers": (0,)}
    with pytest.raises(StrategyError, match=r"strategy\.query_blocks=0: the backbone has 1 blocks; set 1 to 1"):
        build(make_vit(depth=1), **layers)
    build(make_vit(depth=1), **layers, query_blocks=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"pool_size": 0},
        {"alpha": 1.5},
        {"gamma": -1.0},
        {"margin": 0.0},
        {"variant": "papr"},
        {"general_layers": (-1,)},
        {"unknown": 1},
        {"pool_size": 2.5},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValidationError):
        MVPSettings(**changes)


def test_a_pool_of_one_works_where_it_is_defined(tiny_backbone):
    strategy = make_strategy("mvp", tiny_backbone, settings={"pool_size": 1})
    train(strategy, stream_of([labels(9, range(CLASSES))]))
    assert strategy.model.usage_counts.tolist() == [18.0]


def test_released_defaults_are_the_scripts_values():
    settings = MVPSettings()
    assert (settings.pool_size, settings.selection_size, settings.general_length, settings.expert_length) == (
        10,
        1,
        5,
        20,
    )
    assert (settings.general_layers, settings.expert_layers) == ((0, 1), (2, 3, 4))
    assert (settings.alpha, settings.gamma, settings.margin) == (0.5, 2.0, 0.5)
    assert (settings.insertion, settings.logit_mask, settings.feature_scaling) == ("prompt_tuning", True, True)
