"""Copies of a learner: other libraries deep-copy and pickle models, for teachers and checkpoints."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from multi_label_toys import learner, mlcil, trained_with, unseen_scenes
from toys import normalise


@pytest.fixture(params=["concat", "key"])
def strategy(request, short_backbone):
    return trained_with(short_backbone, mlcil(), settings={"head_mode": request.param})[0]


def logits(model):
    with torch.no_grad():
        return model.eval()(normalise(torch.from_numpy(unseen_scenes(6).images).permute(0, 3, 1, 2)))


def test_a_copy_goes_its_own_way(strategy):
    original, before = strategy.model, logits(strategy.model)
    twin = copy.deepcopy(original)
    assert torch.equal(logits(twin), before)
    twin.begin_session(torch.tensor([0, 1]))
    assert (len(twin.lanes), len(original.lanes)) == (4, 3)
    assert torch.equal(logits(original), before)


def test_a_copy_draws_keys_against_its_own_lanes(short_backbone):
    twin = copy.deepcopy(learner(short_backbone, settings={"head_mode": "key"}).model)
    for _ in range(3):
        twin.lanes.open()
    keys = torch.stack([key.detach() for key in twin.lanes.keys])
    torch.testing.assert_close(keys @ keys.T, torch.eye(4), rtol=0, atol=1e-6)


def test_a_pickled_learner_comes_back(strategy):
    assert torch.equal(logits(pickle.loads(pickle.dumps(strategy.model))), logits(strategy.model))
