"""Backbones of the golden files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models import VisionTransformer

from cl_prompts.backbones import FrozenViT

GOLDEN = Path(__file__).parent.parent / "golden"


def golden_backbone(file: str, prefix: str = "", **sizes) -> FrozenViT:
    with np.load(GOLDEN / file) as stored:
        weights = {
            key.removeprefix(prefix): torch.from_numpy(stored[key]).float()
            for key in stored.files
            if key.startswith(prefix) and stored[key].dtype.kind == "f"
        }
    model = VisionTransformer(num_classes=0, **sizes)
    names = set(model.state_dict())
    model.load_state_dict({key: value for key, value in weights.items() if key in names}, strict=True)
    return FrozenViT(model)


@pytest.fixture(scope="session")
def mvp_backbone() -> FrozenViT:
    return golden_backbone(
        "mvp_official_backbone.npz", img_size=32, patch_size=8, embed_dim=48, depth=6, num_heads=3, mlp_ratio=4
    )


@pytest.fixture(scope="session")
def shared_backbone() -> FrozenViT:
    return golden_backbone(
        "l2p_shared_backbone.npz", "w/", img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=4, mlp_ratio=4
    )
