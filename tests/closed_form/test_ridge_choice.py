"""Rules of the ridge constant against loops that fit and measure every constant of the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cl_prompts.closed_form.expansion import RandomExpansion
from cl_prompts.closed_form.kept import HeldOut, KeptRows
from cl_prompts.closed_form.ridge import GramRidge, target_rows
from cl_prompts.closed_form.ridge_choice import (
    GRID,
    CrossValidated,
    HoldOut,
    ShareOfScale,
    TaskGrid,
    cross_validated_ridge,
    held_out_ridge,
)
from cl_prompts.closed_form.ridge_classifier import RidgeClassifier

WIDTH, CLASSES = 10, 4


def samples(count=80, seed=0, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    places = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    return places[targets] + noise * torch.randn(count, WIDTH, generator=generator), targets


def head_of(features, rows, ridge):
    features = features.double().numpy()
    return np.linalg.solve(features.T @ features + ridge * np.eye(WIDTH), features.T @ rows.numpy())


def classifier_of(rule):
    return RidgeClassifier(RandomExpansion(WIDTH, 0, "normal", torch.Generator()), GramRidge(WIDTH, CLASSES), rule)


def learn(classifier, features, targets, cut=9):
    for part in torch.arange(len(targets)).split(cut):
        classifier.learn(features[part], targets[part])
    return classifier


@pytest.mark.parametrize("noise", [0.3, 3.0, 30.0])
def test_generalised_cross_validation_against_explicit_fits(noise):
    features, targets = samples(noise=noise)
    rows = target_rows(targets, CLASSES)
    sums = GramRidge(WIDTH, CLASSES)
    sums.add(features.double(), rows)
    scores = {}
    inputs = features.double().numpy()
    for ridge in GRID:
        hat = inputs @ np.linalg.inv(inputs.T @ inputs + ridge * np.eye(WIDTH)) @ inputs.T
        residual = rows.numpy() - hat @ rows.numpy()
        scores[ridge] = (residual**2).sum() / (1 - np.trace(hat) / len(inputs)) ** 2
    chosen = cross_validated_ridge(sums, GRID)
    assert scores[chosen] == pytest.approx(min(scores.values()), rel=1e-9)
    head = learn(classifier_of(CrossValidated()), features, targets).head().numpy()
    np.testing.assert_allclose(head, head_of(features, rows, chosen), atol=1e-9)


def test_more_noise_asks_for_a_larger_ridge():
    chosen = []
    for noise in (0.3, 30.0):
        features, targets = samples(noise=noise)
        sums = GramRidge(WIDTH, CLASSES)
        sums.add(features.double(), target_rows(targets, CLASSES))
        chosen.append(cross_validated_ridge(sums, GRID))
    assert chosen[0] < chosen[1]


def test_held_out_error_against_explicit_fits():
    features, targets = samples(noise=3.0)
    rows = target_rows(targets, CLASSES)
    fit, rest = slice(0, 50), slice(50, 80)
    errors = {
        ridge: (
            (features[rest].double().numpy() @ head_of(features[fit], rows[fit], ridge) - rows[rest].numpy()) ** 2
        ).mean()
        for ridge in GRID
    }
    inputs = features.double()
    chosen = held_out_ridge(inputs[fit].T @ inputs[fit], inputs[fit].T @ rows[fit], inputs[rest], rows[rest], GRID)
    assert errors[chosen] == min(errors.values())
    assert GRID[0] < chosen < GRID[-1]
    # Of constants without a difference the first is taken.
    assert (
        held_out_ridge(torch.zeros(WIDTH, WIDTH).double(), torch.zeros(WIDTH, CLASSES).double(), inputs, rows, GRID)
        == GRID[0]
    )


def test_the_held_out_sample_is_uniform_disjoint_and_nothing_is_lost():
    counts = np.zeros(30)
    for seed in range(300):
        kept = HeldOut(6, 1, 1, torch.Generator().manual_seed(seed))
        gone = []
        for part in torch.arange(30.0)[:, None].split(7):
            features, rows = kept.exchange(part, part.double())
            assert torch.equal(features.double(), rows)
            gone += features.flatten().tolist()
        there = kept.features.flatten().tolist()
        assert sorted(gone + there) == list(range(30))
        assert len(there) == 6
        assert int(kept.seen) == 30
        counts[np.array(there, dtype=int)] += 1
    # 300 draws of 6 of 30: 60 expected, deviation 6.9; no place of the stream is preferred.
    assert 35 < counts.min() <= counts.max() < 85


def test_the_head_of_a_held_out_rule_knows_all_samples():
    features, targets = samples()
    rows = target_rows(targets, CLASSES)
    rule = HoldOut(HeldOut(20, WIDTH, CLASSES, torch.Generator().manual_seed(0)), 0.1)
    classifier = classifier_of(rule)
    learn(classifier, features[:15], targets[:15])
    # All are kept: a share of the scale decides.
    inputs = features[:15].double()
    scale = float(inputs.square().sum()) / WIDTH
    np.testing.assert_allclose(classifier.head(), head_of(features[:15], rows[:15], 0.1 * scale), atol=1e-10)
    learn(classifier, features[15:], targets[15:])
    fits = [head_of(features, rows, ridge) for ridge in GRID]
    deviations = [float(np.abs(classifier.head().numpy() - fit).max()) for fit in fits]
    assert min(deviations) < 1e-10
    best = GRID[int(np.argmin(deviations))]
    kept = rule.kept.features.double().numpy()
    inputs = features.double().numpy()
    others = np.array([row for row in inputs if not (row == kept).all(1).any()])
    assert len(others) == 60
    errors = {}
    for ridge in GRID:
        gram = others.T @ others + ridge * np.eye(WIDTH)
        cross = inputs.T @ rows.numpy() - kept.T @ rule.kept.rows.numpy()
        errors[ridge] = ((kept @ np.linalg.solve(gram, cross) - rule.kept.rows.numpy()) ** 2).mean()
    assert errors[best] == pytest.approx(min(errors.values()), rel=1e-6)


def test_the_share_follows_the_scale():
    features, targets = samples()
    rows = target_rows(targets, CLASSES)
    classifier = classifier_of(ShareOfScale(0.2))
    assert not classifier.head().any()
    learn(classifier, features, targets)
    scale = float(features.double().square().sum()) / WIDTH
    np.testing.assert_allclose(classifier.head(), head_of(features, rows, 0.2 * scale), atol=1e-10)
    larger = learn(classifier_of(ShareOfScale(0.2)), features * 50, targets)
    torch.testing.assert_close(larger.scores(features * 50), classifier.scores(features), rtol=0, atol=1e-6)


def test_the_task_grid_looks_at_its_session_and_sums_hold_everything():
    (first, first_targets), (second, second_targets) = samples(noise=0.3), samples(40, seed=5, noise=30.0)
    classifier = classifier_of(TaskGrid(KeptRows(WIDTH, CLASSES), 0.1))
    classifier.rule.begin_session()
    learn(classifier, first, first_targets)
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    classifier.rule.begin_session()
    learn(classifier, second, second_targets)
    rows = target_rows(second_targets, CLASSES)
    inputs = second.double()
    chosen = held_out_ridge(inputs[:32].T @ inputs[:32], inputs[:32].T @ rows[:32], inputs[32:], rows[32:], GRID)
    together = torch.cat([first, second])
    expected = head_of(together, target_rows(torch.cat([first_targets, second_targets]), CLASSES), chosen)
    np.testing.assert_allclose(classifier.head(), expected, atol=1e-9)
    # What was kept has the length it had, in a learner that kept nothing or something else.
    for other in (classifier_of(TaskGrid(KeptRows(WIDTH, CLASSES), 0.1)), classifier):
        other.load_state_dict(state)
        assert len(other.rule.kept) == 80
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
