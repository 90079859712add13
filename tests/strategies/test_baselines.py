"""NCM, linear probe and SinglePrompt: what a plain computation on frozen features gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import CLASSES, SETTINGS, Pictures, labels, make_strategy, plan_of, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.masks import FINITE_FILL
from cl_prompts.strategies import SinglePromptSettings, TrainingBatch
from cl_prompts.strategies.single_prompt import SinglePromptMethod
from scenarios import benchmark_from_plan

# --- NCM ------------------------------------------------------------------------------------------------------------

TARGETS = labels(40, [5, 0, 3, 1])


def ncm_on(order, backbone, cut=20, **keywords):
    sessions = [list(order[:cut]), list(order[cut:])]
    benchmark = benchmark_from_plan(plan_of(sessions, TARGETS), Pictures(TARGETS), Pictures([0, 1]))
    return train(make_strategy("ncm", backbone, **keywords), benchmark).model


def test_means_equal_those_of_each_class(tiny_backbone):
    model = ncm_on(range(40), tiny_backbone)
    features = tiny_backbone.query(Pictures(TARGETS).tensors()).double()
    for target in range(CLASSES):
        rows = features[torch.tensor(TARGETS) == target]
        assert float(model.counts[target]) == len(rows)
        if len(rows):
            torch.testing.assert_close(model.sums[target] / len(rows), rows.mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_the_order_of_the_stream_changes_nothing(similarity, tiny_backbone, monkeypatch):
    # Features once and in one batch: a ViT's own rounding depends on the batch, the learner's must not.
    table = {image.numpy().tobytes(): row for image, row in features_of(tiny_backbone)}
    monkeypatch.setattr(
        type(tiny_backbone), "query", lambda self, images: torch.stack([table[i.numpy().tobytes()] for i in images])
    )
    images = Pictures(TARGETS).tensors()
    order = np.random.default_rng(3).permutation(40)
    one = ncm_on(range(40), tiny_backbone, settings={"similarity": similarity})
    two = ncm_on(order, tiny_backbone, cut=7, train_mb_size=3, settings={"similarity": similarity})
    torch.testing.assert_close(one.sums, two.sums, rtol=0, atol=1e-8)
    assert torch.equal(one.counts, two.counts)
    torch.testing.assert_close(one(images), two(images), rtol=0, atol=1e-6)


def features_of(backbone):
    images = Pictures(TARGETS).tensors()
    return zip(images, backbone.query(images), strict=True)


def test_a_returning_class_adds_to_its_mean(tiny_backbone):
    strategy = make_strategy("ncm", tiny_backbone)
    train(strategy, stream_of([[1, 1, 0], [2], [1]]))
    assert strategy.model.counts.tolist() == [1.0, 3.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_scores_by_hand_and_a_class_without_sample_never_wins(similarity, tiny_backbone):
    model = make_strategy("ncm", tiny_backbone, num_classes=3, settings={"similarity": similarity}).model
    with torch.no_grad():
        model.sums[0], model.sums[2] = 6.0, -1.0
        model.counts[0], model.counts[2] = 2.0, 1.0
    features = torch.full((1, 24), -2.0)
    scores = model(torch.zeros(1), features)[0].tolist()
    # Relative to the best one, so that the squared distances of wide features stay above the fill.
    expected = {"cosine": [-2.0, FINITE_FILL, 0.0], "euclidean": [-24 * 24.0, FINITE_FILL, 0.0]}
    assert scores == pytest.approx(expected[similarity], rel=1e-5)
    far = model(torch.zeros(1), 1000 * features)[0]
    assert int(far.argmax()) != 1
    # Nearer to the zero vector than to any mean: still not the class without a sample.
    near_zero = torch.full((1, 24), 0.01)
    assert int(model(torch.zeros(1), near_zero).argmax()) != 1


def test_closed_form_learners_have_no_training_losses_and_others_no_fit(tiny_backbone):
    batch = TrainingBatch(Pictures([0]).tensors(), torch.tensor([0]), torch.ones(6).bool())
    with pytest.raises(StrategyError, match="fitted in closed form"):
        make_strategy("ncm", tiny_backbone).model.training_outputs(batch)
    with pytest.raises(StrategyError, match="learns by gradient"):
        make_strategy("linear_probe", tiny_backbone).model.fit(batch)


# --- linear probe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_mask", ["exposed", "batch", "none"])
def test_linear_probe_equals_logistic_steps_on_cached_features(train_mask, tiny_backbone):
    targets = torch.tensor(labels(27, [4, 0, 2]) + labels(10, [3, 4], 1))
    strategy = make_strategy("linear_probe", tiny_backbone, train_mask=train_mask, updates_per_batch=3)
    weight = strategy.model.head.weight.detach().clone().requires_grad_()
    bias = strategy.model.head.bias.detach().clone().requires_grad_()
    train(strategy, stream_of([targets[:27].tolist(), targets[27:].tolist()]))

    features = tiny_backbone.query(Pictures(targets.tolist()).tensors())
    optimizer = torch.optim.Adam([weight, bias], lr=5e-3)
    seen: set[int] = set()
    for session in (torch.arange(27), torch.arange(27, 37)):
        for rows in session.split(8):
            seen |= set(targets[rows].tolist())
            columns = {
                "exposed": sorted(seen),
                "batch": sorted(set(targets[rows].tolist())),
                "none": list(range(CLASSES)),
            }[train_mask]
            for _ in range(3):
                logits = (features[rows] @ weight.T + bias)[:, columns]
                own = torch.tensor([columns.index(target) for target in targets[rows].tolist()])
                optimizer.zero_grad()
                (-torch.log_softmax(logits, -1)[torch.arange(len(rows)), own]).mean().backward()
                optimizer.step()
    torch.testing.assert_close(strategy.model.head.weight, weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(strategy.model.head.bias, bias, rtol=1e-3, atol=1e-5)


def test_cosine_head_by_hand_and_blind_to_scale(tiny_backbone):
    model = make_strategy("linear_probe", tiny_backbone, settings={"head": "cosine", "temperature": 0.2}).model
    features = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    logits = model(torch.zeros(5), features)
    for row in range(5):
        for column in range(CLASSES):
            f, w = features[row], model.head.weight[column]
            assert float(logits[row, column]) == pytest.approx(float(f @ w / f.norm() / w.norm() / 0.2), abs=1e-5)
    torch.testing.assert_close(model(torch.zeros(5), features * 7), logits)
    assert {name for name, _ in model.named_trainables()} == {"head.weight"}


# --- SinglePrompt ---------------------------------------------------------------------------------------------------


def test_single_prompt_has_one_prefix_for_all_images(tiny_backbone):
    method = SinglePromptMethod(
        tiny_backbone, CLASSES, SinglePromptSettings(**SETTINGS["single_prompt"]), torch.Generator().manual_seed(0)
    )
    assert method.prompt.shape == (3 * 2 * 2, 24)
    assert method.prompt.abs().max() <= 1
    assert method.query(Pictures([0]).tensors()) is None
    assert {name for name, _ in method.named_trainables()} == {"prompt", "head.weight"}


def test_position_code_is_added_to_every_row(tiny_backbone):
    def features(position_code, shift):
        settings = SinglePromptSettings(**SETTINGS["single_prompt"], position_code=position_code)
        method = SinglePromptMethod(tiny_backbone, CLASSES, settings, torch.Generator().manual_seed(0))
        with torch.no_grad():
            method.prompt.add_(shift)
        return method._features(Pictures([0, 1]).tensors())

    code = tiny_backbone.position_of_class_token
    torch.testing.assert_close(features(True, 0), features(False, code))
    assert not torch.allclose(features(True, 0), features(False, 0))


def test_the_loss_is_masked_cross_entropy(tiny_backbone):
    model = make_strategy("single_prompt", tiny_backbone, settings={"head": "linear"}).model
    images, targets = Pictures([2, 4]).tensors(), torch.tensor([2, 4])
    allowed = torch.tensor([False, False, True, False, True, True])
    outputs = model.training_outputs(TrainingBatch(images, targets, allowed))
    logits = model.head(model._features(images))[:, allowed]
    torch.testing.assert_close(outputs.losses["classification"], F.cross_entropy(logits, torch.tensor([0, 1])))
    assert outputs.logits.requires_grad


def test_impossible_single_prompts_are_refused(tiny_backbone, make_vit):
    with pytest.raises(StrategyError, match=r"strategy\.prompt_layers=7: the backbone has 6 blocks"):
        make_strategy("single_prompt", tiny_backbone, settings={"prompt_layers": 7})
    backbone = make_vit(depth=3)
    backbone.model.no_embed_class = True
    with pytest.raises(StrategyError, match=r"strategy\.position_code=true: this backbone has no position code"):
        make_strategy("single_prompt", backbone)
    make_strategy("single_prompt", backbone, settings={"position_code": False})
