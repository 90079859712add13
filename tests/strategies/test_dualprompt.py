"""DualPrompt: rows by key and by task, the mixed-up axes, key losses against slow loops, and what settings exclude."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from toys import CLASSES, SETTINGS, Pictures, labels, learned, make_strategy, stream_of

from cl_prompts.errors import StrategyError
from cl_prompts.prompts.layout import reshaped_axes
from cl_prompts.strategies import DualPromptSettings, TrainingBatch
from cl_prompts.strategies.dualprompt import DualPromptMethod

SMALL = SETTINGS["dualprompt"] | {"general_layers": (0,), "expert_layers": (1, 2)}
WITH_TASKS = ["paper", "released", "coda"]


def build(backbone, **changes) -> DualPromptMethod:
    return DualPromptMethod(backbone, CLASSES, DualPromptSettings(**SMALL | changes), torch.Generator().manual_seed(0))


def batch_of(count: int = 6, copies: int = 1) -> TrainingBatch:
    targets = labels(count, range(CLASSES), 3)
    images = Pictures(targets).tensors().repeat(copies, 1, 1, 1)
    return TrainingBatch(images, torch.tensor(targets * copies), torch.ones(CLASSES, dtype=torch.bool))


def slow_cosine(left, right) -> float:
    left, right = left.double().tolist(), right.double().tolist()
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


@pytest.mark.parametrize("variant", ["siblurry", *WITH_TASKS])
def test_key_losses_equal_slow_loops_and_reach_the_keys(variant, short_backbone):
    method = build(short_backbone, variant=variant)
    method.begin_session(None)
    method.begin_session(None)
    batch = batch_of()
    loss = method.training_outputs(batch).losses["prompt"]
    queries = method.query(batch.images)
    keys = method.prompts.keys.detach()
    cosines = []
    for block in keys if variant == "coda" else keys[None]:
        for query in queries:
            row = [slow_cosine(query, key) for key in block]
            cosines.append(max(row) if variant == "siblurry" else row[1])
    slow = {
        "siblurry": sum(1 - one for one in cosines) / len(cosines),
        "coda": sum(1 - one for one in cosines),
    }.get(variant, -sum(cosines) / len(cosines))
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    loss.backward()
    assert method.prompts.keys.grad.abs().max() > 1e-4
    assert method.prompts.expert_prompts.grad is None


def test_without_tasks_each_image_trains_the_expert_of_its_nearest_key(short_backbone):
    method = build(short_backbone)
    batch = batch_of(9)
    outputs = method.training_outputs(batch)
    nearest = [
        max(range(4), key=lambda row, query=query: slow_cosine(query, method.prompts.keys[row].detach()))
        for query in method.query(batch.images)
    ]
    assert len(set(nearest)) > 1
    assert method.usage_counts.tolist() == [nearest.count(row) for row in range(4)]
    sum(outputs.losses.values()).backward()
    assert method.prompts.expert_prompts.grad.abs().sum((1, 2)).nonzero().flatten().tolist() == sorted(set(nearest))


@pytest.mark.parametrize("variant", WITH_TASKS)
def test_with_tasks_a_session_trains_its_own_row_with_a_fresh_optimizer(variant, short_backbone):
    strategy = make_strategy("dualprompt", short_backbone, settings=SMALL | {"variant": variant})
    optimizers, before = [], learned(strategy)
    benchmark = stream_of([labels(16, [0, 1]), labels(16, [2, 3]), labels(8, [4, 5])])
    for task, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        optimizers.append(strategy.optimizer)
        after = learned(strategy)
        key = "prompts.expert_prompts"
        assert not torch.equal(after[key][task], before[key][task])
        rest = [row for row in range(4) if row != task]
        assert torch.equal(after[key][rest], before[key][rest])
        if task == 1 and variant != "coda":
            # It started as a copy of the row before and has moved little; rows drawn anew are far apart.
            assert (after[key][1] - after[key][0]).norm() < 0.5 * (before[key][1] - before[key][0]).norm()
        before = after
    # Moments of an optimizer that goes on would move finished rows.
    assert len({id(one) for one in optimizers}) == 3
    held = {id(tensor) for group in strategy.optimizer.param_groups for tensor in group["params"]}
    assert held == {id(tensor) for _, tensor in strategy.model.named_trainables()}
    assert strategy.model.prompt_usage().tolist() == [32.0, 32.0, 16.0, 0.0]


def test_a_row_starts_as_the_one_before(short_backbone):
    method = build(short_backbone, variant="paper")
    old = method.prompts.expert_prompts
    method.begin_session(None)
    assert method.prompts.expert_prompts is old
    method.begin_session(None)
    new = method.prompts.expert_prompts
    assert new is not old
    assert torch.equal(new[1], old[0])
    assert torch.equal(new[[0, 2, 3]], old[[0, 2, 3]])
    for _ in range(2):
        method.begin_session(None)
    with pytest.raises(StrategyError, match=r"strategy\.pool_size=4.*variant=siblurry"):
        method.begin_session(None)
    without_tasks = build(short_backbone)
    for _ in range(6):
        without_tasks.begin_session(None)


@pytest.mark.parametrize("variant", ["siblurry", "paper", "coda"])
def test_swapped_images_swap_their_predictions(variant, short_backbone):
    method = build(short_backbone, variant=variant).eval()
    images = Pictures([0, 3, 5, 1]).tensors()
    with torch.no_grad():
        # Every image has a key, and a prompt, of its own.
        method.prompts.keys.copy_(method.query(images))
        torch.testing.assert_close(method(images[[2, 1, 0, 3]]), method(images)[[2, 1, 0, 3]], rtol=1e-4, atol=1e-5)


def test_in_the_released_code_images_get_prompts_of_others(short_backbone):
    method = build(short_backbone, variant="released", choice="image").eval()
    right = build(short_backbone, variant="paper").eval()
    images = Pictures([0, 3, 5, 1]).tensors()
    with torch.no_grad():
        for one in (method, right):
            one.prompts.keys.copy_(method.query(images))
        assert (method(images[[2, 1, 0, 3]]) - method(images)[[2, 1, 0, 3]]).abs().max() > 1e-3
        torch.testing.assert_close(method(images[:1]), right(images[:1]))
        # One row for all: the first half reads the keys twice, the second the values.
        rows = torch.arange(8.0).reshape(1, 4, 2).expand(4, -1, -1)
        assert reshaped_axes(rows, 1).tolist() == [[[0, 1], [2, 3]] * 2] * 2 + [[[4, 5], [6, 7]] * 2] * 2


@pytest.mark.parametrize("variant, grows", [("siblurry", False), ("paper", False), ("coda", True)])
def test_a_batch_twice_has_the_same_loss_but_in_coda_prompts_version(variant, grows, short_backbone):
    once, twice = (
        build(short_backbone, variant=variant).training_outputs(batch_of(copies=copies)).losses for copies in (1, 2)
    )
    torch.testing.assert_close(once["classification"], twice["classification"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((2 if grows else 1) * once["prompt"], twice["prompt"], rtol=1e-5, atol=1e-6)


def test_needs_follow_the_variant():
    assert DualPromptSettings().declared_needs().boundaries == "none"
    for variant in WITH_TASKS:
        needs = DualPromptSettings(variant=variant).declared_needs()
        assert (needs.boundaries, needs.task_ids, needs.tasks_in_advance) == ("required", True, True)


def test_settings_that_exclude_each_other(short_backbone):
    for changes, message in [
        ({"choice": "batch"}, "set strategy.variant=released"),
        ({"variant": "released", "insertion": "prompt_tuning"}, "use projected_prefix"),
        ({"expert_layers": (2, 2)}, "names a block twice"),
    ]:
        with pytest.raises(ValidationError, match=message):
            DualPromptSettings(**changes)
    effective = build(short_backbone, variant="released").effective_settings()
    assert (effective["insertion"], effective["choice"]) == ("projected_prefix", "batch")
    drawn = build(short_backbone, variant="coda").prompts
    assert min(tensor.min() for tensor in drawn.parameters()) >= 0
    assert max(tensor.max() for tensor in drawn.parameters()) <= 1
