"""Fixtures around the tiny Vision Transformers."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_vits import MAKES, make_images, make_model


@pytest.fixture(params=MAKES)
def model(request) -> VisionTransformer:
    return make_model(request.param)


@pytest.fixture
def images(model) -> torch.Tensor:
    return make_images(model)


@pytest.fixture
def build():
    """The two builders above, for tests that choose their own make."""
    return make_model, make_images
