"""LwF: learning without forgetting, distillation from an earlier copy of the network (Li and Hoiem, arXiv 1606.09282).

    loss = CE(z(x), y) + strength * KD_T(z(x), z_teacher(x)) over the classes that the teacher knew.

`variant=task_free`, the default, needs no boundaries: the teacher is a snapshot every `teacher_every` stream samples,
or a running average of the weights, which knows the classes seen before the current batch. `variant=paper` copies the
network at the end of each session, strength 1. Both multiply by the square of the temperature (2), which keeps the
gradient's size. `variant=siblurry` is what made the published Si-Blurry rows (55.5 / 36.5 on CIFAR-100): a new copy
after every batch, strength 0.2, no square, all columns of the head: it smooths steps rather than keeps memories.

The teacher is a copy of what is trained and nothing else; where that is the head alone it reads the same features.

Avalanche's `LwFPlugin` runs on our strategies, and on sessions of their own classes it is right up to the square,
which it leaves out. We have our own because it copies the frozen backbone too and computes a second pass where a head
alone is trained, starts anew after a resume, knows one label an image, and never acts on a stream without sessions.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.heads import apply_head
from cl_prompts.losses import DISTILLATION
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, NetworkSettings, model_validator
from cl_prompts.strategies.method import SessionImages, TrainingBatch, TrainingOutputs
from cl_prompts.strategies.network import NetworkMethod


class LwFSettings(NetworkSettings):
    """Settings of learning without forgetting."""

    needs: ClassVar[Needs] = Needs(replay="optional", multi_label=True, passes_per_update=2)
    toy_settings: ClassVar[dict[str, Any]] = {"teacher_every": 6}

    variant: Literal["task_free", "paper", "siblurry"] = Field(
        "task_free", description="where the teacher comes from: see teacher; the last session; the last batch"
    )
    strength: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of distillation; null: 1, or 0.2 with siblurry"
    )
    distillation_temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="softens both predictions")
    teacher: Literal["snapshot", "average"] = Field(
        "snapshot", description="variant=task_free: a copy every so often, or a running average of the weights"
    )
    teacher_every: int = Field(500, ge=1, description="teacher=snapshot: stream samples between two copies")
    teacher_decay: float = Field(0.999, gt=0, lt=1, description="teacher=average: share kept in one update")

    def declared_needs(self) -> Needs:
        """Boundaries for the paper's teacher; a second pass unless the head alone is trained."""
        changes = {
            "boundaries": "required" if self.variant == "paper" else "none",
            "passes_per_update": 1 if self.trained == "head" else 2,
        }
        return super().declared_needs().model_copy(update=changes)

    @model_validator(mode="after")
    def _check_combinations(self) -> "LwFSettings":  # noqa: UP037 -- also evaluated without this file's imports
        """Refuse a teacher that the variant does not ask for: one line `key=value: advice`."""
        if self.teacher != "snapshot" and self.variant != "task_free":
            raise ValueError(
                f"teacher={self.teacher}: strategy.variant={self.variant} has a teacher of its own; "
                "set strategy.teacher=snapshot or strategy.variant=task_free"
            )
        return self

    def deviations(self) -> list[str]:
        """Where the teacher is not the paper's."""
        return {
            "task_free": ["lwf learns from a teacher without boundaries; the paper's is the end of the last session"],
            "paper": [],
            "siblurry": ["lwf takes a new teacher after every batch and all columns, as the Si-Blurry code does"],
        }[self.variant]


class Rule(NamedTuple):
    """What a variant decides."""

    strength: float
    squared: bool
    copies: bool
    all_columns: bool


RULES = {
    "task_free": Rule(strength=1.0, squared=True, copies=True, all_columns=False),
    "paper": Rule(strength=1.0, squared=True, copies=False, all_columns=False),
    "siblurry": Rule(strength=0.2, squared=False, copies=True, all_columns=True),
}
"""Variant -> default strength, square of the temperature, copies within sessions, what is compared."""


class LwFMethod(NetworkMethod):
    """The learner: cross-entropy and `distillation`.

    Frozen: `teacher`, a body and a head. Buffers: `known` (classes,) bool, what the teacher is asked about; `seen`
    (classes,) bool, before the current batch; `since` int64, stream samples since the last copy.
    """

    settings_class = LwFSettings
    settings: LwFSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: LwFSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.rule = RULES[settings.variant]
        self.averages = settings.teacher == "average"
        self.every = 1 if settings.variant == "siblurry" else settings.teacher_every
        self.strength = self.rule.strength if settings.strength is None else settings.strength
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        self.known: Tensor
        self.seen: Tensor
        self.since: Tensor
        self.register_buffer("known", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("since", torch.zeros((), dtype=torch.int64))
        self._coming: Tensor | None = None

    def observe(self, exposed: Tensor) -> None:
        """A batch is to come; what that means for the teacher waits for its first update."""
        self._coming = exposed

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """Losses of one update: `classification` under the protocol's mask, and weighted `distillation`."""
        if self._coming is not None:
            self._begin_batch(self._coming, len(batch.targets[batch.stream]))
            self._coming = None
        features, logits = self.training_pass(batch)
        outputs = self.classified(batch, features, logits)
        softness = self.settings.distillation_temperature
        distilled = DISTILLATION[batch.targets.ndim](
            logits, self._teacher_logits(batch, features), self.known, softness
        )
        outputs.losses["distillation"] = self.strength * (softness**2 if self.rule.squared else 1) * distilled
        return outputs

    def after_step(self) -> None:
        """A running average moves towards the network."""
        if self.averages:
            with torch.no_grad():
                for old, new in self._pairs():
                    old.lerp_(new, 1 - self.settings.teacher_decay)

    @torch.no_grad()
    def end_session(self, images: SessionImages) -> None:
        """The paper's teacher: the network as it is now."""
        self._follow(torch.ones_like(self.since, dtype=torch.bool))
        self.known.copy_(self.seen)

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the variant's strength in place of null."""
        return super().effective_settings() | {"strength": self.strength}

    @torch.no_grad()
    def _begin_batch(self, exposed: Tensor, samples: int) -> None:
        """A new copy if it is due, of the network after the last batch."""
        if self.averages:
            self.known.copy_(self.seen)
        elif self.rule.copies:
            due = self.since >= self.every
            self._follow(due)
            self.known.copy_(torch.where(due, self._columns(), self.known))
            self.since.masked_fill_(due, 0)
        self.seen.copy_(exposed)
        self.since += samples

    @torch.no_grad()
    def _teacher_logits(self, batch: TrainingBatch, features: Tensor) -> Tensor:
        if self.body.reads_query:
            return apply_head(self.teacher.head, features)
        return self.teacher(self.backbone, batch.images)[1]

    def _columns(self) -> Tensor:
        return torch.ones_like(self.seen) if self.rule.all_columns else self.seen

    def _pairs(self) -> zip[tuple[Tensor, Tensor]]:
        return zip(self.teacher.parameters(), self.network.parameters(), strict=True)

    def _follow(self, due: Tensor) -> None:
        """Copy the network where `due`, a bool scalar on the device, which nobody waits for."""
        for old, new in self._pairs():
            old.copy_(torch.where(due, new, old))


class LwF(ContinualStrategy):
    """Learning without forgetting as an Avalanche strategy; `settings` is an `LwFSettings`."""

    method_class = LwFMethod
