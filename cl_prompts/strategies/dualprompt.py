"""DualPrompt: a general prompt in early blocks, and an expert prompt of the task in later ones (ECCV 2022).

`variant=siblurry`, the default, needs no task: each image chooses its expert by key in training too, prompts are tokens
of their blocks. It is the re-implementation behind the DualPrompt rows of the Si-Blurry papers, and runs on any stream.
The other variants train the row of the current task and choose by key at test alone, so they need tasks:
`paper` puts prefixes behind the projection; `released` is the PyTorch port, which mixes up two axes of the chosen
experts (with one task's row half of a batch gets the key prompt as values too, at test images get parts of other
images' prompts), and lets a batch vote at test; `coda` is the version that CODA-Prompt compares with: keys for each
block, a key loss that is summed over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cl_prompts import losses
from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.prompts.general_and_experts import GeneralAndExperts, Place
from cl_prompts.prompts.layout import reshaped_axes
from cl_prompts.prompts.selection import batch_vote, key_similarity
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, LayerIndices, Needs, StrategySettings, model_validator
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class DualPromptSettings(StrategySettings):
    """Settings of DualPrompt; `null` switches follow the variant."""

    needs: ClassVar[Needs] = Needs(replay="optional", query_pass=True, multi_label=True)

    variant: Literal["siblurry", "paper", "released", "coda"] = Field(
        "siblurry", description="Si-Blurry's, without tasks; or with tasks: the paper, its PyTorch port, CODA-Prompt's"
    )
    pool_size: int = Field(10, ge=1, description="expert prompts; with tasks one for each")
    general_length: int = Field(5, ge=0, description="tokens, or keys and values, of the general prompt in each block")
    general_layers: LayerIndices = Field((0, 1), description="blocks that get the general prompt")
    expert_length: int = Field(20, ge=1, description="tokens, or keys and values, of an expert in each block")
    expert_layers: LayerIndices = Field((2, 3, 4), min_length=1, description="blocks that get the expert prompt")
    insertion: Literal["prompt_tuning", "prefix_tuning", "projected_prefix"] | None = Field(
        None, description="prompts as extra tokens, or as keys and values before or behind the projection"
    )
    key_loss: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight of the loss that pulls keys to queries")
    choice: Literal["image", "batch"] | None = Field(
        None, description="at test each image for itself, or one vote of the batch (only as released)"
    )
    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits")

    @model_validator(mode="after")
    def _check_combinations(self) -> "DualPromptSettings":  # noqa: UP037 -- also evaluated without the file's imports
        """Refuse values that exclude each other: one line `key=value: advice` for each."""
        problems = []
        if self.choice == "batch" and self.variant != "released":
            problems.append("choice=batch: predictions would depend on the batch; set strategy.variant=released for it")
        if self.variant == "released" and self.insertion == "prompt_tuning":
            problems.append("insertion=prompt_tuning: variant=released mixes up keys and values; use projected_prefix")
        for key, layers in (("general_layers", self.general_layers), ("expert_layers", self.expert_layers)):
            if len(set(layers)) < len(layers):
                listed = ",".join(str(layer) for layer in layers)
                problems.append(f"{key}=[{listed}]: names a block twice; name each once")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def declared_needs(self) -> Needs:
        """All variants but Si-Blurry's train the row of a task, and have one row for each of all tasks."""
        if self.variant == "siblurry":
            return self.needs
        return self.needs.model_copy(update={"boundaries": "required", "task_ids": True, "tasks_in_advance": True})

    def deviations(self) -> list[str]:
        """What the task-free form is not, and where released code mixes up the images of a batch."""
        sentences = {
            "siblurry": "the expert is chosen by key in training too, as the Si-Blurry code does without tasks",
            "released": "a prediction depends on the other images of its batch: as released, two axes are mixed up",
            "coda": "the key loss is summed over the batch, as in CODA-Prompt's code, so it grows with the batch",
        }
        return [sentences[self.variant]] if self.variant in sentences else []


class Variant(NamedTuple):
    """What a variant is.

    Attributes:
        insertion: form of the prompts, unless the settings say otherwise.
        choice: who chooses at test, unless the settings say otherwise.
        key_loss: a name of `KEY_LOSSES`.
        by_task: training takes the row of the current task.
        copies: a task's row starts as the one before.
        reshapes: the axes of key or value and image are mixed up.
        keys_per_block: every block chooses by keys of its own.
        initial: smallest and largest first value of prompts and keys.
    """

    insertion: str
    choice: str
    key_loss: str
    by_task: bool
    copies: bool
    reshapes: bool = False
    keys_per_block: bool = False
    initial: tuple[float, float] = (-1.0, 1.0)


VARIANTS = {
    "siblurry": Variant("prompt_tuning", "image", "mean_distance", by_task=False, copies=False),
    "paper": Variant("projected_prefix", "image", "minus_cosine", by_task=True, copies=True),
    "released": Variant("projected_prefix", "batch", "minus_cosine", by_task=True, copies=True, reshapes=True),
    "coda": Variant(
        "projected_prefix",
        "image",
        "summed_distance",
        by_task=True,
        copies=False,
        keys_per_block=True,
        initial=(0.0, 1.0),
    ),
}
KEY_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_distance": lambda similarity: losses.pull_loss(1 - similarity),
    "minus_cosine": losses.similarity_pull_loss,
    "summed_distance": lambda similarity: (1 - similarity).sum(),
}
"""From the cosines of queries and the keys of their prompts, (batch, blocks or 1)."""


class DualPromptMethod(Method):
    """The learner: `prompts` (`general_prompt`, `expert_prompts`, `keys`) and `head`.

    Buffers: `usage_counts` (pool,), how often each expert was trained, in one of its blocks on the average; `sessions`
    (1,) int64, how many have begun, where the variant has tasks.

    Raises:
        StrategyError: a block beyond the backbone's depth, or a backbone without position code for prompts as tokens.
    """

    settings_class = DualPromptSettings
    settings: DualPromptSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: DualPromptSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.variant = _resolved(settings)
        self.prompts = GeneralAndExperts(
            backbone,
            general=Place(settings.general_layers, settings.general_length),
            expert=Place(settings.expert_layers, settings.expert_length),
            pool_size=settings.pool_size,
            insertion=self.variant.insertion,
            generator=generator,
        )
        if self.variant.keys_per_block:
            keys = torch.empty(len(settings.expert_layers), settings.pool_size, backbone.width)
            self.prompts.keys = nn.Parameter(keys.uniform_(-1, 1, generator=generator))
        low, high = self.variant.initial
        with torch.no_grad():
            for tensor in self.prompts.parameters():
                tensor.add_(1).mul_((high - low) / 2).add_(low)
        self.head = make_head(settings.head, backbone.width, num_classes, settings.temperature, generator)
        self.usage_counts: Tensor
        self.sessions: Tensor
        self.register_buffer("usage_counts", torch.zeros(settings.pool_size))
        self.register_buffer("sessions", torch.zeros(1, dtype=torch.int64))

    def begin_session(self, classes: Tensor | None) -> None:
        """With tasks: the next row, which in most variants starts as the one before.

        Raises:
            StrategyError: there is no row left.
        """
        if not self.variant.by_task:
            return
        self.sessions += 1
        row, rows = int(self.sessions) - 1, self.settings.pool_size
        if row >= rows:
            raise StrategyError(
                f"strategy.pool_size={rows}: variant={self.settings.variant} has one row a task, and task {row + 1} "
                "begins; give at least as many as the stream has tasks, or set strategy.variant=siblurry"
            )
        if row:
            experts = self.prompts.expert_prompts.detach().clone()
            if self.variant.copies:
                experts[row] = experts[row - 1]
            # A new tensor, hence a new optimizer: the moments of the old one would go on moving finished rows.
            self.prompts.expert_prompts = nn.Parameter(experts)

    def query(self, images: Tensor) -> Tensor:
        """The frozen backbone's feature, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes); every key competes, also those that were never trained."""
        tokens = self.backbone.tokens(images)
        query = self.backbone.query(tokens=tokens) if query is None else query
        choice = _nearest(self._similarity(query))
        if self.variant.choice == "batch":
            choice = batch_vote(choice, self.settings.pool_size)
        return apply_head(self.head, self._features(tokens, choice))

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's losses: `classification`, and `prompt`, which pulls the keys to the queries."""
        tokens = self.backbone.tokens(batch.images)
        query = self.backbone.query(tokens=tokens) if batch.query is None else batch.query
        similarity = self._similarity(query)
        choice = _nearest(similarity)
        if self.variant.by_task:
            # As a tensor: to read the counter would wait for the device.
            choice = (self.sessions - 1).clamp(min=0).expand_as(choice)
        taken = choice.flatten()
        share = self.usage_counts.new_full(taken.shape, 1 / choice.shape[1])
        self.usage_counts.index_add_(0, taken, share)
        features = self._features(tokens, choice)
        logits = apply_head(self.head, features)
        picked = similarity.gather(2, choice[..., None])[..., 0]
        parts = {
            "classification": label_kind(batch.targets).loss(logits, batch.targets, batch.allowed),
            "prompt": self.settings.key_loss * KEY_LOSSES[self.variant.key_loss](picked),
        }
        diagnostics = {"key_similarity": picked.detach().mean()}
        return TrainingOutputs(parts, mask_logits(logits, batch.allowed), features, diagnostics)

    def prompt_usage(self) -> Tensor:
        """How often each expert was trained, (pool,)."""
        return self.usage_counts

    def effective_settings(self) -> dict[str, Any]:
        """Settings with the variant's choice in place of every null."""
        return super().effective_settings() | {"insertion": self.variant.insertion, "choice": self.variant.choice}

    def _similarity(self, query: Tensor) -> Tensor:
        """Cosines of queries and keys, (batch, blocks or 1, pool)."""
        keys = self.prompts.keys
        return key_similarity(query, keys if keys.ndim == 3 else keys[None])

    def _features(self, tokens: Tensor, choice: Tensor) -> Tensor:
        """What the head reads, for experts `choice`, int64 (batch, blocks or 1)."""
        blocks = len(self.settings.expert_layers)
        parts = self.prompts.expert_prompts.unflatten(1, (blocks, -1))
        rows = parts[choice, torch.arange(blocks, device=choice.device)].flatten(1, 2)
        if self.variant.reshapes:
            rows = reshaped_axes(rows, blocks)
        return self.backbone(insertions=self.prompts.insertions(rows, self.backbone), tokens=tokens)


def _nearest(similarity: Tensor) -> Tensor:
    """The prompt of the nearest key, int64 (batch, blocks or 1)."""
    return similarity.detach().argmax(-1)


def _resolved(settings: DualPromptSettings) -> Variant:
    """The variant with the choices of the settings where these have some."""
    chosen = VARIANTS[settings.variant]
    return chosen._replace(insertion=settings.insertion or chosen.insertion, choice=settings.choice or chosen.choice)


class DualPrompt(ContinualStrategy):
    """DualPrompt as an Avalanche strategy; `settings` is a `DualPromptSettings`."""

    method_class = DualPromptMethod
