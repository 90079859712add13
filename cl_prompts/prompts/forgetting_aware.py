"""The forgetting-aware step of MISA's warm-up (ICLR 2025): learn from the stream where other data have pushed to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def perturbation(gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """rho * g / (|g| + 1e-12), the norm taken over all gradients together."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    return [rho * gradient / (norm + 1e-12) for gradient in gradients]


def forgetting_aware_step(
    trained: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    other_loss: Callable[[], Tensor],
    stream_loss: Callable[[], Tensor],
    *,
    rho: float,
) -> tuple[Tensor, Tensor]:
    """One update: climb the loss of other data, take the stream's gradient there, go back and step with it.

    Sharpness minimisation whose direction of ascent comes from data outside the stream. Two forward and two backward
    passes.

    Args:
        trained: every tensor that moves; a loss may leave some of them out.
        optimizer: of these tensors.
        other_loss: computes the loss of the other data.
        stream_loss: computes the loss of the stream.
        rho: length of the climb.

    Returns:
        Both losses, detached: of the other data where the step began, of the stream behind the climb.
    """
    other = other_loss()
    found = torch.autograd.grad(other, trained, allow_unused=True)
    gradients = [
        torch.zeros_like(one) if gradient is None else gradient for one, gradient in zip(trained, found, strict=True)
    ]
    before = [one.detach().clone() for one in trained]
    with torch.no_grad():
        for one, step in zip(trained, perturbation(gradients, rho), strict=True):
            one.add_(step)
    optimizer.zero_grad(set_to_none=True)
    stream = stream_loss()
    stream.backward()
    with torch.no_grad():
        # As they were: what was added does not come off without rounding.
        for one, value in zip(trained, before, strict=True):
            one.copy_(value)
    optimizer.step()
    return other.detach(), stream.detach()
