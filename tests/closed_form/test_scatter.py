"""Means, scatter, OAS and discriminant against plain loops over all samples at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cl_prompts.closed_form.scatter import ClassScatter, linear_discriminant, oas_covariance

WIDTH, CLASSES = 5, 7


def samples(count=40, seed=0):
    """Features far from zero, classes in no numeric order; class 2 never comes."""
    generator = np.random.default_rng(seed)
    targets = generator.choice([6, 0, 5, 1, 3, 4], count)
    features = generator.normal(size=(count, WIDTH)) + 100 + targets[:, None] * generator.normal(size=WIDTH)
    return features, targets


def by_loops(features, targets):
    """(means of the classes that occur, scatter around them), one sample after the other."""
    means, scatter = {}, np.zeros((WIDTH, WIDTH))
    for label in set(targets.tolist()):
        rows = [row for row, target in zip(features, targets, strict=True) if target == label]
        means[label] = sum(rows) / len(rows)
        for row in rows:
            scatter += np.outer(row - means[label], row - means[label])
    return means, scatter


def filled(features, targets, cuts=(1, 1, 9, 0, 20)):
    statistics = ClassScatter(WIDTH, CLASSES)
    rest = len(targets) - sum(cuts)
    for part in torch.arange(len(targets)).split([*cuts, rest]):
        statistics.add(torch.from_numpy(features)[part], torch.from_numpy(targets)[part])
    return statistics


def test_the_exact_form_equals_the_batch_formula():
    features, targets = samples()
    statistics = filled(features, targets)
    means, scatter = by_loops(features, targets)
    for label in range(CLASSES):
        expected = means.get(label, np.zeros(WIDTH))
        np.testing.assert_allclose(statistics.means[label].numpy(), expected, rtol=1e-13)
        assert float(statistics.counts[label]) == (targets == label).sum()
    np.testing.assert_allclose(statistics.scatter.numpy(), scatter, atol=1e-9)
    np.testing.assert_allclose(statistics.covariance().numpy(), scatter / 40, atol=1e-10)


@pytest.mark.parametrize("seed", [1, 2])
def test_neither_order_nor_batches_change_the_exact_form(seed):
    features, targets = samples()
    order = np.random.default_rng(seed).permutation(40)
    one, two = filled(features, targets), filled(features[order], targets[order], cuts=(3,) * seed)
    torch.testing.assert_close(one.means, two.means, rtol=0, atol=1e-10)
    torch.testing.assert_close(one.scatter, two.scatter, rtol=0, atol=1e-9)


def test_the_released_recursion_sample_by_sample():
    features, targets = samples()
    statistics = ClassScatter(WIDTH, CLASSES)
    means, counts, covariance = np.zeros((CLASSES, WIDTH)), np.zeros(CLASSES), np.ones((WIDTH, WIDTH))
    for seen, (row, label) in enumerate(zip(features, targets, strict=True)):
        deviation = row - means[label]
        covariance = (seen * covariance + seen / (seen + 1) * np.outer(deviation, deviation)) / (seen + 1)
        means[label] += deviation / (counts[label] + 1)
        counts[label] += 1
    for part in torch.arange(40).split(9):
        statistics.add_released(torch.from_numpy(features)[part], torch.from_numpy(targets)[part])
    np.testing.assert_allclose(statistics.covariance().numpy(), covariance, rtol=1e-9)
    np.testing.assert_allclose(statistics.means.numpy(), means, rtol=1e-12)
    # The first sample of a class is measured from zero, and these features lie far from it.
    exact = filled(features, targets)
    assert float(statistics.covariance().trace()) > 10 * float(exact.covariance().trace())


def oas_by_loops(covariance, count):
    width = len(covariance)
    mean_variance = sum(covariance[index, index] for index in range(width)) / width
    square = sum(covariance[i, j] ** 2 for i in range(width) for j in range(width)) / width**2
    share = min(1.0, (square + mean_variance**2) / ((count + 1) * (square - mean_variance**2 / width)))
    result = [[(1 - share) * covariance[i, j] for j in range(width)] for i in range(width)]
    for index in range(width):
        result[index][index] += share * mean_variance
    return np.array(result)


@pytest.mark.parametrize("count", [3, 40])
def test_oas_against_its_formula(count):
    features, targets = samples(count)
    statistics = filled(features, targets, cuts=())
    expected = oas_by_loops(statistics.covariance().numpy(), count)
    np.testing.assert_allclose(
        oas_covariance(statistics.covariance(), statistics.scatter_samples).numpy(), expected, rtol=1e-12, atol=1e-14
    )
    statistics.shrink()
    np.testing.assert_allclose(statistics.covariance().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_oas_of_nothing_is_nothing():
    zero = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    assert torch.equal(oas_covariance(zero, torch.tensor(1.0)), zero)


def test_the_base_phase_sets_what_it_has_seen_and_leaves_other_means():
    features, targets = samples()
    statistics = filled(features, targets)
    before = statistics.means.clone()
    features, targets = samples(6, seed=4)
    statistics.replace(torch.from_numpy(features), torch.from_numpy(targets))
    means, scatter = by_loops(features, targets)
    for label in range(CLASSES):
        np.testing.assert_allclose(statistics.means[label].numpy(), means.get(label, before[label].numpy()), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance().numpy(), oas_by_loops(scatter / 6, 6), rtol=1e-10, atol=1e-12)
    assert float(statistics.scatter_samples) == 6


def test_the_discriminant_against_an_explicit_inverse():
    features, targets = samples()
    statistics = filled(features, targets)
    weight, bias = linear_discriminant(statistics.means, statistics.covariance(), 0.01)
    inverse = np.linalg.inv(0.99 * statistics.covariance().numpy() + 0.01 * np.eye(WIDTH))
    row = features[3]
    for label, mean in enumerate(statistics.means.numpy()):
        expected = row @ inverse @ mean - 0.5 * mean @ inverse @ mean
        score = float(torch.from_numpy(row) @ weight[:, label] + bias[label])
        assert score == pytest.approx(expected, rel=1e-9, abs=1e-7)
