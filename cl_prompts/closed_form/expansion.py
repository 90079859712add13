"""Fixed random layers that widen features before a ridge regression: `relu(f W)`, or the features as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITIAL_VALUES = {
    "normal": lambda shape, generator: torch.randn(shape, generator=generator),
    "uniform": lambda shape, generator: torch.empty(shape).uniform_(
        -(shape[0] ** -0.5), shape[0] ** -0.5, generator=generator
    ),
}
"""Name -> weights float32 `(width, expanded)`: N(0, 1) as in RanPAC; torch's linear layer as in GACL."""


class RandomExpansion(nn.Module):
    """`relu(f W)` with fixed random `W`, the buffer `weight` float32 `(width, expanded)`.

    Computed in float64: in float32 the result would depend on which images share a batch.

    Args:
        width: of the features.
        expanded: columns of `W`; 0: no layer and no ReLU, the features themselves.
        initial: key of `INITIAL_VALUES`.
        generator: source of the weights.
    """

    def __init__(self, width: int, expanded: int, initial: str, generator: torch.Generator) -> None:
        super().__init__()
        self.out_width = expanded or width
        self.weight: Tensor | None
        self.register_buffer("weight", INITIAL_VALUES[initial]((width, expanded), generator) if expanded else None)

    def forward(self, features: Tensor) -> Tensor:
        """`(batch, width)` of any precision -> float64 `(batch, out_width)`."""
        if self.weight is None:
            return features.double()
        return (features.double() @ self.weight.double()).relu_()
