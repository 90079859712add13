"""EWC: weights that mattered are pulled back to where they were (Kirkpatrick et al., PNAS 2017; arXiv 1612.00796).

    loss = CE + strength * sum_i F_i (theta_i - theta*_i)^2 over everything that is trained, the head included.

`variant=task_free`, the default, needs no boundaries, after EWC++ (Chaudhry et al., ECCV 2018): F is a running average
of squared gradients of the classification loss of each update, theta* one of the weights. `variant=paper` computes F at
the end of each session as the mean over its images of the squared gradient of each one's log-likelihood. One penalty
for each session would cost memory that grows; their sum is, up to a constant, one penalty with the sum of all F around
the mean of all theta* weighted by F, and that is kept. Squared gradients of a batch are smaller than means over single
samples by up to the batch size: the two variants need strengths of their own, and the defaults are not tuned.

`variant=siblurry` is refused. The code behind the published rows (49.5 / 52.8 on CIFAR-100) leaves the head out of the
penalty and freezes all else, so that nothing is protected, and takes two optimizer steps in one update: what it
computes is `strategy=linear_probe` with twice `protocol.updates_per_batch`.

Avalanche's `EWCPlugin` runs on our strategies, but its importances are squared gradients of whole batches over all
columns of the head, it keeps a copy of the frozen backbone for every session, starts anew after a resume, and never
acts on a stream without sessions: this file is used instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from cl_prompts.backbones import FrozenViT
from cl_prompts.labels import label_kind
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, NetworkSettings, model_validator
from cl_prompts.strategies.method import SessionImages, TrainingBatch, TrainingOutputs
from cl_prompts.strategies.network import NetworkMethod

STRENGTHS = {"task_free": 100.0, "paper": 10.0}
"""Variant -> default weight of the penalty."""

NUMBERS_AT_ONCE = 2**24
"""Gradients of single samples are taken for so many samples at once that they hold about as many numbers."""


class EWCSettings(NetworkSettings):
    """Settings of elastic weight consolidation."""

    needs: ClassVar[Needs] = Needs(replay="optional", multi_label=True)

    variant: Literal["task_free", "paper", "siblurry"] = Field(
        "task_free", description="running averages; F at the end of each session; siblurry is refused, and says why"
    )
    strength: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of the penalty; null: 100, or 10 with paper"
    )
    importance_decay: float = Field(0.9, gt=0, lt=1, description="variant=task_free: share of F kept in one update")
    anchor_decay: float = Field(0.99, gt=0, lt=1, description="variant=task_free: share of theta* kept in one update")

    def declared_needs(self) -> Needs:
        """Boundaries for the paper's form."""
        boundaries = "required" if self.variant == "paper" else "none"
        return super().declared_needs().model_copy(update={"boundaries": boundaries})

    @model_validator(mode="after")
    def _check_variant(self) -> "EWCSettings":  # noqa: UP037 -- also evaluated without this file's imports
        """Refuse the published code's form: one line `key=value: advice`."""
        if self.variant == "siblurry":
            raise ValueError(
                "variant=siblurry: its penalty leaves out the head and is empty on a frozen backbone, and it takes two "
                "steps in one update; use strategy=linear_probe with twice protocol.updates_per_batch, the same sum"
            )
        return self

    def deviations(self) -> list[str]:
        """Where the penalty is not the paper's."""
        averages = "ewc averages squared gradients of batches, and weights, over the stream; the paper's form needs"
        return [f"{averages} session ends"] if self.variant == "task_free" else []


class EWCMethod(NetworkMethod):
    """The learner: cross-entropy and `penalty`.

    Frozen, in the order of the trained tensors: `importance` (F) and `anchor` (theta*). Buffer: `seen` (classes,) bool.
    """

    settings_class = EWCSettings
    settings: EWCSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: EWCSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.strength = STRENGTHS[settings.variant] if settings.strength is None else settings.strength
        self.averages = settings.variant == "task_free"
        tensors = [tensor.detach() for tensor in self.network.parameters()]
        self.importance = nn.ParameterList([torch.zeros_like(one) for one in tensors]).requires_grad_(False)
        self.anchor = nn.ParameterList([one.clone() for one in tensors]).requires_grad_(False)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self._gradients: dict[int, Tensor] = {}

    def observe(self, exposed: Tensor) -> None:
        """Note the classes among which likelihoods are computed at the end of the session."""
        self.seen.copy_(exposed)

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """Losses of one update: `classification` under the protocol's mask, and the weighted `penalty`."""
        outputs = self.classified(batch, *self.training_pass(batch))
        terms = [(weight * (new - old).square()).sum() for weight, old, new in self._weights()]
        outputs.losses["penalty"] = self.strength * torch.stack(terms).sum()
        return outputs

    def training_pass(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """As in the base; the gradient that comes back through the network is noted where F averages it."""
        if not self.averages:
            return super().training_pass(batch)
        # The network reads views of its weights: what reaches them has no part of the penalty and is not clipped yet.
        network, views = self.network, {}
        for number, (name, tensor) in enumerate(network.named_parameters()):
            views[name] = tensor.view_as(tensor)
            views[name].register_hook(partial(self._note, number))
        return functional_call(network, views, (self.backbone, batch.images, batch.query))

    @torch.no_grad()
    def after_step(self) -> None:
        """The running averages of squared gradients and of weights take up the update."""
        if not self.averages:
            return
        settings = self.settings
        for number, (weight, old, new) in enumerate(self._weights()):
            if number in self._gradients:
                weight.lerp_(self._gradients[number].square().to(weight.dtype), 1 - settings.importance_decay)
            old.lerp_(new, 1 - settings.anchor_decay)
        self._gradients.clear()

    def end_session(self, images: SessionImages) -> None:
        """Add the session's F, and move theta* to the mean of all sessions weighted by F."""
        session = self._importance_of(images)
        with torch.no_grad():
            for (weight, old, new), added in zip(self._weights(), session, strict=True):
                total = weight + added
                old.copy_(torch.where(total > 0, (weight * old + added * new) / total.clamp(min=1e-38), new))
                weight.copy_(total)

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the variant's strength in place of null."""
        return super().effective_settings() | {"strength": self.strength}

    def _weights(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """F, theta* and theta of each trained tensor."""
        return zip(self.importance, self.anchor, self.network.parameters(), strict=True)

    def _note(self, number: int, gradient: Tensor) -> None:
        self._gradients[number] = gradient.detach()

    def _importance_of(self, images: SessionImages) -> list[Tensor]:
        """Mean over the images of the squared gradient of the log-likelihood of each one's labels."""
        network = self.network
        tensors = {name: tensor.detach() for name, tensor in network.named_parameters()}
        at_once = max(1, NUMBERS_AT_ONCE // sum(tensor.numel() for tensor in tensors.values()))

        def loss(weights: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
            _, logits = functional_call(network, weights, (self.backbone, image[None]))
            return label_kind(target[None]).loss(logits, target[None], self.seen)

        gradients_of = vmap(grad(loss), in_dims=(None, 0, 0))
        sums, count = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, 0
        for batch, targets in images():
            for rows, labels in zip(batch.split(at_once), targets.split(at_once), strict=True):
                for name, gradients in gradients_of(tensors, rows, labels).items():
                    sums[name] += gradients.square().sum(0)
            count += len(targets)
        return [total / max(count, 1) for total in sums.values()]


class EWC(ContinualStrategy):
    """Elastic weight consolidation as an Avalanche strategy; `settings` is an `EWCSettings`."""

    method_class = EWCMethod
