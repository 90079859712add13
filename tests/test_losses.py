"""MVP's losses against slow versions: one Python loop for each sum in the formula, one backward pass a sample."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_prompts import losses

exact = {"rtol": 1e-10, "atol": 1e-12}


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def cosine(left, right):
    return dot(left, right) / torch.sqrt(dot(left, left)) / torch.sqrt(dot(right, right))


def pool(batch=5, size=4, width=3, seed=0, used=(3, 0, 0, 7)):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(size, width, generator=generator, dtype=torch.float64, requires_grad=True)
    query = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    choice = torch.randint(size, (batch,), generator=generator)
    return keys, query, choice, torch.tensor(used, dtype=torch.float64)[:size]


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("used", [(0, 0, 0, 0), (3, 0, 0, 7), (1e6, 5, 2, 0)])
def test_released_contrastive_loss_equals_its_triple_loop(batch, used):
    keys, query, choice, usage = pool(batch, used=used)
    distance = losses.cosine_distance(query, keys[choice])
    ours = losses.released_contrastive_loss(keys, choice, distance, usage)

    repel = attract = 0.0
    for i in range(batch):
        for j in range(batch):
            for p in range(len(keys)):
                between_keys = 1 - cosine(keys[choice[i]], keys[p])
                repel = repel + torch.exp(between_keys / (usage[choice[j]] + 1)) / (batch * batch * len(keys))
            to_key = 1 - cosine(query[j], keys[choice[j]])
            attract = attract + torch.exp(to_key / (usage[choice[i]] + 1)) / (batch * batch)
    slow = -torch.log(repel / (attract + repel) + 1e-6)

    torch.testing.assert_close(ours, slow, **exact)
    torch.testing.assert_close(gradients(ours, keys), gradients(slow, keys), **exact)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("used", [(0, 0, 0, 0), (3, 0, 0, 7)])
def test_per_query_contrastive_loss_equals_its_loop_and_trains_chosen_keys_alone(batch, used):
    keys, query, choice, usage = pool(batch, used=used)
    distance = losses.cosine_distance(query, keys[choice])
    ours = losses.per_query_contrastive_loss(keys, choice, distance, usage)

    total = 0.0
    for i in range(batch):
        mine, mu = int(choice[i]), usage[choice[i]] + 1
        others = [p for p in range(len(keys)) if p != mine]
        repel = sum(torch.exp((1 - cosine(keys[mine], keys[p].detach())) / mu) for p in others) / len(others)
        attract = torch.exp((1 - cosine(query[i], keys[mine])) / mu)
        total = total - torch.log(repel / (attract + repel)) / batch

    torch.testing.assert_close(ours, total, **exact)
    (gradient,) = gradients(ours, keys)
    torch.testing.assert_close(gradient, gradients(total, keys)[0], **exact)
    moved = gradient.abs().sum(-1) > 0
    assert moved.nonzero().flatten().tolist() == sorted(set(choice.tolist()))


def test_per_query_loss_with_one_other_key():
    keys, query, _, usage = pool(3, 2)
    choice = torch.tensor([0, 0, 1])
    loss = losses.per_query_contrastive_loss(keys, choice, losses.cosine_distance(query, keys[choice]), usage)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradients(loss, keys)[0]).all()


def test_released_loss_decays_towards_log_two_with_usage():
    keys, query, choice, _ = pool()
    sizes = []
    for count in (0, 10, 100, 1000):
        distance = losses.cosine_distance(query, keys[choice])
        loss = losses.released_contrastive_loss(keys, choice, distance, torch.full((4,), float(count)))
        sizes.append(float(gradients(loss, keys)[0].norm()))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 2e-3 * sizes[0]
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-3)


def test_pull_loss_is_the_mean_over_all_choices():
    distance = torch.tensor([[0.5, 1.5], [1.0, 0.0]])
    assert float(losses.pull_loss(distance)) == 0.75


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_stay_in_full_precision_under_autocast(dtype):
    keys, query, choice, usage = (tensor.float() if tensor.is_floating_point() else tensor for tensor in pool(64))
    distance = losses.cosine_distance(query, keys[choice])
    generator = torch.Generator().manual_seed(1)
    features, logits = torch.randn(64, 12, generator=generator), torch.randn(64, 9, generator=generator)
    targets = torch.randint(9, (64,), generator=generator)

    def results():
        return [
            losses.released_contrastive_loss(keys, choice, distance, usage),
            losses.per_query_contrastive_loss(keys, choice, distance, usage),
            losses.gradient_dissimilarity(features, logits, targets),
            losses.feature_divisor(features, torch.ones(9, 12), targets, 0.5),
        ]

    plain = results()
    with torch.autocast("cpu", dtype=dtype):
        reduced = results()
    for ours, expected in zip(reduced, plain, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


# --- gradient dissimilarity -----------------------------------------------------------------------------------------


def slow_dissimilarity(features, weight, bias, targets, soft_mask, allowed):
    """B backward passes of one sample's loss through a head, one of the batch's mean loss."""

    def logits_of(rows):
        logits = F.linear(features[rows], weight, bias)
        if soft_mask is not None:
            logits = logits * soft_mask[rows]
        return logits.masked_fill(~allowed, float("-inf"))

    weight = weight.clone().requires_grad_()
    (batch_gradient,) = gradients(F.cross_entropy(logits_of(slice(None)), targets), weight)
    result = []
    for row, target in enumerate(targets.tolist()):
        one = slice(row, row + 1)
        (own,) = gradients(F.cross_entropy(logits_of(one), targets[one]), weight)
        result.append(1 - F.cosine_similarity(own[target], batch_gradient[target], dim=0))
    return torch.stack(result)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("hidden", [0, 3])
def test_dissimilarity_equals_backward_passes(batch, soft, hidden):
    generator = torch.Generator().manual_seed(batch)
    classes, width = 6, 5

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, weight, bias = normal(batch, width), normal(classes, width), normal(classes)
    targets = torch.randint(classes - hidden, (batch,), generator=generator)
    soft_mask = 2 * torch.sigmoid(normal(batch, classes)) if soft else None
    allowed = torch.arange(classes) < classes - hidden
    logits = F.linear(features, weight, bias) * (1 if soft_mask is None else soft_mask)
    ours = losses.gradient_dissimilarity(features, logits.masked_fill(~allowed, float("-inf")), targets, soft_mask)
    slow = slow_dissimilarity(features, weight, bias, targets, soft_mask, allowed)
    torch.testing.assert_close(ours, slow.clamp(0, 2), rtol=1e-9, atol=1e-9)
    if batch == 1:
        assert float(ours) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_without_gradient_has_dissimilarity_one(dtype):
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logits = torch.tensor([[2000.0, 0, 0], [0.3, 0.1, 0.2], [0.2, 0.5, 0.1]], dtype=dtype)
    result = losses.gradient_dissimilarity(features, logits, torch.tensor([0, 0, 1]))
    assert float(result[0]) == 1.0
    assert torch.isfinite(result).all()


def test_one_class_alone_gives_dissimilarity_one():
    logits = torch.full((3, 4), float("-inf"))
    logits[:, 2] = torch.tensor([1.0, -3.0, 0.0])
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert losses.gradient_dissimilarity(features, logits, torch.full((3,), 2)).tolist() == [1.0, 1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.01, 300), st.integers(0, 10_000))
def test_dissimilarity_is_in_range_at_any_scale(batch, classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, 3, generator=generator) * scale
    logits = torch.randn(batch, classes, generator=generator) * scale
    targets = torch.randint(classes, (batch,), generator=generator)
    result = losses.gradient_dissimilarity(features, logits, targets)
    assert ((result >= 0) & (result <= 2)).all()
    # A fractional exponent of a tiny negative number would be NaN.
    assert torch.isfinite(result.pow(0.5)).all()


# --- focal and scaling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_losses_equal_their_sums(alpha, gamma):
    cross_entropy, ign = torch.tensor([0.2, 1.5, 3.0]), torch.tensor([0.0, 1.0, 1.7])
    weights = [float(value) ** gamma for value in ign]
    mean = sum(cross_entropy.tolist()) / 3
    batch = mean * ((1 - alpha) + alpha * sum(weights) / 3)
    sample = sum(ce * ((1 - alpha) + alpha * w) for ce, w in zip(cross_entropy.tolist(), weights, strict=True)) / 3
    assert float(losses.FOCAL_LOSSES["batch"](cross_entropy, ign, alpha, gamma)) == pytest.approx(batch, rel=1e-6)
    assert float(losses.FOCAL_LOSSES["sample"](cross_entropy, ign, alpha, gamma)) == pytest.approx(sample, rel=1e-6)
    assert float(losses.FOCAL_LOSSES["none"](cross_entropy, ign, alpha, gamma)) == pytest.approx(mean, rel=1e-6)


def test_feature_divisor_equals_its_loop_and_is_a_constant():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 3, 1, 2])
    ours = losses.feature_divisor(features, weights, targets, 0.5)
    slow = [1 - float(cosine(weights[y], f).detach()) + 0.5 for f, y in zip(features, targets.tolist(), strict=True)]
    assert ours.shape == (5, 1)
    assert not ours.requires_grad
    torch.testing.assert_close(ours.flatten(), torch.tensor(slow, dtype=torch.float64), **exact)


def test_feature_divisor_ranges_from_margin_to_margin_plus_two():
    features = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    weights = torch.tensor([[3.0, 6.0], [-1.0, -2.0]])
    divisor = losses.feature_divisor(features, weights, torch.tensor([0, 1]), 0.5)
    torch.testing.assert_close(divisor.flatten(), torch.tensor([0.5, 2.5]))
