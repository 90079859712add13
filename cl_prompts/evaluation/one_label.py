"""`Evaluator`: accuracy of a model on the exposed part of a fixed test set of one label an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cl_prompts.errors import MetricError
from cl_prompts.evaluation.images import TestSetImages
from cl_prompts.evaluation.logits import ModelLogits
from cl_prompts.masks import EVAL_MASKS, mask_logits
from cl_prompts.metrics.records import EvaluationPoint


class EvaluationResult(NamedTuple):
    """`confusion` int64 (classes, classes), rows are true classes; `loss` mean masked cross-entropy a sample."""

    confusion: np.ndarray
    loss: float


class Evaluator:
    """Evaluates any model on the images of exposed classes of one test set.

    Args:
        dataset: items (image, target, ...), with `targets`; an Avalanche data set in evaluation mode is fine.
        num_classes: columns of the logits.
        transform: uint8 images (batch, 3, h, w) -> float; None if the items are float already.
        batch_size: images a forward pass.
        device: where to compute; None where `exposed` is.
        autocast: dtype of autocast, or None.
        mask: classes that compete in a prediction: `exposed`, or `none` for all columns of the head.

    Raises:
        MetricError: the targets are not one class id an image, an unknown mask, raw images without a transform or
            float images with one.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        num_classes: int,
        transform: Callable[[Tensor], Tensor] | None = None,
        batch_size: int = 128,
        device: str | torch.device | None = None,
        autocast: torch.dtype | None = None,
        mask: str = "exposed",
    ) -> None:
        if mask not in EVAL_MASKS:
            raise MetricError(f"evaluation mask {mask!r} is unknown; choose one of {', '.join(EVAL_MASKS)}")
        self.num_classes = num_classes
        self.device = None if device is None else torch.device(device)
        self.mask = mask
        self.targets = _single_labels(dataset, num_classes)
        self.images = TestSetImages(dataset, transform, batch_size)
        self.logits = ModelLogits(self.images, autocast)

    def __call__(self, model: nn.Module, exposed: Tensor, parts: int | None = None) -> EvaluationResult:
        """Evaluate `model`, whose modules are afterwards in the modes they were in.

        Args:
            model: images (batch, 3, h, w) -> logits (batch, classes).
            exposed: (classes,) bool.
            parts: of a learner that grows by parts, the first ones alone; None: all.

        Returns:
            Zero counts and a NaN loss if no class is exposed.

        Raises:
            MetricError: logits that are NaN or infinite.
        """
        device = exposed.device if self.device is None else self.device
        chosen = torch.nonzero(exposed.cpu()[self.targets]).flatten()
        competing = exposed.to(device) if self.mask == "exposed" else torch.ones_like(exposed, device=device)
        confusion = torch.zeros(self.num_classes * self.num_classes, dtype=torch.int64, device=device)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        for batch, logits in self.logits.of(model, chosen, device, parts):
            targets = self.targets[batch].to(device)
            with torch.inference_mode():
                logits = mask_logits(logits, self._columns(competing, logits.shape[-1]))
                confusion.index_add_(0, targets * self.num_classes + logits.argmax(-1), torch.ones_like(targets))
                loss += nn.functional.cross_entropy(logits, targets, reduction="sum").double()
        mean = float(loss) / len(chosen) if len(chosen) else float("nan")
        if len(chosen) and not math.isfinite(mean):
            raise MetricError(
                f"the logits of some of {len(chosen)} test images are not finite, so an accuracy means nothing; lower "
                "protocol.lr, or use protocol.precision=fp32"
            )
        return EvaluationResult(confusion.view(self.num_classes, -1).cpu().numpy(), mean)

    def point(self, result: EvaluationResult, **place: Any) -> EvaluationPoint:
        """The result at its place in the stream; keywords of `EvaluationPoint.from_confusion`."""
        return EvaluationPoint.from_confusion(result.confusion, loss=result.loss, **place)

    def _columns(self, competing: Tensor, columns: int) -> Tensor:
        """`competing` for a head that has grown to the classes seen so far only."""
        if columns > self.num_classes:
            raise MetricError(f"the model has {columns} logits, the evaluator num_classes={self.num_classes}")
        return competing[:columns]


def _single_labels(dataset: Any, num_classes: int) -> Tensor:
    if len(dataset) == 0:
        raise MetricError("the test set is empty; accuracy needs at least one image")
    targets = dataset.label_rows if hasattr(dataset, "label_rows") else dataset.targets
    labels = torch.as_tensor(np.asarray(list(targets)))
    if labels.ndim != 1 or labels.is_floating_point():
        raise MetricError(
            f"accuracy needs one integer class id an image, got targets of shape {tuple(labels.shape)} and type "
            f"{labels.dtype}; use MultiLabelEvaluator (mAP, CF1, OF1) for several labels an image"
        )
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        row = int(((labels < 0) | (labels >= num_classes)).nonzero()[0])
        raise MetricError(f"test label {int(outside[0])} is outside 0..{num_classes - 1} (test image {row})")
    return labels.to(torch.int64)
