"""`ModelLogits`: logits of a model on a test set, computing nothing twice that cannot have changed.

Frozen queries are computed once for a run. Of a learner that grows by parts (`Method.parts`), such as the lanes of
MULTI-LANE, a part runs again only if its state changed: finished parts are evaluated once, for good.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cl_prompts.evaluation.images import TestSetImages
from cl_prompts.strategies.method import Method


class ModelLogits:
    """Logits of one model after the other on the same images.

    Args:
        images: the test set.
        autocast: dtype of autocast, or None.

    Attributes:
        known_queries: (images, width), what `Method.query` gives for all images in their order, where it is known.
    """

    def __init__(self, images: TestSetImages, autocast: torch.dtype | None = None) -> None:
        self.images = images
        self.autocast = autocast
        self.known_queries: Tensor | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._queries: Tensor | None = None
        self._states: list[str] = []
        self._outputs: list[Tensor] = []
        self._groups: list[list[int]] = []

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores: which parts were evaluated together, in which state; no outputs."""
        return {"groups": [list(group) for group in self._groups], "states": list(self._states)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken: known parts run again as they ran then.

        In the same company, as matrices of other shapes round differently.
        """
        self._states, self._groups = list(state["states"]), [list(group) for group in state["groups"]]
        self._outputs, self._model = [], None

    def of(
        self, model: nn.Module, positions: Tensor, device: torch.device, parts: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(positions, float32 logits (batch, classes) on `device`) of the images asked for, in evaluation mode.

        Module modes are restored at the end and no random state is drawn from. Of a learner that grows by parts, the
        argument puts together the first ones alone: the learner as it was before the others came.
        """
        if not len(positions):
            return
        with evaluating(model):
            # Contexts of torch are closed before a yield: they would hold for the reader, too.
            with torch.inference_mode(), self._autocast(device):
                if self._model is None or self._model() is not model:
                    if self._model is not None:
                        self._states, self._outputs, self._groups = [], [], []
                    self._queries = self._query_all(model, device)
                    self._model = weakref.ref(model)
                has_parts = isinstance(model, Method) and self._refresh_parts(model, device)
            for batch in positions.split(self.images.batch_size):
                with torch.inference_mode(), self._autocast(device):
                    logits = self._combined(model, batch, parts) if has_parts else self._whole(model, batch, device)
                    logits = logits.float()
                yield batch, logits

    def _whole(self, model: nn.Module, batch: Tensor, device: torch.device) -> Tensor:
        known = () if self._queries is None else (self._queries[batch.to(self._queries.device)],)
        needs_images = not known or not getattr(model, "predicts_from_query", False)
        return model(self.images.load(batch, device) if needs_images else None, *known)

    def _combined(self, model: nn.Module, batch: Tensor, parts: int | None) -> Tensor:
        assert isinstance(model, Method)
        here = batch.to(self._outputs[0].device)
        return model.combine(
            [output[here] for output in self._outputs[:parts]], None if self._queries is None else self._queries[here]
        )

    def _query_all(self, model: nn.Module, device: torch.device) -> Tensor | None:
        """Frozen queries of all test images, in data-set order; None for models without."""
        if not isinstance(model, Method) or type(model).query is Method.query:
            return None
        if self.known_queries is not None:
            return self.known_queries.to(device)
        rows = [model.query(self.images.load(batch, device)) for batch in self.images.batches()]
        known = [row for row in rows if row is not None]
        return torch.cat(known) if known else None

    def _refresh_parts(self, model: Method, device: torch.device) -> bool:
        """Bring the outputs of all parts up to date."""
        found = model.parts()
        if found is None:
            return False
        states = [repr(state) for state in found]
        if len(self._outputs) < len(self._states):
            self._bring_back(model, device)
        known = self._states[: len(states)] + [""] * (len(states) - len(self._states))
        stale = [number for number, state in enumerate(states) if state != known[number]]
        if stale:
            kept = dict(enumerate(self._outputs[: len(states)])) | self._run(model, stale, device)
            self._outputs = [kept[number] for number in range(len(states))]
            self._states = states
            self._groups = [group for group in self._groups if not set(group) <= set(stale)] + [stale]
        return True

    def _bring_back(self, model: Method, device: torch.device) -> None:
        """After a resume: outputs of the parts that were known, computed as they were then."""
        outputs: dict[int, Tensor] = {}
        for group in self._groups:
            outputs |= self._run(model, group, device)
        self._outputs = [outputs[number] for number in range(len(self._states))]

    def _run(self, model: Method, numbers: Sequence[int], device: torch.device) -> dict[int, Tensor]:
        """Output of each of these parts for all images: later evaluations may ask for any of them."""
        rows: list[list[Tensor]] = [[] for _ in numbers]
        for batch in self.images.batches():
            outputs = model.part_outputs(self.images.load(batch, device), numbers)
            for one, output in zip(rows, outputs, strict=True):
                one.append(output)
        return {number: torch.cat(found) for number, found in zip(numbers, rows, strict=True)}

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
