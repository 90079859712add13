"""Prompt-CAM against loops over classes, the independence of its classes, and its explanations."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from toys import CLASSES, Pictures

from cl_prompts.masks import FINITE_FILL
from cl_prompts.strategies import PromptCAMSettings, TrainingBatch
from cl_prompts.strategies.prompt_cam import PromptCAMMethod

FORMS = list(itertools.product(["deep", "shallow"], ["isolated", "full"]))


def make(backbone, form, attention, double=True, **settings):
    typed = PromptCAMSettings(form=form, attention=attention, **settings)
    made = PromptCAMMethod(copy.deepcopy(backbone), CLASSES, typed, torch.Generator().manual_seed(4))
    with torch.no_grad():
        # Large enough for attention to be far from even.
        made.prompts.mul_(5)
        made.head.weight.mul_(20)
    return made.double() if double else made


def slow_attention(block, rows, query_row, seen, blurred=()):
    """Heads of one row over the rows `seen` of a normed sequence: weights (heads, seen), outputs (heads, d)."""
    attention = block.attn
    width, size = rows.shape[1], attention.head_dim
    weights, outputs = [], []
    for head in range(attention.num_heads):
        part = [
            rows @ attention.qkv.weight[p * width + head * size : p * width + (head + 1) * size].T
            + attention.qkv.bias[p * width + head * size : p * width + (head + 1) * size]
            for p in range(3)
        ]
        scores = part[1][seen] @ part[0][query_row] / size**0.5
        if head in blurred:
            scores = 0 * scores
        weight = torch.exp(scores) / torch.exp(scores).sum()
        weights.append(weight)
        outputs.append(weight @ part[2][seen])
    return torch.stack(weights), outputs


def slow_block(block, rows, sees, blurred=()):
    """All rows through a block; `sees[i]` are the rows that row i attends to."""
    normed = block.norm1(rows)
    after = []
    for index, row in enumerate(rows):
        row = row + block.attn.proj(torch.cat(slow_attention(block, normed, index, sees[index], blurred)[1]))
        after.append(row + block.mlp(block.norm2(row)))
    return torch.stack(after)


def slow_scores(method, image, classes=None, last_only=False):
    """Scores of one image: class by class where isolated, all in one sequence where not."""
    vit, settings = method.backbone.model, method.settings
    classes = range(CLASSES) if classes is None else classes
    tokens = vit._pos_embed(vit.patch_embed(image[None]))[0]
    number, depth = len(tokens), len(vit.blocks)
    groups = [[c] for c in classes] if settings.attention == "isolated" else [list(range(CLASSES))]
    scores = {}
    for group in groups:
        rows, size = tokens, len(group)
        for index, block in enumerate(vit.blocks):
            if settings.form == "deep":
                # An unseen prompt whose output is cut off does nothing: any value will do before the last block.
                own = method.prompts[index if settings.attention == "full" else 0][group]
                rows = torch.cat([rows[:number], own])
            elif index == 0:
                rows = torch.cat([rows, method.prompts[0][group]])
            everything = list(range(number + size))
            isolated = settings.attention == "isolated"
            sees = [everything[:number] if isolated and i < number else everything for i in range(number + size)]
            if index == depth - 1 and last_only:
                return rows, sees
            rows = slow_block(block, rows, sees)
        for place, c in enumerate(group):
            scores[c] = method.head.weight[0] @ vit.norm(rows[number + place])
    return torch.stack([scores[c] for c in classes])


@pytest.mark.parametrize("form, attention", FORMS)
def test_scores_loss_and_gradients_equal_slow_loops(form, attention, short_backbone):
    method = make(short_backbone, form, attention)
    images, targets = Pictures([0, 3]).tensors().double(), torch.tensor([0, 3])
    expected = torch.stack([slow_scores(method, image) for image in images])
    torch.testing.assert_close(method(images), expected, rtol=1e-9, atol=1e-10)
    assert float(expected.detach().std(1).min()) > 0.05

    allowed = torch.tensor([True, False, True, True, False, True])
    loss = -torch.log_softmax(expected[:, allowed], dim=-1)[range(2), [0, 2]].mean()
    outputs = method.training_outputs(TrainingBatch(images, targets, allowed))
    torch.testing.assert_close(outputs.losses["classification"], loss, rtol=1e-9, atol=1e-10)
    trained = [method.prompts, method.head.weight]
    reference = torch.autograd.grad(loss, trained)
    for ours, theirs in zip(torch.autograd.grad(outputs.losses["classification"], trained), reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert all(parameter.grad is None for parameter in method.backbone.parameters())


@pytest.mark.parametrize("form", ["deep", "shallow"])
def test_an_isolated_class_is_independent_of_the_others(form, short_backbone):
    method = make(short_backbone, form, "isolated")
    images = Pictures([0, 1, 2]).tensors().double()
    before = method(images)
    with torch.no_grad():
        method.prompts[0, 3].normal_(generator=torch.Generator().manual_seed(1))
    after = method(images)
    changed = (after - before).abs().amax(0) > 1e-12
    assert changed.tolist() == [False, False, False, True, False, False]
    # Classes that do not compete get neither a number nor a gradient.
    allowed = torch.tensor([True, False, True, False, False, False])
    outputs = method.training_outputs(TrainingBatch(images, torch.tensor([0, 2, 0]), allowed))
    torch.testing.assert_close(outputs.logits[:, [0, 2]], after[:, [0, 2]], rtol=1e-12, atol=1e-12)
    outputs.losses["classification"].backward()
    rows = method.prompts.grad[0].abs().sum(1)
    assert (rows > 0).tolist() == allowed.tolist()


def test_full_attention_is_another_function_in_which_classes_touch_each_other(short_backbone):
    method = make(short_backbone, "deep", "full")
    images = Pictures([0]).tensors().double()
    before = method(images)
    with torch.no_grad():
        method.prompts[0, 3] *= -1
    assert ((method(images) - before).abs() > 1e-9).all()


@pytest.mark.parametrize("attention", ["isolated", "full"])
def test_classes_not_seen_are_left_out_where_that_changes_nothing(attention, short_backbone):
    method = make(short_backbone, "shallow", attention)
    images = Pictures([0, 1]).tensors().double()
    whole = method(images)
    method.observe(torch.tensor([False, True, False, False, True, False]))
    rows = []
    method.backbone.model.norm.register_forward_hook(lambda module, inputs, result: rows.append(inputs[0].shape[1]))
    part = method(images)
    assert rows[0] == (2 if attention == "isolated" else CLASSES)
    torch.testing.assert_close(part[:, [1, 4]], whole[:, [1, 4]], rtol=1e-12, atol=1e-12)
    unseen = part[:, [0, 2, 3, 5]]
    assert (unseen == FINITE_FILL).all() if attention == "isolated" else torch.equal(unseen, whole[:, [0, 2, 3, 5]])


def test_the_sequence_leaves_no_graph(short_backbone):
    method = make(short_backbone, "shallow", "isolated", double=False)
    modes = []
    for block in method.backbone.blocks[:-1]:
        block.attn.proj.register_forward_hook(
            lambda module, inputs, result: modes.append((inputs[0].shape[1], result.requires_grad))
        )
    method.training_outputs(
        TrainingBatch(Pictures([0]).tensors(), torch.tensor([0]), torch.ones(CLASSES, dtype=torch.bool))
    )
    assert sorted(modes) == [(5, False), (5, False), (6, True), (6, True)]


@pytest.mark.parametrize("form, attention", FORMS)
def test_attention_of_a_class_equals_slow_loops(form, attention, short_backbone):
    method = make(short_backbone, form, attention)
    images = Pictures([0, 3]).tensors().double()
    ours = method.attention_of(images, 2)
    assert ours.shape == (2, 3, 5)
    for number, image in enumerate(images):
        rows, sees = slow_scores(method, image, classes=[2], last_only=True)
        own = 5 + (0 if attention == "isolated" else 2)
        block = method.backbone.blocks[-1]
        weights, _ = slow_attention(block, block.norm1(rows), own, sees[own])
        torch.testing.assert_close(ours[number], weights[:, :5], rtol=1e-9, atol=1e-11)
        assert float(weights.detach().std(1).max()) > 0.005


@pytest.mark.parametrize("attention", ["isolated", "full"])
def test_heads_are_ranked_as_by_trying_every_one(attention, short_backbone):
    method = make(short_backbone, "deep", attention)
    method.observe(torch.tensor([True, True, True, False, True, True]))
    images = Pictures([0, 3, 4]).tensors().double()
    expected = []
    for image in images:
        plain = slow_scores(method, image).detach()
        rows, sees = slow_scores(method, image, classes=[2], last_only=True)
        own = 5 + (0 if attention == "isolated" else 2)
        blurred = []
        for _ in range(3):
            left = {}
            for head in set(range(3)) - set(blurred):
                after = slow_block(method.backbone.blocks[-1], rows, sees, (*blurred, head))[own]
                scores = plain.clone()
                scores[2] = method.head.weight[0] @ method.backbone.model.norm(after)
                left[head] = float(torch.softmax(scores[[0, 1, 2, 4, 5]], 0)[2].detach())
            blurred.append(max(left, key=left.get))
        expected.append(blurred)
    assert method.head_ranking(images, 2).tolist() == expected
    assert len({tuple(order) for order in expected}) > 1


def test_declarations():
    isolated, full = PromptCAMSettings(form="shallow"), PromptCAMSettings(attention="full")
    assert len(isolated.deviations()) == 1
    assert len(PromptCAMSettings().deviations()) == 2
    assert "later" in full.deviations()[0]
    assert full.declared_needs().classes_in_advance
    assert not isolated.declared_needs().classes_in_advance
