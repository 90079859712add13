"""The throw-away bottleneck through which MISA's warm-up shows expert prompts to the backbone (ICLR 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """P + W2 relu(LN(W1 P)) for each row; linear maps with bias, norm with eps 1e-5.

    Args:
        width: of a row.
        hidden: of the middle; an eighth of the width as published.
        generator: source of the initial values, uniform in +-1 / sqrt(inputs) as torch's linear layers.
    """

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.utils.skip_init(nn.Linear, width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        self.up = nn.utils.skip_init(nn.Linear, hidden, width)
        with torch.no_grad():
            for layer in (self.down, self.up):
                for tensor in (layer.weight, layer.bias):
                    tensor.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return rows + self.up(torch.relu(self.norm(self.down(rows))))
