"""Classifier heads on frozen or prompted features: linear, cosine, and one whose finished rows nothing can move."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineHead(nn.Module):
    """Logits = cosine(feature, class weight) / temperature, without bias.

    Args:
        width: of the features.
        num_classes: columns.
        temperature: divisor of the cosine.
        generator: source of the initial weights.
    """

    def __init__(self, width: int, num_classes: int, temperature: float, generator: torch.Generator) -> None:
        super().__init__()
        self.temperature = temperature
        # The initial norm sets the effective step: the gradient is orthogonal to a weight and scales with 1 / norm.
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-bound, bound, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, width) -> (batch, classes)."""
        directions = nn.functional.normalize(self.weight, dim=-1)
        return nn.functional.normalize(features, dim=-1) @ directions.T / self.temperature


def linear_head(width: int, num_classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer initialised like timm's ViT heads: truncated normal of deviation 0.02, zero bias."""
    head = nn.utils.skip_init(nn.Linear, width, num_classes)
    with torch.no_grad():
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        head.bias.zero_()
    return head


def apply_head(head: nn.Module, features: Tensor) -> Tensor:
    """Logits in the head's own precision: rounding them to bfloat16 would tie classes, and costs nothing to avoid."""
    with torch.autocast(features.device.type, enabled=False):
        return head(features.to(next(head.parameters()).dtype))


def make_head(kind: str, width: int, num_classes: int, temperature: float, generator: torch.Generator) -> nn.Module:
    """The head named in a configuration: `linear` or `cosine`."""
    heads = {
        "linear": lambda: linear_head(width, num_classes, generator),
        "cosine": lambda: CosineHead(width, num_classes, temperature, generator),
    }
    return heads[kind]()


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
