"""Rows that start orthogonal to those before them, and a penalty that keeps them so (CODA-Prompt, CVPR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-8
"""Squared norm below which a row has no direction that one could be orthogonal to."""


@torch.no_grad()
def extend_orthogonally(rows: Tensor, start: int, draws: Tensor) -> Tensor:
    """Put unit rows behind the first `start`, each orthogonal to all before it, by the classical Gram-Schmidt form.

    Every coefficient is that of the drawn vector, not of what remains of it. Earlier rows that are not orthogonal among
    themselves, as after training, therefore leave a part of themselves in the new ones; that is the published form.
    Earlier rows without a direction are passed over, where the published code would draw for ever.

    Args:
        rows: (rows, width); left unchanged.
        start: rows that stay as they are.
        draws: (new rows, width) normal vectors, one for each new row.

    Returns:
        A copy of `rows`, new values from `start` on and zeros behind those; computed in double precision.
    """
    result = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
    result[:start] = rows[:start]
    for place, drawn in enumerate(draws.to(result), start):
        earlier = result[:place]
        squares = earlier.square().sum(1)
        shares = torch.where(squares < SMALLEST, 0.0, earlier @ drawn / squares.clamp(min=SMALLEST))
        remainder = drawn - shares @ earlier
        result[place] = remainder / remainder.norm()
    result = result.to(rows.dtype)
    # Not through another precision: what stays, stays bit for bit.
    result[:start] = rows[:start]
    return result


def orthogonality_penalty(rows: Tensor, live: Tensor) -> Tensor:
    """Mean of (X X^T - I)^2 over the pairs of live rows, summed over all leading axes of `rows`.

    Args:
        rows: (..., rows, width), zeros where not live.
        live: (rows,) bool.

    Returns:
        Scalar, in full precision also under autocast.
    """
    with torch.autocast(rows.device.type, enabled=False):
        products = rows @ rows.mT
        return (products - torch.diag(live.to(rows.dtype))).square().sum() / live.sum().square()
