"""L2P: what each variant trains and chooses, against slow loops; what its settings exclude."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from toys import CLASSES, SETTINGS, Pictures, labels, learned, make_strategy, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.prompts.selection import batch_vote, key_similarity
from cl_prompts.strategies import L2PSettings, TrainingBatch
from cl_prompts.strategies.l2p import L2PMethod

ALL = torch.ones(CLASSES, dtype=torch.bool)


def build(backbone, **changes) -> L2PMethod:
    return L2PMethod(backbone, CLASSES, L2PSettings(**SETTINGS["l2p"] | changes), torch.Generator().manual_seed(0))


def batch_of(count: int = 6, copies: int = 1) -> TrainingBatch:
    targets = labels(count, range(CLASSES), 3)
    images = Pictures(targets).tensors()
    return TrainingBatch(images.repeat(copies, 1, 1, 1), torch.tensor(targets * copies), ALL)


def slow_pull(query, keys, size, vote=False):
    """Minus the mean over images of the summed cosines of the nearest keys, in loops of float64."""
    cosines = [
        [
            sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(sum(a * a for a in q) * sum(b * b for b in k))
            for k in keys.double().tolist()
        ]
        for q in query.double().tolist()
    ]
    picks = [sorted(range(len(row)), key=lambda key, row=row: -row[key])[:size] for row in cosines]
    if vote:
        ballots = [pick for row in picks for pick in row]
        elected = sorted(set(ballots), key=lambda key: -ballots.count(key))[:size]
        counts = sorted((ballots.count(key) for key in set(ballots)), reverse=True)
        assert len(counts) == size or counts[size - 1] > counts[size], "a tie says nothing"
        picks = [elected] * len(picks)
    return -sum(sum(row[key] for key in chosen) for row, chosen in zip(cosines, picks, strict=True)) / len(
        cosines
    ), picks


@pytest.mark.parametrize("variant, weight, vote", [("paper", 0.5, False), ("released", 0.1, True)])
def test_the_key_loss_equals_slow_loops_and_reaches_chosen_keys_alone(variant, weight, vote, short_backbone):
    method = build(short_backbone, variant=variant, pool_size=7, selection_size=2, init="uniform")
    batch = batch_of(7)
    with torch.no_grad():
        # Near the common part of all queries, so that votes are clear.
        method.keys[:2] += 0.8 * method.query(batch.images).mean(0)
    outputs = method.training_outputs(batch)
    expected, picks = slow_pull(method.query(batch.images), method.keys.detach(), 2, vote)
    assert outputs.losses["prompt"].item() == pytest.approx(weight * expected, rel=1e-5)
    outputs.losses["prompt"].backward()
    chosen = sorted({key for row in picks for key in row})
    assert len(chosen) < 7
    assert method.keys.grad.abs().sum(1).nonzero().flatten().tolist() == chosen
    assert method.usage_counts.tolist() == [sum(row.count(key) for row in picks) for key in range(7)]
    assert method.prompts.grad is None


def test_keys_of_the_si_blurry_code_never_learn(short_backbone):
    strategy = make_strategy("l2p", short_backbone, settings={"variant": "siblurry"})
    before = learned(strategy)
    train(strategy, stream_of([labels(24, range(CLASSES))]))
    after = learned(strategy)
    assert torch.equal(before["keys"], after["keys"])
    assert not torch.equal(before["prompts"], after["prompts"])
    assert "keys" not in dict(strategy.model.named_trainables())
    assert "prompt" not in strategy.last_losses
    assert "keys stay random" in strategy.model.settings.deviations()[0]


@pytest.mark.parametrize("variant", ["paper", "released", "siblurry"])
def test_a_batch_twice_has_the_same_loss(variant, short_backbone):
    method = build(short_backbone, variant=variant)
    once, twice = (method.training_outputs(batch_of(copies=copies)).losses for copies in (1, 2))
    for name in once:
        torch.testing.assert_close(once[name], twice[name], rtol=1e-5, atol=1e-6)


def test_a_vote_decides_for_the_whole_batch_in_evaluation_too(short_backbone):
    images = Pictures(labels(12, range(CLASSES))).tensors()
    method = build(short_backbone, variant="released", pool_size=8, selection_size=2).eval()
    similarity = key_similarity(method.query(images), method.keys)
    own = similarity.topk(2).indices
    assert len({tuple(sorted(row)) for row in own.tolist()}) > 1
    assert len({tuple(row) for row in method._choose(similarity).tolist()}) == 1
    with torch.no_grad():
        together, alone = method(images), torch.cat([method(image[None]) for image in images])
    assert not torch.allclose(together, alone, atol=1e-4)
    assert any("depends on the other images" in sentence for sentence in method.settings.deviations())
    assert not L2PSettings(variant="released", choice="image").deviations()
    assert not L2PSettings().deviations()


def test_votes_are_counted():
    choice = torch.tensor([[0, 3], [3, 4], [3, 0], [2, 3]])
    assert batch_vote(choice, 6).tolist() == [[3, 0]] * 4


def test_in_the_si_blurry_code_frequency_would_move_training_alone(short_backbone):
    method = build(short_backbone, variant="siblurry", pool_size=4, selection_size=1)
    batch = batch_of()
    distance = 1 - key_similarity(method.query(batch.images), method.keys)
    seldom = int(distance.mean(0).argmax())
    method.frequency.fill_(50.0)[seldom] = 1.0
    method.training_outputs(batch)
    assert method.usage_counts.nonzero().flatten().tolist() == [seldom]
    assert torch.equal(method._choose(1 - distance)[:, 0], distance.argmin(1))


def test_initial_values(short_backbone):
    uniform, small = (build(short_backbone, init=init) for init in ("uniform", "small"))
    for tensor in (uniform.prompts, uniform.keys):
        assert -1 <= tensor.min() < -0.9
        assert 0.9 < tensor.max() <= 1
    assert small.prompts.min() >= 0
    assert 0.009 < small.prompts.max() <= 0.01


def test_settings_that_exclude_each_other(make_vit, short_backbone):
    for changes, message in [
        ({"selection_size": 11}, "selection_size=11: at most strategy.pool_size=10"),
        ({"choice": "batch"}, "set strategy.variant=released"),
        ({"variant": "siblurry", "choice": "batch"}, "set strategy.variant=released"),
        ({"variant": "siblurry", "key_loss": 0.5}, "never acts"),
    ]:
        with pytest.raises(ValidationError, match=message):
            L2PSettings(**changes)
    assert build(short_backbone, variant="released").effective_settings()["key_loss"] == 0.1
    backbone = make_vit()
    backbone.model.no_embed_class = True
    with pytest.raises(StrategyError, match=r"strategy\.position_code=true"):
        build(backbone)
    build(backbone, position_code=False)
