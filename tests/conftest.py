"""Fixtures that several rooms of the tests share."""

from __future__ import annotations

import os

import pytest
import torch
from timm.models import VisionTransformer

from cl_prompts.backbones import FrozenViT

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers on two cores: threads of their own would only wait for one another. Subprocesses read the variable.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def tiny_vit(width: int = 24, depth: int = 6, heads: int = 3, seed: int = 0) -> FrozenViT:
    """A random ViT on 16 x 16 images, wide enough initialised that its features tell images apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisionTransformer(
            img_size=16, patch_size=8, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, class_token=True
        )
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.ndim > 1:
                    tensor.mul_(4)
    return FrozenViT(model)


@pytest.fixture(scope="session")
def tiny_backbone() -> FrozenViT:
    return tiny_vit()


@pytest.fixture(scope="session")
def short_backbone() -> FrozenViT:
    """Three blocks, for many runs: a run takes little more than half of what six blocks take."""
    return tiny_vit(depth=3)


@pytest.fixture
def make_vit():
    return tiny_vit
