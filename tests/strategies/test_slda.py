"""SLDA as a strategy: its variants, what it refuses, and that the order of the stream changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import CLASSES, Pictures, labels, make_strategy, stream_of, train

from cl_prompts.strategies import SLDASettings, TrainingBatch
from cl_prompts.strategies.slda import SLDAMethod

TARGETS = torch.tensor(labels(40, [5, 0, 3, 1]))


def fitted(backbone, features, order, cut, **settings):
    method = SLDAMethod(backbone, CLASSES, SLDASettings(**settings), torch.Generator())
    for part in torch.as_tensor(order).split(cut):
        method.fit(TrainingBatch(torch.empty(0), TARGETS[part], torch.empty(0), query=features[part]))
    return method


@pytest.fixture(scope="module")
def features(short_backbone):
    return short_backbone.query(Pictures(TARGETS.tolist()).tensors())


def test_a_permuted_stream_gives_the_same_scores(short_backbone, features):
    one = fitted(short_backbone, features, range(40), 40)
    two = fitted(short_backbone, features, np.random.default_rng(0).permutation(40), 3)
    torch.testing.assert_close(one.statistics.scatter, two.statistics.scatter, rtol=0, atol=1e-8)
    torch.testing.assert_close(one._solved().weight, two._solved().weight, rtol=1e-8, atol=1e-8)
    assert one.settings.declared_needs().order_invariant
    released = [
        fitted(short_backbone, features, order, 8, variant="released") for order in (range(40), range(39, -1, -1))
    ]
    assert not torch.allclose(released[0].statistics.scatter, released[1].statistics.scatter, rtol=1e-3)
    assert not released[0].settings.declared_needs().order_invariant


def test_classes_without_a_sample_are_never_predicted(short_backbone, features):
    method = fitted(short_backbone, features, range(40), 8)
    absent = torch.tensor([2, 4])
    # Features whose scores are all below zero, the score of a mean that was never set.
    far = -features * 5
    weight, bias = method._solved()
    raw = far.double() @ weight + bias
    assert (raw[:, absent] == 0).all()
    assert (raw.argmax(1)[:, None] == absent).any()
    assert not (method(None, far).argmax(1)[:, None] == absent).any()


def test_the_base_phase_ends_inside_a_batch(short_backbone, features):
    """Its first samples alone decide about the shrunk covariance, wherever batches end."""
    whole = fitted(short_backbone, features, range(40), 10, base_samples=20)
    cut = fitted(short_backbone, features, range(40), 7, base_samples=20)
    torch.testing.assert_close(whole.statistics.scatter, cut.statistics.scatter, rtol=1e-10, atol=1e-10)
    none = fitted(short_backbone, features, range(40), 10)
    assert not torch.allclose(whole.statistics.scatter, none.statistics.scatter, rtol=1e-3)
    assert not whole.settings.declared_needs().order_invariant
    fixed = fitted(short_backbone, features, range(40), 7, base_samples=20, plastic_covariance=False)
    base = fitted(short_backbone, features, range(20), 20, base_samples=20)
    torch.testing.assert_close(fixed.statistics.covariance(), base.statistics.covariance(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fixed.statistics.means, none.statistics.means, rtol=1e-10, atol=1e-10)


def test_a_covariance_that_is_never_filled_is_refused():
    with pytest.raises(ValueError, match=r"plastic_covariance=false: .* set strategy.base_samples"):
        SLDASettings(plastic_covariance=False)


def test_it_learns_a_stream_whose_classes_come_in_the_middle_of_a_batch(short_backbone):
    sessions = [labels(20, [5, 2], 1), [2, 2, 5, 5, 1, 1, 0, 0] * 2]
    strategy = train(make_strategy("slda", short_backbone), stream_of(sessions))
    images = Pictures([5, 2, 1, 0] * 3, seed=3)
    assert (strategy.model.eval()(images.tensors()).argmax(1).numpy() == images.targets).mean() > 0.7
