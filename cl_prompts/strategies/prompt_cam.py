"""Prompt-CAM as a continual learner: one prompt a class, whose output scores the class (Chowdhury et al., CVPR 2025).

Each class prompt reads the image in the frozen backbone; one linear map, shared by all, turns what it found into the
score of its class. Where a prompt looks is the explanation: `attention_of` and `head_ranking` read it from the last
block. The paper trains on all classes at once and lets prompts and patches see each other (`attention=full`): old
classes would change with every new one. By default prompts are isolated: they see the image and themselves, and nothing
sees them, so that a class keeps its score whatever classes come, as far as the shared map stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.backbones.insertions import Insertion, TokenPrompts
from cl_prompts.backbones.readers import (
    LastBlock,
    finished_row,
    last_block_of_kept,
    last_block_of_readers,
    reader_states,
    row_heads,
)
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.masks import FINITE_FILL, mask_logits
from cl_prompts.prompts.head_ranking import rank_heads
from cl_prompts.prompts.visual import uniform_tokens
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class PromptCAMSettings(StrategySettings):
    """Settings of Prompt-CAM."""

    needs: ClassVar[Needs] = Needs(replay="optional", multi_label=True)

    form: Literal["deep", "shallow"] = Field(
        "deep",
        description="prompts anew in every block, or once before the first; isolated deep ones in the last alone",
    )
    attention: Literal["isolated", "full"] = Field(
        "isolated", description="prompts see the image and themselves, unseen; or everything sees everything (paper)"
    )
    head: Literal["linear", "cosine"] = Field(
        "linear", description="score of a class by the shared map: a linear one, or the cosine over temperature"
    )
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine scores")

    def declared_needs(self) -> Needs:
        """Where prompts see each other, those of later classes take part from the start."""
        return self.needs.model_copy(update={"classes_in_advance": self.attention == "full"})

    def deviations(self) -> list[str]:
        """Isolated prompts are not the paper's."""
        if self.attention == "full":
            return ["prompts of classes that come later take part from the start, and old scores change with new ones"]
        sentences = ["class prompts are seen by nothing, where the paper's see each other and are seen by the patches"]
        if self.form == "deep":
            sentences.append("prompts enter the last block alone: unseen ones of earlier blocks could have no effect")
        return sentences


class PromptCAMMethod(Method):
    """The learner: `prompts` (blocks, classes, width) and `head`, one map without bias for all classes.

    Buffer: `known` (classes,) bool, the classes seen; what an isolated prompt of another one scores is not computed.
    """

    settings_class = PromptCAMSettings
    settings: PromptCAMSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: PromptCAMSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        blocks = backbone.depth if (settings.form, settings.attention) == ("deep", "full") else 1
        self.prompts = uniform_tokens(backbone, blocks, num_classes, generator)
        self.head = make_head(settings.head, backbone.width, 1, settings.temperature, generator)
        if isinstance(self.head, nn.Linear):
            # The same number for all classes: no probability would depend on it.
            self.head.register_parameter("bias", None)
        self.known: Tensor
        self.register_buffer("known", torch.zeros(num_classes, dtype=torch.bool))

    def observe(self, exposed: Tensor) -> None:
        """Remember the classes seen."""
        self.known.copy_(exposed)

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Scores of the classes (batch, classes); `FINITE_FILL` for isolated ones not seen, once some were."""
        rows = self.known.nonzero().flatten()
        return self._scores(self._states(images, rows), rows) if len(rows) else self._scores(self._states(images))

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's loss: `classification`, over the competing classes, by the kind of the labels.

        `features` are the mean of what the prompts found.
        """
        # On a GPU the competing classes are not asked for, which would wait for it, and all are computed.
        rows = batch.allowed.nonzero().flatten() if batch.allowed.device.type == "cpu" else None
        states = self._states(batch.images, rows)
        logits = self._scores(states, rows)
        loss = label_kind(batch.targets).loss(logits, batch.targets, batch.allowed)
        return TrainingOutputs({"classification": loss}, mask_logits(logits, batch.allowed), states.mean(1))

    # --- explanations -----------------------------------------------------------------------------------------------

    def attention_of(self, images: Tensor, class_id: int) -> Tensor:
        """Where the prompt of a class looks in the last block, by head, without gradient.

        Returns:
            (batch, heads, tokens) float, class and register tokens in front of the patches. What is missing to a sum
            of 1 went to prompts.
        """
        given, row = self._last_block(images, class_id)
        return row_heads(given, row).weights[:, :, : given.states.shape[1]]

    def head_ranking(self, images: Tensor, class_id: int) -> Tensor:
        """Heads of the last block as the probability of a class can spare them: the last is needed most.

        Blurred is the attention of the class's own prompt; probabilities are over the classes seen.

        Returns:
            (batch, heads) int64 on the CPU.
        """
        given, row = self._last_block(images, class_id)
        heads, model = row_heads(given, row), self.backbone.model
        with torch.no_grad():
            scores = mask_logits(self(images), self.known) if bool(self.known.any()) else self(images)

        def probability(blurred: Tensor) -> Tensor:
            chosen = torch.where(blurred.to(scores.device)[:, :, None], heads.blurred, heads.attended)
            own = apply_head(self.head, model.fc_norm(model.norm(finished_row(given, row, chosen))))
            every = scores.index_copy(1, torch.tensor([class_id], device=scores.device), own)
            return torch.softmax(every, dim=-1)[:, class_id]

        return rank_heads(probability, len(images), heads.attended.shape[1])

    def _last_block(self, images: Tensor, class_id: int) -> tuple[LastBlock, int]:
        """What the last block is given, and which of its readers is the class."""
        return ATTENTION[self.settings.attention].last_block(self, images, class_id)

    # --- scores -----------------------------------------------------------------------------------------------------

    def _states(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Outputs of the prompts of these classes, all of them where they see each other: (batch, rows, width)."""
        return self.backbone.model.fc_norm(ATTENTION[self.settings.attention].states(self, images, rows))

    def _scores(self, states: Tensor, rows: Tensor | None = None) -> Tensor:
        scores = apply_head(self.head, states)[..., 0]
        if rows is None or scores.shape[1] == self.num_classes:
            return scores
        return scores.new_full((len(scores), self.num_classes), FINITE_FILL).index_copy(1, rows, scores)


def _first(method: PromptCAMMethod) -> int:
    """The block that isolated prompts enter."""
    return method.backbone.depth - 1 if method.settings.form == "deep" else 0


def _isolated_states(method: PromptCAMMethod, images: Tensor, rows: Tensor | None) -> Tensor:
    prompts = method.prompts[0] if rows is None else method.prompts[0, rows]
    return reader_states(method.backbone, images, prompts, first=_first(method))


def _isolated_last_block(method: PromptCAMMethod, images: Tensor, class_id: int) -> tuple[LastBlock, int]:
    own = method.prompts[0, class_id : class_id + 1]
    return last_block_of_readers(method.backbone, images, own, first=_first(method)), 0


def _insertions(method: PromptCAMMethod) -> dict[int, list[Insertion]]:
    """Prompts of the last listed block stay to be read, those before it are cut off behind their block."""
    last = len(method.prompts) - 1
    return {block: [TokenPrompts(prompts, keep=block == last)] for block, prompts in enumerate(method.prompts[:, None])}


def _full_states(method: PromptCAMMethod, images: Tensor, rows: Tensor | None) -> Tensor:
    return method.backbone.prompt_states(images, _insertions(method))


def _full_last_block(method: PromptCAMMethod, images: Tensor, class_id: int) -> tuple[LastBlock, int]:
    return last_block_of_kept(method.backbone, images, _insertions(method)), class_id


class Attention(NamedTuple):
    """Who sees whom: outputs of the prompts of some classes, and what their last block is given."""

    states: Callable[[PromptCAMMethod, Tensor, Tensor | None], Tensor]
    last_block: Callable[[PromptCAMMethod, Tensor, int], tuple[LastBlock, int]]


ATTENTION = {
    "isolated": Attention(_isolated_states, _isolated_last_block),
    "full": Attention(_full_states, _full_last_block),
}


class PromptCAM(ContinualStrategy):
    """Prompt-CAM as an Avalanche strategy; `settings` is a `PromptCAMSettings`."""

    method_class = PromptCAMMethod
