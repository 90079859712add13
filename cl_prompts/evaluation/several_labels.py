"""`MultiLabelEvaluator`: mAP, CF1 and OF1 of a model on a fixed test set of several labels an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cl_prompts.errors import MetricError
from cl_prompts.evaluation.images import TestSetImages
from cl_prompts.evaluation.logits import ModelLogits
from cl_prompts.labels import visible_cross_entropy
from cl_prompts.metrics.multi_label import PUBLISHED_THRESHOLD, MultiLabelResult, ScoreKind, evaluate_logits
from cl_prompts.metrics.records import MultiLabelPoint
from scenarios.mlcil import evaluation_images


class EvaluatedLogits(NamedTuple):
    """What the last evaluation was computed from."""

    logits: npt.NDArray[np.float32]
    """`(images, classes)` of all test images, in their order; NaN in rows that were not evaluated."""
    targets: npt.NDArray[np.float32]
    """`(images, classes)`: 1, 0, or NaN where nobody knows."""
    rows: npt.NDArray[np.bool_]
    """Images that were evaluated."""
    columns: npt.NDArray[np.bool_]
    """Classes that were: those seen so far."""


class MultiLabelEvaluation(NamedTuple):
    """`result` and `loss`: mean binary cross-entropy a known label of the evaluated images and columns."""

    result: MultiLabelResult
    loss: float


class MultiLabelEvaluator:
    """Evaluates any model on the columns of the classes seen so far.

    A learner that grows by finished parts runs only its newest part here; the rest comes from stored outputs.

    Args:
        dataset: items (image, label row, ...), with `label_rows`; the test stream of a multi-label benchmark is fine.
        num_classes: columns of the logits.
        transform: uint8 images (batch, 3, h, w) -> float; None if the items are float already.
        batch_size: images a forward pass.
        device: where to compute; None where `exposed` is.
        autocast: dtype of autocast, or None.
        eval_images: images with a class `seen` so far, `all` labelled ones, or those with a class of `final_seen`.
        final_seen: bool (classes,), classes seen at the end of the stream, for `eval_images="final_seen"`.
        threshold: a class is predicted where its sigmoid is strictly above; 0.5 is reported beside it.
        scores: what average precision ranks: `sigmoid` (float32) or `logit`.

    Attributes:
        latest: what the last evaluation was computed from; None before the first.

    Raises:
        MetricError: a test set of one label an image, another number of classes, a threshold outside 0 to 1.
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
        eval_images: str = "seen",
        final_seen: npt.NDArray[np.bool_] | None = None,
        threshold: float = PUBLISHED_THRESHOLD,
        scores: ScoreKind = "sigmoid",
    ) -> None:
        if not 0 < threshold < 1:
            raise MetricError(f"threshold={threshold}: give a probability between 0 and 1, published is 0.8")
        self.num_classes = num_classes
        self.targets = _label_rows(dataset, num_classes)
        self.device = None if device is None else torch.device(device)
        self.thresholds = tuple(dict.fromkeys((threshold, 0.5)))
        self.scores = scores
        self.images = TestSetImages(dataset, transform, batch_size)
        self.latest: EvaluatedLogits | None = None
        self._rule = eval_images
        self._final_seen = final_seen
        self._positive = self.targets > 0.5
        self.logits = ModelLogits(self.images, autocast)
        self._evaluated(np.zeros(num_classes, dtype=bool))  # an unknown rule is refused here

    def __call__(self, model: nn.Module, exposed: Tensor, parts: int | None = None) -> MultiLabelEvaluation:
        """Evaluate `model` on the columns `exposed`, (classes,) bool; its modules keep their modes.

        `parts`: of a learner that grows by parts, the first ones alone; None: all.
        """
        device = exposed.device if self.device is None else self.device
        columns = exposed.cpu().numpy().copy()
        rows = self._evaluated(columns)
        table = np.full(self.targets.shape, np.nan, dtype=np.float32)
        for batch, logits in self.logits.of(model, torch.from_numpy(np.flatnonzero(rows)), device, parts):
            if logits.shape[-1] != self.num_classes:
                raise MetricError(
                    f"the model has {logits.shape[-1]} logits, the evaluator num_classes={self.num_classes}"
                )
            table[batch.numpy()] = logits.cpu().numpy()
        self.latest = EvaluatedLogits(table, self.targets, rows, columns)
        result = evaluate_logits(
            table[rows], self.targets[rows], columns, thresholds=self.thresholds, scores=self.scores
        )
        return MultiLabelEvaluation(result, self._loss(table[rows][:, columns], self.targets[rows][:, columns]))

    def point(self, evaluation: MultiLabelEvaluation, **place: Any) -> MultiLabelPoint:
        """The evaluation at its place in the stream; keywords of `MultiLabelPoint.from_result`."""
        return MultiLabelPoint.from_result(evaluation.result, loss=evaluation.loss, **place)

    def _evaluated(self, columns: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        return evaluation_images(self._positive, columns, self._rule, self._final_seen)

    @staticmethod
    def _loss(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]) -> float:
        known = ~np.isnan(targets)
        if not known.any():
            return float("nan")
        scores, labels = torch.from_numpy(logits).double(), torch.from_numpy(targets).double()
        return float(visible_cross_entropy(scores, labels, torch.from_numpy(known)).sum() / known.sum())


def _label_rows(dataset: Any, num_classes: int) -> npt.NDArray[np.float32]:
    rows = getattr(dataset, "label_rows", None)
    if rows is None:
        raise MetricError(
            "mAP, CF1 and OF1 need several labels an image, this test set has one class id; use Evaluator (accuracy)"
        )
    array: npt.NDArray[np.float32] = rows.array
    if array.shape[1] != num_classes:
        raise MetricError(f"the test set has {array.shape[1]} label columns; give num_classes={array.shape[1]}")
    return array
