"""`Method`: what every learner is: images in, logits out, nothing else known at prediction."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.strategies.declaration import StrategySettings


@dataclass
class TrainingOutputs:
    """What one training pass gives to the loop.

    Attributes:
        losses: named scalars whose sum is minimised.
        logits: (batch, classes) that accuracy and penalties of plugins read, with the graph behind them; minus
            infinity where a class does not compete.
        features: (batch, width) that the head read.
        diagnostics: named detached scalars, only for curves.
    """

    losses: dict[str, Tensor]
    logits: Tensor
    features: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """Base of all learners on a frozen backbone.

    Prediction is `forward(images)` alone: no task identity, no labels, no neighbours in the batch. A subclass
    implements `forward` and either `training_outputs` (gradient) or `fit` (closed form), as its settings declare.

    Args:
        backbone: the frozen features.
        num_classes: columns of the head, all data-set class ids.
        settings: the method's own typed settings.
        generator: source of every initial value.
    """

    settings_class: ClassVar[type[StrategySettings]]
    predicts_from_query: ClassVar[bool] = False
    """`forward` reads nothing but the query: with a known one it takes None for the images."""

    def __init__(
        self, backbone: FrozenViT, num_classes: int, settings: StrategySettings, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.settings = settings
        self.generator = generator

    def begin_session(self, classes: Tensor | None) -> None:
        """A session begins, a task if it has `classes`, int64, of its own. What is trained may change here."""

    def observe(self, exposed: Tensor) -> None:
        """Classes seen so far, (classes,) bool, those of the batch to come included."""

    def query(self, images: Tensor) -> Tensor | None:
        """What the frozen backbone alone tells of `images` and prediction reuses, (batch, width); None if nothing.

        It never changes during a run, so fixed images need it once.
        """
        return None

    def forward(self, images: Tensor, query: Tensor | None = None) -> Tensor:
        """Logits of all classes (batch, classes), unmasked; `query` may carry the result of `query(images)`."""
        raise NotImplementedError

    def training_outputs(
        self, images: Tensor, targets: Tensor, allowed: Tensor, query: Tensor | None = None
    ) -> TrainingOutputs:
        """Named losses, logits and features of one training batch.

        Args:
            images: (batch, 3, height, width) float, ready for the backbone.
            targets: (batch,) int64 class ids, or (batch, classes) float rows of labels, NaN where hidden.
            allowed: (classes,) bool, the columns that compete under the protocol's mask.
            query: the result of `query(images)` if it is known.
        """
        raise StrategyError(f"{type(self).__name__} is fitted in closed form and has no training losses")

    def fit(self, images: Tensor, targets: Tensor, query: Tensor | None = None) -> None:
        """Take up one stream batch in closed form; arguments as in `training_outputs`."""
        raise StrategyError(f"{type(self).__name__} learns by gradient and cannot be fitted in closed form")

    @property
    def columns_are_final(self) -> bool:
        """The logits of a class stay what they were after its session, where no class returns in a later one."""
        return False

    def parts(self) -> list[Hashable] | None:
        """State of each part that prediction is put together from; equal states give equal outputs.

        A learner that grows by finished parts needs each of them evaluated once: see `part_outputs`. None: one whole.
        """
        return None

    def part_outputs(self, images: Tensor, parts: Sequence[int]) -> list[Tensor]:
        """Output of each of these parts for `images`, (batch, any width)."""
        raise NotImplementedError

    def combine(self, outputs: Sequence[Tensor], query: Tensor | None) -> Tensor:
        """Logits (batch, classes) from the outputs of all parts."""
        raise NotImplementedError

    def effective_settings(self) -> dict[str, Any]:
        """Settings as they work, JSON-safe: no null that stands for "what the variant says"."""
        return self.settings.model_dump(mode="json")

    def notices(self) -> list[str]:
        """Sentences that a reader of the results must know, such as what the settings leave the method blind to."""
        return []

    def prompt_usage(self) -> Tensor | None:
        """How often each prompt of the pool was chosen in training, (pool,); None without a pool."""
        return None

    def named_trainables(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The tensors that training may move: everything that asks for a gradient."""
        return ((name, tensor) for name, tensor in self.named_parameters() if tensor.requires_grad)
