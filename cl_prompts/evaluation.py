"""`Evaluator`: accuracy of a model on the exposed part of a fixed test set, leaving no trace in training.

Module modes are restored, no random state is drawn from, no strategy state is touched, and the frozen queries of the
test images are computed once for the whole run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from cl_prompts.errors import MetricError
from cl_prompts.masks import EVAL_MASKS, mask_logits
from cl_prompts.strategies.method import Method

CACHE_BYTES = 2 << 30
"""Test sets up to this size are decoded once and kept in memory."""


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
        self.dataset = dataset
        self.num_classes = num_classes
        self.transform = transform
        self.batch_size = batch_size
        self.device = None if device is None else torch.device(device)
        self.autocast = autocast
        self.mask = mask
        self.targets = _single_labels(dataset.targets, num_classes)
        raw = torch.as_tensor(dataset[0][0]).dtype == torch.uint8
        if raw != (transform is not None):
            needed = "uint8 images: pass a transform" if raw else "float images already: pass no transform"
            raise MetricError(f"the test set gives {needed}")
        self._images: Tensor | None = None
        self._queries: Tensor | None = None
        self._queries_of: weakref.ref[nn.Module] | None = None

    def __call__(self, model: nn.Module, exposed: Tensor) -> EvaluationResult:
        """Evaluate `model`, whose modules are afterwards in the modes they were in.

        Args:
            model: images (batch, 3, h, w) -> logits (batch, classes).
            exposed: (classes,) bool.

        Returns:
            Zero counts and a NaN loss if no class is exposed.
        """
        device = exposed.device if self.device is None else self.device
        chosen = torch.nonzero(exposed.cpu()[self.targets]).flatten()
        competing = exposed.to(device) if self.mask == "exposed" else torch.ones_like(exposed, device=device)
        confusion = torch.zeros(self.num_classes * self.num_classes, dtype=torch.int64, device=device)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        with _evaluating(model), torch.inference_mode(), self._autocast(device):
            queries = self._known_queries(model, device) if len(chosen) else None
            needs_images = queries is None or not getattr(model, "predicts_from_query", False)
            for indices in chosen.split(self.batch_size) if len(chosen) else ():
                targets = self.targets[indices].to(device)
                images = self._load(indices, device) if needs_images else None
                known = () if queries is None else (queries[indices.to(queries.device)],)
                logits = model(images, *known)
                logits = mask_logits(logits.float(), self._columns(competing, logits.shape[-1]))
                confusion.index_add_(0, targets * self.num_classes + logits.argmax(-1), torch.ones_like(targets))
                loss += nn.functional.cross_entropy(logits, targets, reduction="sum").double()
        mean = float(loss) / len(chosen) if len(chosen) else float("nan")
        return EvaluationResult(confusion.view(self.num_classes, -1).cpu().numpy(), mean)

    def _columns(self, competing: Tensor, columns: int) -> Tensor:
        """`competing` for a head that has grown to the classes seen so far only."""
        if columns > self.num_classes:
            raise MetricError(f"the model has {columns} logits, the evaluator num_classes={self.num_classes}")
        return competing[:columns]

    def _known_queries(self, model: nn.Module, device: torch.device) -> Tensor | None:
        """Frozen queries of all test images, computed once for a model, in data-set order; None for models without."""
        if not isinstance(model, Method) or type(model).query is Method.query:
            return None
        if self._queries_of is None or self._queries_of() is not model:
            batches = torch.arange(len(self.targets)).split(self.batch_size)
            rows = [row for indices in batches if (row := model.query(self._load(indices, device))) is not None]
            self._queries, self._queries_of = (torch.cat(rows) if rows else None), weakref.ref(model)
        return self._queries

    def _load(self, indices: Tensor, device: torch.device) -> Tensor:
        images = self._decoded(indices).to(device)
        return images if self.transform is None else self.transform(images)

    def _decoded(self, indices: Tensor) -> Tensor:
        if self._images is None:
            first = torch.as_tensor(self.dataset[0][0])
            if len(self.targets) * first.nbytes > CACHE_BYTES:
                return torch.cat(list(self._read(indices)))
            self._images = torch.cat(list(self._read(torch.arange(len(self.targets)))))
        return self._images[indices]

    def _read(self, indices: Tensor) -> Iterator[Tensor]:
        # Its own generator: iterating a loader draws a seed, by default from the generator that training uses.
        loader = DataLoader(
            Subset(self.dataset, indices.tolist()),
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(0),
            collate_fn=_first_of_each,
        )
        return iter(loader)

    def _autocast(self, device: torch.device) -> Any:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)


def _first_of_each(items: list[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(item[0]) for item in items])


def _single_labels(targets: Any, num_classes: int) -> Tensor:
    if len(targets) == 0:
        raise MetricError("the test set is empty; accuracy needs at least one image")
    labels = torch.as_tensor(np.asarray(list(targets)))
    if labels.ndim != 1 or labels.is_floating_point():
        raise MetricError(
            f"accuracy needs one integer class id an image, got targets of shape {tuple(labels.shape)} and type "
            f"{labels.dtype}; use mean average precision for several labels an image"
        )
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise MetricError(f"test label {int(outside[0])} is outside 0..{num_classes - 1}")
    return labels.to(torch.int64)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
