"""Visual prompt tuning (Jia et al., ECCV 2022): learned tokens beside the patches, once or anew in every block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.backbones.insertions import Insertion, TokenPrompts


def uniform_tokens(backbone: FrozenViT, layers: int, length: int, generator: torch.Generator) -> nn.Parameter:
    """First values of prompts (layers, length, width): uniform in -v..v, v = sqrt(6 / (patch numbers + width)).

    As in the published code; a patch of colour has 3 * side^2 numbers.
    """
    patch = backbone.model.patch_embed.proj.weight[0].numel()
    bound = (6 / (patch + backbone.width)) ** 0.5
    return nn.Parameter(torch.empty(layers, length, backbone.width).uniform_(-bound, bound, generator=generator))


class VisualPrompt(nn.Module):
    """Tokens in the first blocks of a backbone, shared by all images.

    `tokens` is (layers, length, width).

    Args:
        backbone: gives patch and width.
        layers: how many of its first blocks get tokens.
        length: tokens in each of them.
        keep: they stay in the sequence to the end (shallow), or leave it behind their block (deep).
        generator: source of the initial values.
    """

    def __init__(
        self, backbone: FrozenViT, layers: int, length: int, *, keep: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.keep = keep
        self.tokens = uniform_tokens(backbone, layers, length, generator)

    def insertions(self) -> dict[int, list[Insertion]]:
        """What the backbone inserts for images of any number."""
        return self._by_layer(self.tokens[:, None])

    def dropped(self, batch: int, rate: float, generator: torch.Generator) -> dict[int, list[Insertion]]:
        """The same with drop-out, drawn for each of `batch` images: numbers are 0 at `rate`, the rest enlarged.

        The draws come from `generator`, on the CPU.
        """
        if rate == 0:
            return self.insertions()
        layers, length, width = self.tokens.shape
        kept = torch.rand(layers, batch, length, width, generator=generator) >= rate
        return self._by_layer(self.tokens[:, None] * kept.to(self.tokens.device) / (1 - rate))

    def _by_layer(self, tokens: Tensor) -> dict[int, list[Insertion]]:
        return {layer: [TokenPrompts(rows, keep=self.keep)] for layer, rows in enumerate(tokens)}
