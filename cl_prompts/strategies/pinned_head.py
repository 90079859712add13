"""`PinnedHead`: a linear head whose rows can be pinned, so that no optimizer moves what a finished row computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_prompts.strategies.method import linear_head


class PinnedHead(nn.Module):
    """One row a class; a pinned row is read from a copy, whatever happens to the trained one.

    A gradient of zero alone does not hold a row: weight decay and carried moments move it.

    Args:
        width: of the features.
        num_classes: rows.
        generator: source of the initial weights, as `linear_head`.

    Attributes:
        pinned: bool `(classes,)`; at first all rows are.
    """

    def __init__(self, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        head = linear_head(width, num_classes, generator)
        self.weight, self.bias = head.weight, head.bias
        self.pinned: Tensor
        self.pinned_weight: Tensor
        self.pinned_bias: Tensor
        self.register_buffer("pinned", torch.ones(num_classes, dtype=torch.bool))
        self.register_buffer("pinned_weight", head.weight.detach().clone())
        self.register_buffer("pinned_bias", head.bias.detach().clone())

    @torch.no_grad()
    def train_only(self, rows: Tensor) -> None:
        """Pin every row as it is but `rows`, bool `(classes,)`, which continue from where they were pinned."""
        frozen = self.pinned
        self.weight[frozen], self.bias[frozen] = self.pinned_weight[frozen], self.pinned_bias[frozen]
        fresh = ~rows & ~frozen
        self.pinned_weight[fresh], self.pinned_bias[fresh] = self.weight[fresh], self.bias[fresh]
        self.pinned.copy_(~rows)

    def rows(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Weight `(rows, width)` and bias `(rows,)` of `classes`, int64; gradients reach the rows not pinned."""
        pinned = self.pinned[classes]
        weight = torch.where(pinned[:, None], self.pinned_weight[classes], self.weight[classes])
        return weight, torch.where(pinned, self.pinned_bias[classes], self.bias[classes])

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """Logits of `classes` in the head's own precision: `(..., width)` -> `(..., rows)`."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.to(self.weight.dtype), *self.rows(classes))
