"""Comparing ours with what a golden file holds."""

from __future__ import annotations

import numpy as np
import torch


def deviation(ours: torch.Tensor | float, theirs: np.ndarray) -> float:
    """Largest deviation divided by the largest value; absolute where all values are zero."""
    wanted = torch.from_numpy(np.asarray(theirs)).double()
    found = torch.as_tensor(ours).detach().double()
    assert found.shape == wanted.shape
    scale = float(wanted.abs().max())
    return float((found - wanted).abs().max()) / (scale if scale > 0 else 1.0)


def images_of(stored) -> torch.Tensor:
    """The file's images in double precision."""
    return torch.from_numpy(stored["in/x"]).double()


def load(method: torch.nn.Module, stored, **tensors: np.ndarray) -> torch.nn.Module:
    """The method in double precision with the file's head and these tensors."""
    named = {"head.weight": stored["w/head.weight"], "head.bias": stored["w/head.bias"]} | tensors
    method.double()
    own = dict(method.named_parameters()) | dict(method.named_buffers())
    with torch.no_grad():
        for name, value in named.items():
            assert own[name].shape == value.shape
            own[name].copy_(torch.from_numpy(value))
    return method


def columns(classes, count: int = 12) -> torch.Tensor:
    """Bool `(count,)`, true at these classes."""
    return torch.isin(torch.arange(count), torch.as_tensor(np.asarray(classes)))
