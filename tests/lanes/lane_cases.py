"""Random backbones, images and lanes for the tests of both forms."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from cl_prompts.backbones import FrozenViT
from cl_prompts.lanes import LaneInputs

ABLATIONS = {
    "default": {},
    "reset": {"drop_and_replace": "reset"},
    "off": {"drop_and_replace": "off"},
    "blind": {"num_selectors": 0},
    "blind_off": {"num_selectors": 0, "drop_and_replace": "off"},
    "merged_to_7": {"num_selectors": 0, "merged_tokens": 7},
    "merged_to_2": {"num_selectors": 0, "merged_tokens": 2},
    "merged_with_dead_selectors": {"num_selectors": 2, "merged_tokens": 5},
    "nothing_to_merge": {"num_selectors": 0, "merged_tokens": 99},
}
MAKES = {
    "plain": {},
    "layer_scale": {"init_values": 0.1},
    "no_projection_bias": {"qkv_bias": False},
    "attention_output_norm": {"scale_attn_norm": True},
    "registers": {"reg_tokens": 2},
    "norm_pre": {"pre_norm": True},
    "no_class_position": {"no_embed_class": True},
    "average_pool": {"global_pool": "avg"},
}


def make_backbone(make="plain", *, heads=3, head_width=8, depth=3, dtype=torch.float64, seed=0, **keywords):
    """A `FrozenViT` on 16 x 16 images, random in every tensor, with scores far enough apart that attention chooses."""
    model = VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=heads * head_width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        **(MAKES[make] | keywords),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            scale = 0.3 if tensor.ndim < 2 else 1.5 * tensor[0].numel() ** -0.5
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator) + (tensor.ndim == 1) * 0.5)
    return FrozenViT(model.to(dtype))


def make_images(batch=2, dtype=torch.float64, seed=1):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_inputs(
    backbone,
    *,
    lanes=2,
    num_selectors=3,
    num_prompts=2,
    prompt_layers=2,
    drop_and_replace="released",
    merged_tokens=0,
    seed=2,
):
    """Random lanes that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    attention, dtype = backbone.blocks[0].attn, backbone.model.cls_token.dtype

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return LaneInputs(
        class_token=backbone.model.cls_token[0, 0],
        selectors=draw(lanes, num_selectors, backbone.width),
        prompts={
            block: draw(lanes, 2, num_prompts, attention.num_heads, attention.head_dim)
            for block in range(prompt_layers)
        },
        drop_and_replace=drop_and_replace,
        merged_tokens=merged_tokens,
    )


def of_lanes(inputs, lanes):
    """The lanes of these numbers alone."""
    return replace(
        inputs,
        selectors=inputs.selectors[lanes],
        prompts={block: prompts[lanes] for block, prompts in inputs.prompts.items()},
    )


def gradients(class_tokens, inputs):
    """Of a fixed random weighting of all numbers, by name; zero where nothing depends on the tensor."""
    trained = {"selectors": inputs.selectors} | {f"prompts {block}": tensor for block, tensor in inputs.prompts.items()}
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(class_tokens.shape, generator=generator, dtype=torch.float64).to(class_tokens.dtype)
    if not class_tokens.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
    found = torch.autograd.grad((class_tokens * weights).sum(), list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(trained.items(), found, strict=True)
    }


def same(found, expected, tolerance):
    """Equal up to `tolerance` of the largest number, or absolutely where all are below 1."""
    assert found.shape == expected.shape
    largest = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * largest)


@st.composite
def cases(draw):
    """A backbone, images and lanes of any small size, and the ablation they are for."""
    depth = draw(st.integers(1, 4), label="depth")
    backbone = make_backbone(
        draw(st.sampled_from(sorted(MAKES)), label="make"),
        heads=draw(st.integers(1, 3), label="heads"),
        head_width=draw(st.sampled_from([2, 4, 8]), label="head width"),
        depth=depth,
        seed=draw(st.integers(0, 99), label="weights"),
    )
    sizes = {
        "lanes": draw(st.integers(1, 4), label="lanes"),
        "num_selectors": draw(st.integers(1, 5), label="selectors"),
        "num_prompts": draw(st.integers(0, 3), label="prompts"),
        "prompt_layers": draw(st.integers(0, depth), label="prompted blocks"),
    }
    ablation = draw(st.sampled_from(sorted(ABLATIONS)), label="ablation")
    images = make_images(draw(st.integers(1, 2), label="images"))
    return backbone, images, make_inputs(backbone, **(sizes | ABLATIONS[ablation]))
