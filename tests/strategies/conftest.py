"""Backbones of the golden files."""

from __future__ import annotations

from functools import partial
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


@pytest.fixture(scope="session")
def golden_backbones() -> dict[str, FrozenViT]:
    """The backbone above in double precision, by the form of its GELU; for goldens of prompt methods."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4, "mlp_ratio": 4}
    forms = {"exact": torch.nn.GELU, "tanh": partial(torch.nn.GELU, approximate="tanh")}
    file = "l2p_shared_backbone.npz"
    return {name: golden_backbone(file, "w/", act_layer=form, **shape).double() for name, form in forms.items()}
