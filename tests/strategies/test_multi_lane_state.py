"""What MULTI-LANE knows of itself: saved and loaded lanes, stored outputs that notice changes, no future."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from multi_label_toys import blurry, learner, mlcil, train_scenes, unseen_scenes
from toys import normalise, train

from cl_prompts.evaluation import MultiLabelEvaluator


def images(count=6):
    return normalise(torch.from_numpy(unseen_scenes(count).images).permute(0, 3, 1, 2))


def logits(model):
    with torch.no_grad():
        return model.eval()(images())


@pytest.mark.parametrize("head_mode", ["concat", "key"])
def test_loaded_lanes_predict_and_learn_on_like_the_saved_ones(tiny_backbone, head_mode):
    first, second, third = mlcil().train_stream
    saved, loaded = (learner(tiny_backbone, settings={"head_mode": head_mode}) for _ in range(2))
    for experience in (first, second):
        saved.train(experience)
    loaded.model.load_state_dict(saved.model.state_dict())
    assert torch.equal(logits(loaded.model), logits(saved.model))
    assert len(loaded.model.lanes) == 2
    loaded.classes.exposed |= saved.exposed
    for strategy in (saved, loaded):
        strategy.train(third)
    assert len(loaded.model.lanes) == len(saved.model.lanes) == 3
    assert loaded.model.owner.tolist() == saved.model.owner.tolist()


def shift_rows_of_the_head(model):
    state = model.head.state_dict()
    model.head.load_state_dict(
        {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    )


def shift_a_lane_behind_autograds_back(model):
    model.lanes[0].selectors.data.neg_()


@pytest.mark.parametrize("change", [shift_rows_of_the_head, shift_a_lane_behind_autograds_back])
def test_stored_outputs_notice_every_change(tiny_backbone, change):
    benchmark = mlcil()
    strategy = train(learner(tiny_backbone), benchmark)
    test_set = benchmark.test_stream[0].dataset
    evaluate, fresh = (MultiLabelEvaluator(test_set, num_classes=6, transform=normalise) for _ in range(2))
    evaluate(strategy.model, strategy.exposed)
    before = evaluate.latest.logits
    change(strategy.model)
    evaluate(strategy.model, strategy.exposed)
    fresh(strategy.model, strategy.exposed)
    np.testing.assert_allclose(evaluate.latest.logits, fresh.latest.logits, rtol=0, atol=1e-5)
    assert not np.allclose(evaluate.latest.logits, before, rtol=0, atol=1e-3)


def test_a_class_of_a_blurry_stream_has_no_lane_before_it_was_seen(tiny_backbone):
    benchmark = blurry(train_scenes(40), seed=8)
    strategy = learner(tiny_backbone, settings={"lane_policy": "owner"})
    seen = []
    original = strategy.model.training_outputs

    def watched(*arguments, **keywords):
        owned = strategy.model.owner >= 0
        assert not bool((owned & ~strategy.exposed).any())
        assert bool(strategy.model.head.pinned[~strategy.exposed].all())
        seen.append(int(owned.sum()))
        return original(*arguments, **keywords)

    strategy.model.training_outputs = watched
    train(strategy, benchmark)
    assert len(set(seen)) > 2
