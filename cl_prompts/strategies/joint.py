"""Joint: the upper bound of a head on frozen features, trained anew on everything seen whenever somebody asks.

Source: the row of that name in every table of the field; as a bound of incremental learners first in Li and Hoiem,
ECCV 2016 (arXiv 1606.09282).

Features of every sample are kept, as evaluation prepares the images. A prediction trains the head from its initial
values on all of them, in random order, for `epochs` passes of Adam with a rate that falls to 0 along a cosine; the
result is kept until the next sample comes. Order and initial values come from the seed and the samples stand in an
order of their own, so that the order of the stream cannot matter. Optimizer and epochs are the method's own settings;
choose them on a validation split. An evaluation costs `epochs` passes over the features seen so far.

It bounds methods that train a head. For methods that train prompts the bound is the method itself on a shuffled
stream, `scenario=iid strategy=<method>`: one pass, the protocol's number of updates, which is what an online learner
could reach; `protocol=offline` passes over it more often.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.heads import apply_head, make_head
from cl_prompts.labels import label_kind
from cl_prompts.seen_samples import SeenSamples
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Field, Needs, StrategySettings
from cl_prompts.strategies.method import Method, TrainingBatch


class JointSettings(StrategySettings):
    """Settings of the joint bound."""

    needs: ClassVar[Needs] = Needs(gradient=False, trains="head", multi_label=True, order_invariant=True)
    toy_settings: ClassVar[dict[str, Any]] = {"epochs": 40, "batch_size": 8, "lr": 0.02}

    head: Literal["linear", "cosine"] = Field("linear", description="a linear layer, or cosine over temperature")
    temperature: float = Field(0.1, gt=0, description="divisor of the cosine logits; unused by the linear head")
    epochs: int = Field(20, ge=1, description="passes over everything seen, for each evaluation")
    batch_size: int = Field(64, ge=1, description="samples in one step")
    lr: float = Field(0.005, gt=0, allow_inf_nan=False, description="learning rate of Adam at first, falling to 0")


class JointMethod(Method):
    """The learner: `samples`, everything seen, and `head` at its initial values, from which each training starts.

    Buffer: `order_seed`, int64, of the random order.
    """

    settings_class = JointSettings
    settings: JointSettings
    predicts_from_query = True

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: JointSettings, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, num_classes, settings, generator)
        self.head = make_head(settings.head, backbone.width, num_classes, settings.temperature, generator)
        self.samples = SeenSamples(backbone.width, generator)
        self.order_seed: Tensor
        self.register_buffer("order_seed", torch.randint(2**62, (), generator=generator))
        # In a list, where the head is no part of the state: it is a function of what is.
        self._trained: list[tuple[int, nn.Module]] = []

    def query(self, images: Tensor) -> Tensor:
        """The features themselves, (batch, width)."""
        return self.backbone.query(images)

    def forward(self, images: Tensor | None, query: Tensor | None = None) -> Tensor:
        """Logits (batch, classes) of the head that everything seen so far gives."""
        if not self._trained or self._trained[0][0] != self.samples.version:
            head = self._train()
            self._trained = [(self.samples.version, head)]
        return apply_head(self._trained[0][1], self._features(images, query))

    def logits_before_fit(self, images: Tensor, query: Tensor | None) -> Tensor:
        """Logits of the untrained head: to train one for each batch would cost more than the whole run."""
        return apply_head(self.head, self._features(images, query))

    def fit(self, batch: TrainingBatch) -> None:
        """Keep the features and labels of a batch."""
        self.samples.append(self._features(batch.images, batch.query), batch.targets)

    def notices(self) -> list[str]:
        """What the running accuracy is worth."""
        return ["joint trains its head at evaluations alone: the running accuracy is that of the untrained head"]

    def _features(self, images: Tensor | None, query: Tensor | None) -> Tensor:
        if query is None:
            assert images is not None
            query = self.query(images)
        return query

    def _train(self) -> nn.Module:
        """A head trained on everything seen."""
        settings, device = self.settings, self.order_seed.device
        # Prediction asks, in a mode without gradients; global generators and the head's initial values are left alone.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            features, labels = self.samples.all()
            head = copy.deepcopy(self.head)
            if not len(labels):
                return head
            kind = label_kind(labels)
            classes = kind.shown(labels, self.num_classes)
            generator = torch.Generator().manual_seed(int(self.order_seed))
            optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.epochs)
            for _ in range(settings.epochs):
                order = torch.randperm(len(labels), generator=generator).to(device)
                for rows in order.split(settings.batch_size):
                    optimizer.zero_grad()
                    kind.loss(apply_head(head, features[rows]), labels[rows], classes).backward()
                    optimizer.step()
                schedule.step()
        return head


class Joint(ContinualStrategy):
    """The joint bound as an Avalanche strategy; `settings` is a `JointSettings`."""

    method_class = JointMethod
