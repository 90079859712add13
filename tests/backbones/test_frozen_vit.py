"""The wrapper without prompts: bit-identical to timm, frozen for good, and picky about what it wraps."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from cl_prompts.backbones import FrozenViT, TokenPrompts
from cl_prompts.errors import BackboneError


def stock(model, images):
    """The features of timm's own passes, on a copy whose weights still require gradients."""
    model = copy.deepcopy(model).requires_grad_(True)
    return model.forward_head(model.forward_features(images), pre_logits=True).detach()


def test_forward_is_bit_identical_to_timm(model, images):
    expected = stock(model, images)
    frozen = FrozenViT(model)
    for result in (
        frozen(images),
        frozen(images, {}),
        frozen(images, tokens=frozen.tokens(images)),
        frozen(tokens=frozen.tokens(images)),
        frozen(images, {0: []}),
        frozen(images, {1: [TokenPrompts(torch.zeros(1, 0, 24))]}),
        frozen.query(images, trim=False),
    ):
        assert torch.equal(result, expected)
    assert expected.shape == (3, frozen.width) == (3, 24)
    assert frozen.depth == 3
    assert frozen.num_prefix_tokens == model.num_prefix_tokens


def test_forward_is_bit_identical_without_fused_attention(build):
    make_model, make_images = build
    model = make_model("plain")
    for block in model.blocks:
        block.attn.fused_attn = False
    images = make_images(model)
    assert torch.equal(FrozenViT(copy.deepcopy(model))(images), stock(model, images))


def test_stream_gives_every_state_of_timm_lazily_and_leaves_the_grad_mode_alone(model, images):
    reference, seen = copy.deepcopy(model), []
    for block in reference.blocks:
        block.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    reference.forward_features(images)
    expected = [seen[0][0], *(output for _, output in seen)]
    frozen, ran = FrozenViT(model), []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    for index, state in enumerate(frozen.stream(images)):
        assert torch.is_grad_enabled()
        assert ran == [False] * index
        assert torch.equal(state, expected[index])
        assert not state.requires_grad
        assert not state.is_inference()
    assert index == frozen.depth


def test_trimmed_query_equals_the_full_one(model, images):
    frozen = FrozenViT(model.double())
    for blocks in (1, 2, 3, None):
        for norm in (True, False):
            full = frozen.query(images.double(), blocks=blocks, norm=norm, trim=False)
            trimmed = frozen.query(images.double(), blocks=blocks, norm=norm)
            assert trimmed.shape == (3, 24)
            assert not trimmed.requires_grad
            torch.testing.assert_close(trimmed, full, rtol=1e-12, atol=1e-12)


def test_query_without_norm_reads_the_class_row_before_the_final_norm(build):
    make_model, make_images = build
    model = make_model("plain")
    images = make_images(model)
    frozen = FrozenViT(model)
    states = list(frozen.stream(images))
    for blocks in (1, 2, 3):
        assert torch.equal(frozen.query(images, blocks=blocks, norm=False, trim=False), states[blocks][:, 0])
        shared = frozen.query(tokens=frozen.tokens(images), blocks=blocks, norm=False)
        torch.testing.assert_close(shared, states[blocks][:, 0], rtol=1e-5, atol=1e-5)
        normed = frozen.query(images, blocks=blocks, trim=False)
        assert torch.equal(normed, model.norm(states[blocks])[:, 0])


@pytest.mark.parametrize(
    "make, read",
    [
        ("distilled", lambda states: (states[:, 0] + states[:, 1]) / 2),
        ("average_pool_beside_class_token", lambda states: states[:, 2:].mean(1)),
        ("maximum_pool", lambda states: states[:, 1:].amax(1)),
        ("attention_pool", lambda states: states.mean(1)),
    ],
)
def test_query_without_norm_of_other_poolings(build, make, read):
    make_model, make_images = build
    model = make_model(make)
    images = make_images(model)
    frozen = FrozenViT(model)
    states = list(frozen.stream(images))[2]
    torch.testing.assert_close(frozen.query(images, blocks=2, norm=False), read(states), rtol=1e-5, atol=1e-5)


def test_query_meets_trainable_tensors(build):
    make_model, make_images = build
    model = make_model("plain")
    keys = torch.randn(5, 24, requires_grad=True)
    (FrozenViT(model).query(make_images(model)) @ keys.T).sum().backward()
    assert keys.grad is not None


def test_stays_frozen_whatever_the_parent_does(build):
    make_model, make_images = build
    model = make_model("plain")
    model.train().requires_grad_(True)
    images = make_images(model)
    parent = nn.Sequential(FrozenViT(model))
    frozen = parent[0]
    before = frozen(images)
    for switch in (parent.train, frozen.train, lambda: parent.train(True)):
        switch()
        assert not any(module.training for module in frozen.modules())
        assert not any(parameter.requires_grad for parameter in parent.parameters())
    assert torch.equal(frozen(images), before)
    assert frozen.model is model


def test_survives_copying_and_pickling(build):
    make_model, make_images = build
    model = make_model("plain")
    images = make_images(model)
    frozen = FrozenViT(model, identity={"name": "tiny"})
    assert frozen.untrained is False
    assert frozen.notice is None
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert torch.equal(twin(images), frozen(images))
        assert twin.identity == {"name": "tiny"}
        assert not twin.train().training
    assert "tiny" in FrozenViT(model, identity={"name": "tiny"}, untrained=True).notice


def test_position_of_class_token(model):
    frozen = FrozenViT(model)
    position = frozen.position_of_class_token
    if model.has_class_token and not model.no_embed_class and model.pos_embed is not None:
        assert torch.equal(position, model.pos_embed[0, 0])
        assert not position.requires_grad
    else:
        assert position is None


class OtherTransformer(VisionTransformer):
    pass


def _gated():
    model = VisionTransformer(**TINY)
    model.blocks[1].attn.gate = nn.Linear(24, 24)
    return model


class OtherAttention(Attention):
    pass


def _other_attention():
    model = VisionTransformer(**TINY)
    model.blocks[1].attn = OtherAttention(24, num_heads=3)
    return model


def _other_projection():
    model = VisionTransformer(**TINY)
    model.blocks[1].attn.qkv = nn.Sequential(model.blocks[1].attn.qkv)
    return model


TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


@pytest.mark.parametrize(
    "build_model, named",
    [
        (lambda: VisionTransformerRelPos(**TINY), "VisionTransformerRelPos"),
        (lambda: Eva(**TINY), "Eva"),
        (lambda: Beit(**TINY), "Beit"),
        (lambda: VisionTransformer(**TINY, block_fn=ParallelScalingBlock), "ParallelScalingBlock"),
        (lambda: VisionTransformer(**TINY, block_fn=ResPostBlock), "ResPostBlock"),
        (_other_attention, "OtherAttention"),
        (lambda: timm.create_model("resnet10t", num_classes=0), "ResNet"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=0), "SwinTransformer"),
        (lambda: OtherTransformer(**TINY), "OtherTransformer"),
        (_gated, "gated attention"),
        (_other_projection, "Sequential"),
        (lambda: VisionTransformer(**TINY, global_pool=""), "global_pool"),
        (lambda: nn.Linear(2, 2), "Linear"),
    ],
)
def test_unsupported_models_are_refused_with_what_works(build_model, named):
    with pytest.raises(BackboneError) as caught:
        FrozenViT(build_model())
    text = str(caught.value)
    assert named in text
    assert "\n" not in text
    assert "what works: timm VisionTransformer" in text or "build it with" in text


@pytest.mark.parametrize("blocks", [0, 4, -1])
def test_query_refuses_blocks_it_does_not_have(build, blocks):
    make_model, make_images = build
    model = make_model("plain")
    with pytest.raises(BackboneError, match="use 1 to 3"):
        FrozenViT(model).query(make_images(model), blocks=blocks)


def test_needs_images_or_tokens(build):
    make_model, _ = build
    frozen = FrozenViT(make_model("plain"))
    for call in (frozen, frozen.query):
        with pytest.raises(BackboneError, match="neither images nor tokens"):
            call()
