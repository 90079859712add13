"""Which timm models can be a backbone: those whose every operation is known."""

from __future__ import annotations

from typing import cast

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from cl_prompts.errors import BackboneError

SUPPORTED = (
    "timm VisionTransformer and VisionTransformerDistilled made of stock Block and Attention: "
    "vit_*, deit_*, deit3_*, vit_*_dinov2, vit_*_clip_*, vit_*_siglip_* and vit_*_reg*"
)


def supported_model(model: nn.Module) -> VisionTransformer:
    """The model itself if everything in it is known to work, by exact class: a subclass may compute anything.

    Raises:
        BackboneError: another class of model, block or attention, or a model without pooling.
    """
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        raise BackboneError(f"{type(model).__name__} is not supported as a backbone; what works: {SUPPORTED}")
    for index, block in enumerate(cast("nn.Sequential", model.blocks)):
        reason = _unsupported(block)
        if reason:
            raise BackboneError(
                f"block {index} of the backbone {reason}, which is not supported; what works: {SUPPORTED}"
            )
    if not model.global_pool:
        raise BackboneError("the backbone has no pooling (global_pool=''); build it with global_pool='token' or 'avg'")
    return cast("VisionTransformer", model)


def _unsupported(block: nn.Module) -> str | None:
    if type(block) is not Block:
        return f"is a {type(block).__name__}"
    if type(block.attn) is not Attention:
        return f"has the attention {type(block.attn).__name__}"
    if getattr(block.attn, "gate", None) is not None:
        return "has gated attention"
    if type(block.attn.qkv) is not nn.Linear:
        return f"projects with {type(block.attn.qkv).__name__}"
    return None
