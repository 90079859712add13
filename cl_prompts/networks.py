"""Networks of methods that are a loss: a body, which one setting names, and a head.

A body holds what is trained of it and nothing of the frozen backbone, which it is handed in every call: so that a
saved state, a copy for a teacher or a penalty on weights concerns the trained part alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head
from cl_prompts.prompts.layout import merge, projected_prefixes_by_layer


class Body(nn.Module):
    """Base: images to features, `(batch, 3, height, width)` to `(batch, width)`."""

    reads_query = False
    """The features are the query of the frozen backbone: with a known one the images are not looked at."""

    def forward(self, backbone: FrozenViT, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Features of `images`; `query` may carry the result of `backbone.query(images)`."""
        raise NotImplementedError


class FrozenFeatures(Body):
    """Nothing is trained: the features of the frozen backbone."""

    reads_query = True

    def forward(self, backbone: FrozenViT, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Features without a graph behind them."""
        return backbone.query(images) if query is None else query


class SharedPrefixes(Body):
    """One prefix in each of the first blocks, the same for all images, behind the projection and without position code.

    `prompt` is (layers * 2 * length, width), keys before values in each block, uniform in [-1, 1) at first.

    Raises:
        StrategyError: more prompted blocks than the backbone has.
    """

    def __init__(self, backbone: FrozenViT, layers: int, length: int, generator: torch.Generator) -> None:
        super().__init__()
        if layers > backbone.depth:
            raise StrategyError(f"strategy.prompt_layers={layers}: the backbone has {backbone.depth} blocks")
        self.layers, self.length = layers, length
        rows = layers * 2 * length
        self.prompt = nn.Parameter(torch.empty(rows, backbone.width).uniform_(-1, 1, generator=generator))

    def forward(self, backbone: FrozenViT, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Features of the prompted backbone."""
        return backbone(images, merge(projected_prefixes_by_layer(self.prompt[None], range(self.layers), self.length)))


class TrainableCopy(Body):
    """A copy of the whole backbone, every weight trained; the frozen one stays what it is.

    Always in evaluation mode: drop-out would draw from the global generator. At first its features are those of the
    frozen backbone.
    """

    def __init__(self, backbone: FrozenViT) -> None:
        super().__init__()
        self.model = copy.deepcopy(backbone.model)
        # A classifier that came with the weights is read by nobody and would be trained by nothing.
        self.model.reset_classifier(0)
        self.model.requires_grad_(True)
        self.train(False)

    def train(self, mode: bool = True) -> TrainableCopy:
        """Stay in evaluation mode, whatever the parent module is switched to."""
        super().train(False)
        return self

    def forward(self, backbone: FrozenViT, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Features of the copy."""
        assert images is not None
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


BODIES: dict[str, Callable[[FrozenViT, int, int, torch.Generator], Body]] = {
    "head": lambda backbone, layers, length, generator: FrozenFeatures(),
    "prompts": SharedPrefixes,
    "all": lambda backbone, layers, length, generator: TrainableCopy(backbone),
}
"""What is trained beside the head -> (backbone, prompted blocks, prefix length, generator) -> body."""


class Network(nn.Module):
    """A body and a head as one module: what a teacher is a copy of, and what weights can be put into for a call."""

    def __init__(self, body: Body, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, backbone: FrozenViT, images: Tensor | None, query: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (batch, width) and unmasked logits (batch, classes)."""
        features = self.body(backbone, images, query)
        return features, apply_head(self.head, features)
