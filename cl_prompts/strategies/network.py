"""`NetworkMethod`: base of methods that are a loss on any network: a body that the settings name, and a head."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.heads import make_head
from cl_prompts.labels import label_kind
from cl_prompts.masks import mask_logits
from cl_prompts.networks import BODIES, Network
from cl_prompts.strategies.declaration import NetworkSettings
from cl_prompts.strategies.method import Method, TrainingBatch, TrainingOutputs


class NetworkMethod(Method):
    """The learner: `body` (what `trained` names, see `cl_prompts.networks`) and `head`; by itself, cross-entropy.

    Raises:
        StrategyError: more prompted blocks than the backbone has.
    """

    settings: NetworkSettings

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: NetworkSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.body = BODIES[settings.trained](backbone, settings.prompt_layers, settings.prompt_length, generator)
        self.head = make_head(settings.head, backbone.width, num_classes, settings.temperature, generator)
        self.predicts_from_query = self.body.reads_query

    @property
    def network(self) -> Network:
        """Body and head as one module; its names are those of the learner's own tensors."""
        return Network(self.body, self.head)

    def query(self, images: Tensor) -> Tensor | None:
        """The features themselves, (batch, width), where the head alone is trained; else None."""
        return self.backbone.query(images) if self.body.reads_query else None

    def forward(self, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes)."""
        return self.network(self.backbone, images, query)[1]

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """One update's loss: `classification`, over the competing classes, by the kind of the labels."""
        return self.classified(batch, *self.training_pass(batch))

    def training_pass(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Features (batch, width) and unmasked logits (batch, classes) with the graph behind them."""
        return self.network(self.backbone, batch.images, batch.query)

    def classified(self, batch: TrainingBatch, features: Tensor, logits: Tensor) -> TrainingOutputs:
        """The outputs of plain classification of all rows of the batch, to which a method may add losses."""
        loss = label_kind(batch.targets).loss(logits, batch.targets, batch.allowed)
        return TrainingOutputs({"classification": loss}, mask_logits(logits, batch.allowed), features)

    def notices(self) -> list[str]:
        """That training every weight of a backbone asks for a learning rate of its own."""
        if self.settings.trained != "all":
            return []
        return [
            "strategy.trained=all moves every weight of a copy of the backbone: protocol.lr between 1e-5 and 1e-4 is "
            "usual with Adam, the 5e-3 of prompts is expected to destroy it"
        ]
