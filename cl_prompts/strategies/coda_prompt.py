"""CODA-Prompt: a prompt that is a weighted sum of components, with weights from attended keys (CVPR 2023).

Nothing is chosen: the query of an image, weighted by each component's attention vector, is compared with its key, and
the cosines, which may be negative, weigh the components. `task_count=1`, the default, needs no tasks: all components
learn from the start. With more, a task adds its share, made orthogonal to all earlier ones, which are frozen.
`variant=paper` has the penalty that holds components apart at weight 0.1 (from memory of the paper); the released
experiments run without it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.layout import merge, projected_prefixes_by_layer
from cl_prompts.prompts.orthogonal import extend_orthogonally, orthogonality_penalty
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings, model_validator
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class CODAPromptSettings(StrategySettings):
    """Settings of CODA-Prompt; `null` switches follow the variant."""

    needs: ClassVar[Needs] = Needs(replay="optional", query_pass=True, multi_label=True)

    variant: Literal["paper", "released"] = Field(
        "paper", description="with the penalty that keeps components orthogonal, or without, as released"
    )
    components: int = Field(100, ge=1, description="components of the prompt, each with a key and an attention vector")
    task_count: int = Field(
        1, ge=1, description="tasks that share the components; 1: no tasks, all learn from the start"
    )
    prompt_length: int = Field(4, ge=1, description="keys, and values, that the prompt adds in each of its blocks")
    prompt_layers: int = Field(5, ge=1, description="the first blocks, which get a prompt")
    orthogonality: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of the penalty on components that are not orthogonal"
    )
    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")

    @model_validator(mode="after")
    def _check_combinations(self) -> "CODAPromptSettings":  # noqa: UP037 -- also evaluated without the file's imports
        """Refuse values that exclude each other: one line `key=value: advice`."""
        if self.components % self.task_count:
            raise ValueError(
                f"components={self.components}: strategy.task_count={self.task_count} tasks share them equally; give a "
                "multiple of it"
            )
        return self

    def declared_needs(self) -> Needs:
        """Shares of tasks need the tasks and their number."""
        if self.task_count == 1:
            return self.needs
        return self.needs.model_copy(update={"boundaries": "required", "task_ids": True, "tasks_in_advance": True})

    def deviations(self) -> list[str]:
        """What the task-free form is not."""
        if self.task_count > 1:
            return []
        return ["all components learn from the start, where CODA-Prompt adds a share with each task and freezes it"]


ORTHOGONALITY = {"paper": 0.1, "released": 0.0}
"""Variant -> weight of the penalty, unless the settings say otherwise."""
NAMES = ("components", "keys", "attention")


class CODAPromptMethod(Method):
    """The learner: `components` (blocks, components, 2 * length, width), `keys` and `attention`, and `head`.

    The last two are (blocks, components, width); keys come before values in a component. Buffers, with tasks alone:
    `learning` and `live` (components,) bool, rows of the current task and of all tasks so far; `frozen_<name>`, values
    of the other rows, zeros where they are not live yet; `sessions` (1,) int64.

    Raises:
        StrategyError: more prompted blocks than the backbone has, or more components than a key has numbers.
    """

    settings_class = CODAPromptSettings
    settings: CODAPromptSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: CODAPromptSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        blocks, rows, width = settings.prompt_layers, settings.components, backbone.width
        if blocks > backbone.depth:
            raise StrategyError(f"strategy.prompt_layers={blocks}: the backbone has {backbone.depth} blocks")
        if rows > width:
            raise StrategyError(
                f"strategy.components={rows}: keys start orthogonal, and have {width} numbers on this backbone; use at "
                f"most {width}"
            )
        self.orthogonality = settings.orthogonality
        if self.orthogonality is None:
            self.orthogonality = ORTHOGONALITY[settings.variant]
        self.components = nn.Parameter(torch.zeros(blocks, rows, 2 * settings.prompt_length, width))
        self.keys = nn.Parameter(torch.zeros(blocks, rows, width))
        self.attention = nn.Parameter(torch.zeros(blocks, rows, width))
        self.head = make_head(settings.head, width, num_classes, settings.temperature, generator)
        self.live: Tensor
        self.learning: Tensor
        self.sessions: Tensor
        if settings.task_count > 1:
            for name in NAMES:
                self.register_buffer(f"frozen_{name}", torch.zeros_like(getattr(self, name)))
            self.register_buffer("sessions", torch.zeros(1, dtype=torch.int64))
        for name in ("live", "learning"):
            self.register_buffer(name, torch.ones(rows, dtype=torch.bool), persistent=settings.task_count > 1)
        self._open_share(0)

    def begin_session(self, classes: Tensor | None) -> None:
        """With tasks: freeze what was learnt and add the share of the next one, in new tensors.

        Raises:
            StrategyError: there is no share left.
        """
        tasks = self.settings.task_count
        if tasks == 1:
            return
        self.sessions += 1
        task = int(self.sessions) - 1
        if task >= tasks:
            raise StrategyError(
                f"strategy.task_count={tasks}: task {task + 1} begins; give as many as the stream has, or 1 for none"
            )
        if task:
            self._open_share(task)

    def query(self, images: Tensor) -> Tensor:
        """The frozen backbone's feature, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes)."""
        features, _ = self._features(images, query, self._effective())
        return apply_head(self.head, features)

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's losses: `classification`, and `prompt`, the penalty, where it has a weight."""
        effective = self._effective()
        features, weights = self._features(batch.images, batch.query, effective)
        logits = apply_head(self.head, features)
        losses = {"classification": label_kind(batch.targets).loss(logits, batch.targets, batch.allowed)}
        if self.orthogonality:
            penalties = [orthogonality_penalty(rows.flatten(2), self.live) for rows in effective.values()]
            losses["prompt"] = self.orthogonality * torch.stack(penalties).sum()
        diagnostics = {"component_weight": weights.detach().abs().sum() / self.live.sum() / weights[..., 0].numel()}
        return TrainingOutputs(losses, mask_logits(logits, batch.allowed), features, diagnostics)

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the variant's choice in place of null."""
        return super().effective_settings() | {"orthogonality": self.orthogonality}

    def _effective(self) -> dict[str, Tensor]:
        """The tensors as prediction reads them: rows of other tasks are constants, rows to come are zeros."""
        if self.settings.task_count == 1:
            return {name: getattr(self, name) for name in NAMES}
        # By a mask, not by slices: their ends would have to be read from the device.
        return {
            name: torch.where(_along_rows(self.learning, trained), trained, getattr(self, f"frozen_{name}"))
            for name, trained in ((name, getattr(self, name)) for name in NAMES)
        }

    def _features(self, images: Tensor, query: Tensor | None, effective: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the head reads (batch, width), and the weights of the components (batch, blocks, components)."""
        tokens = self.backbone.tokens(images)
        query = self.backbone.query(tokens=tokens) if query is None else query
        weights = component_weights(query, effective["keys"], effective["attention"])
        rows = torch.einsum("blm,lmrd->blrd", weights, effective["components"]).flatten(1, 2)
        layers = range(self.settings.prompt_layers)
        insertions = merge(projected_prefixes_by_layer(rows, layers, self.settings.prompt_length))
        return self.backbone(insertions=insertions, tokens=tokens), weights

    @torch.no_grad()
    def _open_share(self, task: int) -> None:
        """New tensors whose rows of this task start orthogonal to all earlier ones."""
        share = self.settings.components // self.settings.task_count
        start, stop = task * share, (task + 1) * share
        for name, rows in self._effective().items():
            draws = torch.randn(len(rows), share, rows[0, 0].numel(), generator=self.generator, dtype=torch.float64)
            flat = [
                extend_orthogonally(block, start, drawn.to(block.device))
                for block, drawn in zip(rows.detach().flatten(2), draws, strict=True)
            ]
            opened = torch.stack(flat).reshape(rows.shape)
            if self.settings.task_count > 1:
                getattr(self, f"frozen_{name}")[:, :start] = rows[:, :start]
            # A new tensor, hence a new optimizer: the moments of the old one belong to other rows.
            setattr(self, name, nn.Parameter(opened))
        places = torch.arange(self.settings.components, device=self.live.device)
        self.live.copy_(places < stop)
        self.learning.copy_((places >= start) & (places < stop))


def component_weights(query: Tensor, keys: Tensor, attention: Tensor) -> Tensor:
    """Cosine of every key with the query times, number by number, the attention vector of its component.

    Written as two matrix products: the products of all queries and attention vectors would be the largest tensor of
    the step.

    Args:
        query: (batch, width).
        keys: (blocks, components, width).
        attention: the same.

    Returns:
        (batch, blocks, components) in [-1, 1], in full precision also under autocast; 0 where a row is zero.
    """
    with torch.autocast(query.device.type, enabled=False):
        query = query.to(keys.dtype)
        products = torch.einsum("bd,lmd->blm", query, attention * F.normalize(keys, dim=-1))
        squares = torch.einsum("bd,lmd->blm", query.square(), attention.square())
        # Clamped before the root: at zero its slope has no limit.
        return products / squares.clamp(min=1e-24).sqrt()


def _along_rows(chosen: Tensor, rows: Tensor) -> Tensor:
    """(components,) shaped to broadcast over (blocks, components, ...)."""
    return chosen.reshape(1, -1, *[1] * (rows.ndim - 2))


class CODAPrompt(ContinualStrategy):
    """CODA-Prompt as an Avalanche strategy; `settings` is a `CODAPromptSettings`."""

    method_class = CODAPromptMethod
