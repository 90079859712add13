"""A linear model, float streams and Avalanche strategies for the tests of plugins."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import AGEM, EWC, GEM, LwF, Naive, Replay, SynapticIntelligence
from torch import Tensor, nn
from toys import CLASSES, SIZE, normalise, stream_of

FOREIGN = {
    "Naive": (Naive, {}),
    "Replay": (Replay, {"mem_size": 12}),
    "EWC": (EWC, {"ewc_lambda": 0.5}),
    "LwF": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "SynapticIntelligence": (SynapticIntelligence, {"si_lambda": 0.5}),
    "AGEM": (AGEM, {"patterns_per_exp": 4, "sample_size": 4}),
    "GEM": (GEM, {"patterns_per_exp": 4}),
}
"""Avalanche's own strategies -> (class, arguments)."""


def as_float(image: Tensor) -> Tensor:
    return normalise(image[None])[0]


def float_stream(sessions, **keywords):
    """A toy benchmark of float images, for strategies that do not transform."""
    return stream_of(sessions, train_transform=as_float, eval_transform=as_float, **keywords)


class LinearModel(nn.Module):
    """Small features, then a head that is not the last module to be registered."""

    def __init__(self, classes: int = CLASSES, width: int = 10) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(width, classes)
        self.project = nn.Conv2d(3, width, SIZE, bias=False)
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.normal_(std=0.05, generator=generator)

    def features(self, images: Tensor) -> Tensor:
        return self.project(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def foreign(name: str, model: nn.Module, plugins: Any = (), **keywords: Any):
    """One of Avalanche's strategies, with plain SGD unless told otherwise."""
    strategy_class, arguments = FOREIGN[name]
    optimizer = keywords.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=keywords.pop("lr", 0.05))
    defaults = {"train_mb_size": 8, "train_epochs": 1, "eval_mb_size": 16, "evaluator": None}
    return strategy_class(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        plugins=list(plugins),
        **arguments | defaults | keywords,
    )


def train_in_order(strategy, benchmark):
    for experience in benchmark.train_stream:
        strategy.train(experience, shuffle=False)
    return strategy


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Losses(SupervisedPlugin):
    """The loss that each backward pass started from."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def after_backward(self, strategy, *args, **kwargs):
        self.values.append(float(strategy.loss.detach()))
