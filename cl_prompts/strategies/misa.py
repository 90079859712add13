"""MISA: prompts warmed up on other data, and a mask of the classes at hand (ICLR 2025, arXiv 2503.00677).

The prompts are those of Si-Blurry's DualPrompt: a general one, and experts of which each image takes the one with the
nearest key; keys learn. MISA adds a mask on the training logits, which belongs to the protocol here
(`protocol.train_mask=batch`, or `session`), and prompts that start from a file: `python -m
cl_prompts.strategies.misa_warm_up` makes one on any two sets of images. Keys and head start afresh.

`variant=paper`: each image chooses among all keys, in training as in evaluation, and trains the prompt of its key.
`variant=released`: the published training, where session t pulls key t while its prompts are row 0 of the pool,
whatever t: an index inside a slice of the keys is used on the whole pool. It counts sessions, so it needs boundaries.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head, make_head
from cl_prompts.losses import pull_loss
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.files import load_prompts
from cl_prompts.prompts.general_and_experts import GeneralAndExperts, Place
from cl_prompts.prompts.selection import select_prompts
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, LayerIndices, Needs, StrategySettings, model_validator
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class MISASettings(StrategySettings):
    """Settings of MISA."""

    needs: ClassVar[Needs] = Needs(replay="optional", query_pass=True)

    variant: Literal["paper", "released"] = Field(
        "paper", description="train the prompt of the chosen key, or prompt 0 in every session as the published code"
    )
    warm_start: str = Field("none", description="file of warmed-up prompts (.safetensors), or none: random prompts")
    pool_size: int = Field(10, ge=1, description="expert prompts in the pool, each with a key")
    general_length: int = Field(10, ge=0, description="tokens of the general prompt in each of its blocks")
    general_layers: LayerIndices = Field((0, 1), description="blocks that get the general prompt")
    expert_length: int = Field(20, ge=0, description="tokens of an expert prompt in each of its blocks")
    expert_layers: LayerIndices = Field((2, 3, 4), description="blocks that get the chosen expert prompt")
    insertion: Literal["prompt_tuning", "prefix_tuning"] = Field(
        "prompt_tuning", description="prompts as extra tokens, or as extra keys and values before projection"
    )
    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")

    @model_validator(mode="after")
    def _check_combinations(self) -> "MISASettings":  # noqa: UP037 -- also evaluated without this file's imports
        """Refuse values that exclude each other: one line `key=value: advice` for each."""
        problems = []
        if self.warm_start != "none" and not self.warm_start.endswith(".safetensors"):
            problems.append(f"warm_start={self.warm_start}: give a file that ends in .safetensors, or none")
        for key, layers in (("general_layers", self.general_layers), ("expert_layers", self.expert_layers)):
            if len(set(layers)) < len(layers):
                listed = ",".join(str(layer) for layer in layers)
                problems.append(f"{key}=[{listed}]: names a block twice; name each once")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def declared_needs(self) -> Needs:
        """The released form counts sessions; warmed-up prompts have seen other data."""
        boundaries = {"paper": "none", "released": "required"}[self.variant]
        return self.needs.model_copy(update={"boundaries": boundaries, "extra_data": self.warm_start != "none"})

    def deviations(self) -> list[str]:
        """What is missing or added beside the paper, and that its mask is the protocol's."""
        sentences = [
            "MISA's mask is protocol.train_mask=batch (or session); under another one this is Si-Blurry's DualPrompt "
            "from MISA's start"
        ]
        if self.warm_start == "none":
            sentences.append("warm_start=none: prompts start at random, where MISA's were warmed up on other data")
        else:
            sentences.append(f"warm_start={self.warm_start}: prompts have learnt from data outside the stream")
        if self.variant == "released":
            sentences.append("as released, every session trains prompt 0 and pulls a key of its own")
        return sentences


class MISAMethod(Method):
    """The learner: `prompts` (`general_prompt`, `expert_prompts`, `keys`) and `head`.

    Buffers: `usage_counts` (pool,), how often each expert was trained; `has_begun` () bool; in `variant=released` also
    `sessions` (1,) int64, how many have begun.

    Raises:
        StrategyError: a block beyond the backbone's depth, or a backbone without position code for prompts as tokens.
    """

    settings_class = MISASettings
    settings: MISASettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: MISASettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.prompts = GeneralAndExperts(
            backbone,
            general=Place(settings.general_layers, settings.general_length),
            expert=Place(settings.expert_layers, settings.expert_length),
            pool_size=settings.pool_size,
            insertion=settings.insertion,
            generator=generator,
        )
        self.head = make_head(settings.head, backbone.width, num_classes, settings.temperature, generator)
        self.choose_in_training = CHOICES[settings.variant]
        self.usage_counts: Tensor
        self.sessions: Tensor
        self.register_buffer("usage_counts", torch.zeros(settings.pool_size))
        self.has_begun: Tensor
        self.register_buffer("has_begun", torch.zeros((), dtype=torch.bool))
        if settings.variant == "released":
            self.register_buffer("sessions", torch.zeros(1, dtype=torch.int64))

    def begin_session(self, classes: Tensor | None) -> None:
        """The first session begins with the prompts of the file; `variant=released` counts them.

        Raises:
            StrategyError: the file does not fit, or `variant=released` has no key left for the session.
        """
        settings = self.settings
        if settings.warm_start != "none" and not bool(self.has_begun):
            # Not earlier: a model that has learned is built without the file.
            wanted = {name: getattr(self.prompts, name) for name in ("general_prompt", "expert_prompts")}
            load_prompts(settings.warm_start, wanted, key="strategy.warm_start")
        self.has_begun.fill_(True)
        if settings.variant == "released":
            self.sessions += 1
            if int(self.sessions) > settings.pool_size:
                raise StrategyError(
                    f"strategy.pool_size={settings.pool_size}: variant=released has one key a session, and session "
                    f"{int(self.sessions)} begins; give at least as many as the stream has sessions, or set "
                    "variant=paper"
                )

    def query(self, images: Tensor) -> Tensor:
        """The frozen backbone's feature, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes); every key competes."""
        tokens = self.backbone.tokens(images)
        query = self.backbone.query(tokens=tokens) if query is None else query
        choice = select_prompts(self.prompts.distance(query), None, 1)[:, 0]
        return apply_head(self.head, self._features(tokens, choice))

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's losses: `classification`, and `prompt`, the mean distance of queries and their keys."""
        tokens = self.backbone.tokens(batch.images)
        query = self.backbone.query(tokens=tokens) if batch.query is None else batch.query
        choice, distance = self.choose_in_training(self, self.prompts.distance(query))
        self.usage_counts.index_add_(0, choice, self.usage_counts.new_ones(choice.shape))
        features = self._features(tokens, choice)
        logits = mask_logits(apply_head(self.head, features), batch.allowed)
        losses = {"classification": F.cross_entropy(logits, batch.targets), "prompt": pull_loss(distance)}
        return TrainingOutputs(losses, logits, features)

    def prompt_usage(self) -> Tensor:
        """How often each expert was trained, (pool,)."""
        return self.usage_counts

    def _features(self, tokens: Tensor, choice: Tensor) -> Tensor:
        insertions = self.prompts.insertions(self.prompts.expert_prompts[choice], self.backbone)
        return self.backbone(insertions=insertions, tokens=tokens)


def _nearest(method: MISAMethod, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's nearest key and its prompt: rows (batch,), distances (batch,)."""
    choice = select_prompts(distance, None, 1)
    return choice[:, 0], distance.gather(1, choice)[:, 0]


def _index_in_slice(method: MISAMethod, distance: Tensor) -> tuple[Tensor, Tensor]:
    """The session's key alone is looked at, so that the nearest is number 0, which is then taken for a row."""
    # As an index on the device: a slice would read the counter.
    own = distance.index_select(1, (method.sessions - 1).clamp(min=0))
    return select_prompts(own, None, 1)[:, 0], own[:, 0]


CHOICES = {"paper": _nearest, "released": _index_in_slice}
"""Variant -> prompt rows (batch,) and distances to keys (batch,) in training, from the distances to all keys."""


class MISA(ContinualStrategy):
    """MISA as an Avalanche strategy; `settings` is a `MISASettings`."""

    method_class = MISAMethod
