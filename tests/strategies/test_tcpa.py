"""TCPA against loops over tokens, and what its pools are for."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from timm.models import VisionTransformer
from toys import CLASSES, Pictures, labels, learned, make_strategy, stream_of, train

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.strategies import TCPASettings, TrainingBatch
from cl_prompts.strategies.tcpa import TCPAMethod

SMALL = {"class_pool_size": 4, "patch_pool_size": 3, "class_length": 1, "patch_length": 2, "class_selection": 2}
SMALL |= {"patch_selection": 1}


def make(backbone, double=True, **settings):
    typed = TCPASettings(**SMALL | settings)
    method = TCPAMethod(copy.deepcopy(backbone), CLASSES, typed, torch.Generator().manual_seed(2))
    return method.double() if double else method


def cosine(left, right):
    return (left * right).sum() / ((left * left).sum().sqrt() * (right * right).sum().sqrt())


def slow_sample(method, image):
    """Feature of one image, and of every block the mean distances of class token and patches, token by token."""
    vit, settings = method.backbone.model, method.settings
    rows = vit._pos_embed(vit.patch_embed(image[None]))[0]
    distances, width = [], rows.shape[1]
    for index, block in enumerate(vit.blocks):
        if index >= len(method.class_pool.keys):
            rows = block(rows[None])[0]
            continue
        pools = [method.class_pool, method.patch_pool]
        lists = [[token for prompt in pool.prompts[index] for token in prompt] for pool in pools]
        normed = block.norm1(torch.stack([*rows, *lists[0], *lists[1]]))
        attention, size = block.attn, block.attn.head_dim
        after, taken = [], ([], [])
        for number, row in enumerate(rows):
            kind = 0 if number == 0 else 1
            pool = pools[kind]
            wanted = (settings.class_selection, settings.patch_selection)[kind]
            similar = [cosine(row.detach(), key) for key in pool.keys[index]]
            chosen = sorted(range(len(similar)), key=lambda k: -float(similar[k].detach()))[:wanted]
            taken[kind].append([1 - similar[k] for k in chosen])
            length = pool.prompts.shape[2]
            start = len(rows) + (0 if kind == 0 else len(lists[0]))
            seen = set(range(len(rows)))
            seen |= {start + k * length + step for k in chosen for step in range(length)}
            heads = []
            for head in range(attention.num_heads):
                query, key, value = (
                    normed @ attention.qkv.weight[p * width + head * size : p * width + (head + 1) * size].T
                    + attention.qkv.bias[p * width + head * size : p * width + (head + 1) * size]
                    for p in range(3)
                )
                shares = torch.exp(key @ query[number] / size**0.5)
                visible = torch.tensor([other in seen for other in range(len(normed))])
                total = shares.sum() if settings.masking == "output" else shares[visible].sum()
                heads.append((shares[visible] / total) @ value[visible])
            row = row + attention.proj(torch.cat(heads))
            after.append(row + block.mlp(block.norm2(row)))
        distances.append([torch.stack([torch.stack(one).mean() for one in part]).mean() for part in taken])
        rows = torch.stack(after)
    return vit.norm(rows)[0], distances


@pytest.mark.parametrize("masking, layers", [("output", 3), ("logits", 2)])
def test_a_step_equals_loops_over_tokens(masking, layers, short_backbone):
    method = make(short_backbone, masking=masking, prompt_layers=layers, key_loss=0.5)
    images, targets = Pictures([0, 3]).tensors().double(), torch.tensor([0, 3])
    samples = [slow_sample(method, image) for image in images]
    features = torch.stack([feature for feature, _ in samples])
    logits = features @ method.head.weight.T + method.head.bias
    torch.testing.assert_close(method(images), logits, rtol=1e-10, atol=1e-11)

    allowed = torch.tensor([True, True, False, True, True, True])
    classification = -torch.log_softmax(logits[:, allowed], dim=-1)[range(2), [0, 2]].mean()
    distance = torch.stack([part for _, blocks in samples for block in blocks for part in block]).mean()
    outputs = method.training_outputs(TrainingBatch(images, targets, allowed))
    torch.testing.assert_close(outputs.losses["classification"], classification, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(outputs.losses["prompt"], 0.5 * distance, rtol=1e-10, atol=1e-11)
    trained = [*method.class_pool.parameters(), *method.patch_pool.parameters(), method.head.weight]
    reference = torch.autograd.grad(classification + 0.5 * distance, trained)
    ours = torch.autograd.grad(sum(outputs.losses.values()), trained)
    for found, expected in zip(ours, reference, strict=True):
        assert expected.abs().max() > 1e-5
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    # Two class tokens take two prompts in each block, eight patches take one.
    counts = method.prompt_usage()
    assert (counts[:4].sum(), counts[4:].sum()) == (2 * 2 * layers, 8 * layers)


def test_tokens_take_the_prompt_of_the_key_that_lies_at_them(short_backbone):
    method = make(short_backbone, class_selection=1)
    images = Pictures([0]).tensors().double()
    states = method.backbone.tokens(images)
    with torch.no_grad():
        method.patch_pool.keys[0] = states[0, 1:4]
    picked = method.patch_pool.pick(0, states[:, 1:])
    assert picked.choice[0, :3, 0].tolist() == [0, 1, 2]
    torch.testing.assert_close(picked.distance[0, :3], torch.zeros(3, 1, dtype=torch.float64))
    assert picked.visible[0, 1].tolist() == [False, False, True, True, False, False]
    choices = method.patch_choices(images)
    assert choices.shape == (3, 1, 4, 1)
    assert choices[0, 0, :3, 0].tolist() == [0, 1, 2]


def test_keys_learn_from_their_distance_alone_and_prompts_from_the_classes(short_backbone):
    frozen = train(
        make_strategy("tcpa", short_backbone, settings=SMALL | {"key_loss": 0.0}, optimizer=torch.optim.SGD),
        stream_of([labels(16, range(CLASSES))]),
    )
    fresh = learned(make_strategy("tcpa", short_backbone, settings=SMALL))
    after = learned(frozen)
    for pool in ("class_pool", "patch_pool"):
        assert torch.equal(after[f"{pool}.keys"], fresh[f"{pool}.keys"])
        assert not torch.equal(after[f"{pool}.prompts"], fresh[f"{pool}.prompts"])


def test_no_query_pass_is_made(short_backbone):
    method = make(short_backbone, double=False)
    passes = []
    method.backbone.model.blocks[0].norm1.register_forward_hook(lambda *_: passes.append(1))
    batch = TrainingBatch(Pictures([0]).tensors(), torch.tensor([0]), torch.ones(CLASSES, dtype=torch.bool))
    method.training_outputs(batch)
    # The sequence, and the prompts beside it.
    assert len(passes) == 2
    assert not TCPASettings().declared_needs().query_pass


def test_what_cannot_be_is_one_line(short_backbone):
    with pytest.raises(ValidationError, match=r"patch_selection=11: at most strategy\.patch_pool_size=10"):
        TCPASettings(patch_selection=11)
    with pytest.raises(StrategyError, match="prompt_layers=4: the backbone has 3 blocks"):
        make(short_backbone, prompt_layers=4)
    model = VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=0,
        class_token=False,
        global_pool="avg",
    )
    with pytest.raises(StrategyError, match="class token, which this backbone lacks"):
        make(FrozenViT(model))


def test_declarations(short_backbone):
    assert len(TCPASettings().deviations()) == 1
    assert "before the softmax" in TCPASettings(masking="logits").deviations()[1]
    assert make(short_backbone).effective_settings()["prompt_layers"] == 3
