"""`ImagePreparation`: what happens to the images of a mini-batch before the backbone sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from cl_prompts.strategies.argument_checks import needs_transform
from cl_prompts.strategies.passes import PresentationCount

TrainTransform = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
EvalTransform = Callable[[Tensor], Tensor]


class ImagePreparation:
    """Applies the transforms and numbers the passes that random ones draw for.

    The pass joins the seed, so that each update sees fresh pixels, the same whatever the workers.

    Args:
        train_transform: (uint8 images (batch, 3, h, w), sample ids (batch,), passes (batch,)) -> float images; None if
            the stream gives float images.
        eval_transform: uint8 images -> float images, as above.
        updates_per_batch: most passes over a batch, whole or not.

    Attributes:
        presented: earlier presentations of every sample, in other epochs and sessions.
    """

    def __init__(
        self, train_transform: TrainTransform | None, eval_transform: EvalTransform | None, updates_per_batch: float
    ) -> None:
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.presented = PresentationCount()
        self._passes_per_batch = max(1, math.ceil(updates_per_batch))

    @property
    def are_fixed(self) -> bool:
        """Training images have the same pixels in every pass."""
        return not getattr(self.train_transform, "is_random", True)

    def for_training(
        self, images: Tensor, sample_ids: Tensor, stream_size: int, *, pass_number: int, updates: int
    ) -> Tensor:
        """Float images (batch, 3, h, w) for one update.

        Args:
            images: stream rows first, then replay.
            sample_ids: int64 (batch,) on the CPU.
            stream_size: stream rows.
            pass_number: of this update on its batch, from 0.
            updates: updates before this one in the whole run.
        """
        if not needs_transform(images, self.train_transform):
            return images
        earlier = self.presented.of(sample_ids[:stream_size])
        passes = (earlier * self._passes_per_batch + pass_number).tolist()
        # A remembered image comes back in later batches, where only the count of all updates is new each time.
        passes += [updates] * (len(images) - stream_size)
        return self.train_transform(images, sample_ids, passes)  # type: ignore[misc]

    def for_evaluation(self, images: Tensor) -> Tensor:
        """Float images (batch, 3, h, w), always the same pixels."""
        return self.eval_transform(images) if needs_transform(images, self.eval_transform) else images  # type: ignore[misc]
