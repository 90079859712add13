"""CODA-Prompt: weights, orthogonal rows and penalty against slow loops; what a task may move; what settings exclude."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from toys import CLASSES, SETTINGS, Pictures, labels, make_strategy, stream_of

from cl_prompts.errors import StrategyError
from cl_prompts.prompts.orthogonal import extend_orthogonally, orthogonality_penalty
from cl_prompts.strategies import CODAPromptSettings, TrainingBatch
from cl_prompts.strategies.coda_prompt import NAMES, CODAPromptMethod, component_weights
from cl_prompts.strategies.state import method_state, restore_method

SMALL = SETTINGS["coda_prompt"]


def build(backbone, **changes) -> CODAPromptMethod:
    settings = CODAPromptSettings(**SMALL | changes)
    return CODAPromptMethod(backbone, CLASSES, settings, torch.Generator().manual_seed(0))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weights_equal_slow_loops():
    query, keys, attention = normal(3, 7), normal(2, 4, 7, seed=1), normal(2, 4, 7, seed=2)
    keys[0, 3], attention[0, 3] = 0, 0
    keys.requires_grad_()
    attention.requires_grad_()
    weights = component_weights(query, keys, attention)
    assert weights.shape == (3, 2, 4)
    for image in range(3):
        for block in range(2):
            for row in range(4):
                product = [q * a for q, a in zip(query[image].tolist(), attention[block, row].tolist(), strict=True)]
                key = keys[block, row].tolist()
                norms = math.sqrt(sum(x * x for x in product)) * math.sqrt(sum(x * x for x in key))
                slow = sum(x * k for x, k in zip(product, key, strict=True)) / norms if norms else 0.0
                assert weights[image, block, row].item() == pytest.approx(slow, rel=1e-12, abs=1e-15)
    weights.sum().backward()
    # Rows of later tasks are zeros; their slopes must be numbers.
    assert torch.isfinite(keys.grad).all()
    assert torch.isfinite(attention.grad).all()


def slow_rows(rows, draws):
    """Classical Gram-Schmidt, one number at a time."""
    result = [list(row) for row in rows]
    for drawn in draws:
        remainder = list(drawn)
        for earlier in result:
            share = sum(d * e for d, e in zip(drawn, earlier, strict=True)) / sum(e * e for e in earlier)
            remainder = [r - share * e for r, e in zip(remainder, earlier, strict=True)]
        norm = math.sqrt(sum(r * r for r in remainder))
        result.append([r / norm for r in remainder])
    return result


def test_new_rows_equal_slow_loops_and_old_ones_stay():
    old, draws = normal(3, 8), normal(2, 8, seed=1)
    rows = torch.cat([old, normal(4, 8, seed=2)])
    extended = extend_orthogonally(rows, 3, draws)
    expected = torch.tensor(slow_rows(old.tolist(), draws.tolist()), dtype=torch.float64)
    torch.testing.assert_close(extended[:5], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(extended[:3], old)
    assert extended[5:].abs().max() == 0
    # Old rows are not orthogonal among themselves, so the classical form leaves a part of them; among unit rows none.
    assert (extended[3:5] @ old.T).abs().max() > 1e-2
    fresh = extend_orthogonally(rows, 0, normal(7, 8, seed=3))
    torch.testing.assert_close(fresh @ fresh.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.isfinite(extend_orthogonally(torch.zeros(3, 8), 1, draws)).all()


def test_the_penalty_equals_slow_loops():
    rows = normal(2, 5, 6)
    live = torch.tensor([True, True, True, False, False])
    rows[:, 3:] = 0
    slow = 0.0
    for block in rows.tolist():
        for i in range(3):
            for j in range(3):
                slow += (sum(a * b for a, b in zip(block[i], block[j], strict=True)) - (i == j)) ** 2 / 9
    assert orthogonality_penalty(rows, live).item() == pytest.approx(slow, rel=1e-12)


def batch_of(count: int = 6, copies: int = 1) -> TrainingBatch:
    targets = labels(count, range(CLASSES), 3)
    images = Pictures(targets).tensors().repeat(copies, 1, 1, 1)
    return TrainingBatch(images, torch.tensor(targets * copies), torch.ones(CLASSES, dtype=torch.bool))


def test_components_start_orthogonal_and_all_learn_without_tasks(short_backbone):
    method = build(short_backbone)
    for name in NAMES:
        for block in getattr(method, name).detach().flatten(2):
            torch.testing.assert_close(block @ block.T, torch.eye(6), rtol=0, atol=1e-6)
    first = method.components
    for _ in range(3):
        method.begin_session(None)
    assert method.components is first
    sum(method.training_outputs(batch_of()).losses.values()).backward()
    assert all(getattr(method, name).grad.flatten(2).abs().amax(-1).min() > 0 for name in NAMES)
    assert method.settings.declared_needs().boundaries == "none"
    assert "all components learn" in method.settings.deviations()[0]


def test_old_rows_have_no_gradient_and_later_ones_no_part(short_backbone):
    method = build(short_backbone, task_count=3).eval()
    for _ in range(2):
        method.begin_session(None)
    sum(method.training_outputs(batch_of()).losses.values()).backward()
    with torch.no_grad():
        expected = method(batch_of().images)
        for name in NAMES:
            rows = getattr(method, name)
            assert rows.grad[:, [0, 1, 4, 5]].abs().sum() == 0
            assert rows.grad[:, 2:4].abs().max() > 0
            rows[:, [0, 1, 4, 5]] = 7.0
        assert torch.equal(method(batch_of().images), expected)


def test_a_task_moves_its_own_rows_alone_with_a_fresh_optimizer(short_backbone):
    # Weight decay and moments would move rows whose gradient is zero.
    decaying = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5)
    strategy = make_strategy("coda_prompt", short_backbone, settings={"task_count": 3}, optimizer=decaying)
    benchmark = stream_of([labels(16, [0, 1]), labels(16, [2, 3]), labels(16, [4, 5])])
    optimizers, last = [], None
    for task, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        optimizers.append(strategy.optimizer)
        held = {id(tensor) for group in strategy.optimizer.param_groups for tensor in group["params"]}
        assert held == {id(tensor) for _, tensor in strategy.model.named_trainables()}
        assert {id(getattr(strategy.model, name)) for name in NAMES} <= held
        effective = {name: rows.detach().clone() for name, rows in strategy.model._effective().items()}
        for name, rows in effective.items():
            assert rows[:, 2 * (task + 1) :].abs().sum() == 0
            assert rows[:, 2 * task : 2 * (task + 1)].abs().sum() > 0
            if last is not None:
                assert torch.equal(rows[:, : 2 * task], last[name][:, : 2 * task])
        last = effective
    assert len({id(one) for one in optimizers}) == 3
    with pytest.raises(StrategyError, match=r"strategy\.task_count=3: task 4 begins"):
        strategy.model.begin_session(None)


def test_a_saved_share_goes_on_in_another_process(short_backbone):
    method, other = (build(short_backbone, task_count=3) for _ in range(2))
    for _ in range(2):
        method.begin_session(None)
    with torch.no_grad():
        method.keys[:, 2:4] += 0.5
    # A resumed run begins its session before it is given the saved state.
    other.begin_session(None)
    restore_method(other, method_state(method))
    images = batch_of().images
    with torch.no_grad():
        assert torch.equal(method.eval()(images), other.eval()(images))
        for one in (method, other):
            one.begin_session(None)
        assert torch.equal(method(images), other(images))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_batch_twice_has_the_same_loss(variant, short_backbone):
    method = build(short_backbone, variant=variant)
    once, twice = (method.training_outputs(batch_of(copies=copies)).losses for copies in (1, 2))
    assert ("prompt" in once) == (variant == "paper")
    for name in once:
        torch.testing.assert_close(once[name], twice[name], rtol=1e-5, atol=1e-6)


def test_settings_that_exclude_each_other(short_backbone):
    with pytest.raises(ValidationError, match=r"components=100: strategy\.task_count=3"):
        CODAPromptSettings(task_count=3)
    with pytest.raises(StrategyError, match=r"strategy\.components=30.*at most 24"):
        build(short_backbone, components=30)
    with pytest.raises(StrategyError, match=r"strategy\.prompt_layers=4: the backbone has 3"):
        build(short_backbone, prompt_layers=4)
    needs = CODAPromptSettings(task_count=10).declared_needs()
    assert (needs.boundaries, needs.task_ids, needs.tasks_in_advance) == ("required", True, True)
    assert build(short_backbone).effective_settings()["orthogonality"] == 0.1
