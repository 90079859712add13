"""Tiny Vision Transformers of every supported make, with random weights in every tensor."""

from __future__ import annotations

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
MAKES = {
    "plain": {},
    "distilled": {},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "registers_with_positions": {"reg_tokens": 2},
    "no_class_position": {"no_embed_class": True},
    "no_positions": {"pos_embed": "none"},
    "average_pool": {"class_token": False, "global_pool": "avg"},
    "average_pool_beside_class_token": {"global_pool": "avg", "reg_tokens": 1},
    "maximum_pool": {"global_pool": "max", "fc_norm": False},
    "attention_pool": {"class_token": False, "global_pool": "map"},
    "layer_scale": {"init_values": 0.1},
    "query_key_norm": {"qk_norm": True},
    "attention_output_norm": {"scale_attn_norm": True},
    "norm_pre": {"pre_norm": True},
    "no_projection_bias": {"qkv_bias": False},
    "feature_norm": {"fc_norm": True},
    "patch_8": {"patch_size": 8},
    "patch_14": {"patch_size": 14, "img_size": 28},
    "dynamic_size": {"dynamic_img_size": True},
}
if hasattr(timm.layers, "AttentionPoolPrr"):
    MAKES["refining_pool"] = {"global_pool": "prr"}


def make_model(make: str, seed: int = 0) -> VisionTransformer:
    build = VisionTransformerDistilled if make == "distilled" else VisionTransformer
    model = build(**(SIZES | MAKES[make]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1) * 0.5)
    return model.eval()


def make_images(model: VisionTransformer, batch: int = 3, seed: int = 1) -> torch.Tensor:
    side = model.patch_embed.img_size[0]
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))
