"""The two forms of ridge regression against each other and against one solve on all samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cl_prompts.closed_form.expansion import RandomExpansion
from cl_prompts.closed_form.ridge import GramRidge, RecursiveRidge, check_ridge, solve_ridge, target_rows
from cl_prompts.closed_form.ridge_choice import FixedRidge
from cl_prompts.closed_form.ridge_classifier import RidgeClassifier
from cl_prompts.errors import StrategyError

WIDTH, CLASSES = 12, 5


def samples(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) + 3
    return features, torch.randint(CLASSES - 1, (count,), generator=generator) * 3 % CLASSES


def oracle(features, rows, ridge):
    """Least squares with the ridge as WIDTH more rows, by QR: neither sums nor Cholesky."""
    stacked = np.vstack([features.numpy(), np.sqrt(ridge) * np.eye(WIDTH)])
    return np.linalg.lstsq(stacked, np.vstack([rows.numpy(), np.zeros((WIDTH, CLASSES))]), rcond=None)[0]


FORMS = {
    "gram": lambda ridge: GramRidge(WIDTH, CLASSES),
    "recursive": lambda ridge: RecursiveRidge(WIDTH, CLASSES, ridge),
}


def fitted(form, features, targets, ridge, cuts):
    sums = FORMS[form](ridge)
    rows = target_rows(targets, CLASSES)
    for part in torch.arange(len(targets)).split(cuts):
        sums.add(features[part], rows[part])
    return sums


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ridge", [0.01, 10.0])
@pytest.mark.parametrize("cuts", [1, 17, 60])
def test_the_head_equals_one_solve_on_all_samples(form, ridge, cuts):
    features, targets = samples()
    sums = fitted(form, features, targets, ridge, cuts)
    expected = oracle(features, target_rows(targets, CLASSES), ridge)
    np.testing.assert_allclose(sums.head(ridge).numpy(), expected, atol=1e-10)
    assert float(sums.samples) == 60
    assert sums.mean_square == pytest.approx(float(features.square().sum()) / WIDTH)
    # The class that never came has a column of zeros.
    absent = (set(range(CLASSES)) - set(targets.tolist())).pop()
    assert not sums.head(ridge)[:, absent].any()


@pytest.mark.parametrize("form", FORMS)
def test_a_permuted_stream_gives_the_same_head(form):
    features, targets = samples()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    one = fitted(form, features, targets, 1.0, 8).head(1.0)
    two = fitted(form, features[order], targets[order], 1.0, 5).head(1.0)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_a_duplicated_stream_equals_half_the_ridge(form):
    features, targets = samples()
    twice = fitted(form, features.repeat(2, 1), targets.repeat(2), 1.0, 9).head(1.0)
    torch.testing.assert_close(twice, fitted(form, features, targets, 0.5, 9).head(0.5), rtol=0, atol=1e-10)


def test_the_inverse_stays_symmetric_and_an_inverse():
    features, targets = samples()
    sums = fitted("recursive", features, targets, 0.5, 7)
    assert torch.equal(sums.inverse, sums.inverse.T)
    expected = np.linalg.inv(features.numpy().T @ features.numpy() + 0.5 * np.eye(WIDTH))
    np.testing.assert_allclose(sums.inverse.numpy(), expected, atol=1e-10)


def test_a_recursion_holds_for_its_own_ridge_alone():
    with pytest.raises(StrategyError, match="began with 2 and holds for it alone"):
        RecursiveRidge(WIDTH, CLASSES, 2.0).head(1.0)


def learn_and_predict(classifier, features, targets):
    classifier.learn(features, targets)
    return classifier.scores(features)


@pytest.mark.parametrize("form", FORMS)
def test_a_ridge_too_small_for_the_features_is_refused(form):
    features, targets = samples()
    rule = FixedRidge(1e-3, "strategy.gamma")
    expansion = RandomExpansion(WIDTH, 0, "uniform", torch.Generator())
    classifier = RidgeClassifier(expansion, FORMS[form](1e-3), rule)
    classifier.learn(features, targets)
    assert classifier.head().shape == (WIDTH, CLASSES)
    with pytest.raises(StrategyError, match=r"strategy.gamma=0.001: below 1e-06 .* set at least 5.9"):
        learn_and_predict(classifier, features * 100, targets)
    check_ridge("strategy.gamma", 1.0, 1e6)
    with pytest.raises(StrategyError):
        check_ridge("strategy.gamma", 0.99, 1e6)


def test_what_float64_cannot_solve_is_an_error():
    ones = torch.ones(WIDTH, WIDTH, dtype=torch.float64) * 1e9
    with pytest.raises(StrategyError, match="too small for features"):
        solve_ridge(ones, ones[:, :CLASSES], 1e-12)


# --- targets --------------------------------------------------------------------------------------------------------


def test_targets_become_rows_and_hidden_labels_count_as_absent():
    rows = target_rows(torch.tensor([4, 0]), CLASSES)
    assert rows.tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    several = torch.tensor([[1.0, float("nan"), 0.0, 1.0, float("nan")]])
    assert target_rows(several, CLASSES).tolist() == [[1, 0, 0, 1, 0]]
    with pytest.raises(StrategyError, match="int64 class ids"):
        target_rows(torch.zeros(2, 3, dtype=torch.int64), 3)


# --- expansion and classifier ---------------------------------------------------------------------------------------


def test_the_expansion_is_drawn_once_and_computed_in_double_precision():
    features = samples()[0].float()
    normal = RandomExpansion(WIDTH, 500, "normal", torch.Generator().manual_seed(2))
    expected = (features.double().numpy() @ normal.weight.double().numpy()).clip(min=0)
    np.testing.assert_allclose(normal(features).numpy(), expected, atol=1e-12)
    assert 0.95 < float(normal.weight.std()) < 1.05
    uniform = RandomExpansion(WIDTH, 500, "uniform", torch.Generator().manual_seed(2)).weight
    assert float(uniform.abs().max()) <= WIDTH**-0.5
    assert float(uniform.abs().max()) > 0.98 * WIDTH**-0.5
    # Rows on their own have the very same bits up to double rounding.
    torch.testing.assert_close(normal(features[:1]), normal(features)[:1], rtol=0, atol=1e-13)
    raw = RandomExpansion(WIDTH, 0, "normal", torch.Generator())
    assert torch.equal(raw(-features), -features.double())


def test_scores_are_those_of_the_newest_samples_and_the_state_is_the_sums():
    features, targets = samples()
    expansion = RandomExpansion(WIDTH, 0, "normal", torch.Generator())
    classifier = RidgeClassifier(expansion, GramRidge(WIDTH, CLASSES), FixedRidge(1.0, "gamma"))
    for part in torch.arange(60).split(20):
        classifier.learn(features[part], targets[part])
        seen = slice(0, int(part[-1]) + 1)
        expected = features[seen].numpy() @ oracle(features[seen], target_rows(targets[seen], CLASSES), 1.0) - 0.5
        before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
        np.testing.assert_allclose(classifier.scores(features[seen]).numpy(), expected, atol=1e-10)
        assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())
    # A saved state brings the scores of its own samples, not those of what was solved before.
    other = RidgeClassifier(expansion, GramRidge(WIDTH, CLASSES), FixedRidge(1.0, "gamma"))
    other.scores(features)
    other.load_state_dict(classifier.state_dict())
    assert torch.equal(other.scores(features), classifier.scores(features))


def test_the_running_head_follows_the_number_of_samples_alone():
    features, targets = samples(400)
    asked, unasked = (
        RidgeClassifier(
            RandomExpansion(WIDTH, 0, "normal", torch.Generator()), GramRidge(WIDTH, CLASSES), FixedRidge(1.0, "gamma")
        )
        for _ in range(2)
    )
    stale = []
    for part in torch.arange(400).split(10):
        for classifier in (asked, unasked):
            classifier.learn(features[part], targets[part])
        asked.scores(features)
        assert torch.equal(asked.running_scores(features), unasked.running_scores(features))
        # The weights are kept in single precision.
        fresh = torch.allclose(asked.running_scores(features), asked.scores(features), atol=1e-4)
        stale.append(not fresh)
    assert not any(stale[:9])
    assert any(stale[15:])
    assert not all(stale[30:])
