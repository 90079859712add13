"""`Method`: what every learner is: images in, logits out, nothing else known at prediction."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.strategies.declaration import StrategySettings


@dataclass(frozen=True)
class TrainingBatch:
    """What one update learns from: rows of the stream first, then those that replay added.

    Attributes:
        images: (batch, 3, height, width) float, ready for the backbone.
        targets: (batch,) int64 class ids, or (batch, classes) float rows of labels, NaN where hidden.
        allowed: (classes,) bool, the columns that compete under the protocol's mask; empty for closed-form learners.
        exposed: (classes,) bool, seen so far in the stream, this batch included.
        query: (batch, width) result of `query(images)` if it is known.
        stream_size: rows of the stream; None: all of them.
        remembered: what `TrainingOutputs.remember` gave when the replayed rows came from the stream, by name,
            (replayed rows, ...); NaN in rows that came without an update.
    """

    images: Tensor
    targets: Tensor
    allowed: Tensor
    exposed: Tensor | None = None
    query: Tensor | None = None
    stream_size: int | None = None
    remembered: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def stream(self) -> slice:
        """The rows of the stream."""
        return slice(0, self.stream_size)

    @property
    def replay(self) -> slice:
        """The rows that replay added."""
        return slice(len(self) if self.stream_size is None else self.stream_size, None)


SessionImages = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Call it for one more pass over a session: batches of images as evaluation prepares them, and their targets."""


@dataclass
class TrainingOutputs:
    """What one training pass gives to the loop.

    Attributes:
        losses: named scalars whose sum is minimised.
        logits: (batch, classes) that accuracy and penalties of plugins read, with the graph behind them; minus
            infinity where a class does not compete.
        features: (batch, width) that the head read.
        diagnostics: named detached scalars, only for curves.
        remember: what a memory shall keep beside the images, by name: (batch, ...) detached; the loop takes the rows
            of the stream in the first update of their batch.
    """

    losses: dict[str, Tensor]
    logits: Tensor
    features: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    remember: dict[str, Tensor] = field(default_factory=dict)


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
    predicts_from_query: bool = False
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

    def end_session(self, images: SessionImages) -> None:
        """A session has ended; called only if the settings declare boundaries. What is trained stays the same here."""

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

    def training_outputs(self, batch: TrainingBatch) -> TrainingOutputs:
        """Named losses, logits and features of one update's batch."""
        raise StrategyError(f"{type(self).__name__} is fitted in closed form and has no training losses")

    def after_step(self) -> None:
        """The optimizer has moved what is trained: the place for averages over steps. Not called in closed form."""

    def fit(self, batch: TrainingBatch) -> None:
        """Take up one stream batch in closed form; its images are as evaluation prepares them."""
        raise StrategyError(f"{type(self).__name__} learns by gradient and cannot be fitted in closed form")

    def logits_before_fit(self, images: Tensor, query: Tensor | None) -> Tensor:
        """What the running accuracy reads of a stream batch before `fit` takes it up, as `forward` gives it.

        A method whose head costs a solve may answer from one that is some samples old: evaluation never asks here.
        """
        return self(images, query)

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
