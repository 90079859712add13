"""The training loop of the recipe: every update depends on the settings, the images and the number of samples seen.

So a checkpoint holds weights, moments, the average and that number, and what goes on from it ends with the same bits.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from cl_prompts.backbones.pretrain.settings import HARMLESS, PretrainSettings
from cl_prompts.backbones.pretrain.student import (
    Batch,
    Student,
    average_weight,
    learning_rate,
    parameter_groups,
    update_average,
)
from cl_prompts.backbones.pretrain.teacher import Targets
from cl_prompts.backbones.pretrain.views import cut, draw_crops, order_of
from cl_prompts.errors import BackboneError
from scenarios._atomic_files import atomic_file

CHECKPOINT = "checkpoint.pt"
Report = Callable[[int, dict[str, float]], None]
"""Called after every update with samples seen and the terms of the loss, means since the last call that showed them."""


class Pretraining:
    """A student, its optimizer and its average, somewhere between the first sample and the last.

    Attributes:
        seen: samples so far.
        seconds: time spent training so far, over all interruptions.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        images: np.ndarray,
        labels: np.ndarray,
        targets: Targets | None,
        *,
        content: str,
    ) -> None:
        """Start from random weights.

        Args:
            settings: the recipe.
            images: uint8 `(images, 3, height, width)`.
            labels: class ids, int64 `(images,)`.
            targets: features of a teacher, or None.
            content: sha256 of the images, which a checkpoint must agree with.
        """
        self.settings, self._images, self._targets = settings, images, targets
        self._labels = torch.from_numpy(labels)
        self._identity = {"recipe": settings.recipe(), "images": content}
        self.device = torch.device(settings.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            student = Student(settings, classes=int(labels.max()) + 1, teacher_width=targets.width if targets else None)
        self.student = student.to(self.device)
        groups: Any = parameter_groups(self.student, settings.weight_decay)
        self._optimizer = AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)
        self.average = {name: value.clone() for name, value in self.student.vit.state_dict().items()}
        self.seen, self.seconds = 0, 0.0
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    def run(self, report: Report, save: Callable[[], None], *, until: int | None = None) -> None:
        """Train to the last sample, or to `until`; `save` is called every `save_seconds` and at the end."""
        settings = self.settings
        saved = clock = time.monotonic()
        while self.seen < (settings.samples if until is None else until):
            report(self.seen, self._update())
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            if now - saved >= settings.save_seconds:
                save()
                saved = time.monotonic()
        save()

    def _update(self) -> dict[str, float]:
        settings = self.settings
        part = self.seen / settings.samples
        drop_patches = settings.drop_patches if part < settings.drop_until else 0.0
        chosen, crops = self._next()
        batch = self._batch(chosen, crops)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.seen, settings)
        low = settings.precision == "bf16"
        with torch.random.fork_rng(devices=[]):
            # The patches that are left out: keyed by the sample count, so that nothing has to be restored.
            torch.default_generator.manual_seed((settings.seed << 32) ^ self.seen)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                terms = self.student.losses(batch, settings, drop_patches=drop_patches)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise BackboneError(
                f"the loss is {loss.item()} after {self.seen:,} samples; lower lr={settings.lr:g}, or set "
                "precision=fp32"
            )
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), settings.clip)
        self._optimizer.step()
        update = self.seen // settings.batch
        update_average(self.average, self.student.vit, average_weight(update, settings))
        self.seen += settings.batch
        return {name: term.item() for name, term in terms.items()}

    def _next(self) -> tuple[np.ndarray, np.ndarray]:
        """The images of this update and their crops; batches run across the ends of passes."""
        count, start = len(self._images), self.seen
        chosen, crops = [], []
        while (taken := start - self.seen) < self.settings.batch:
            passed, place = divmod(start, count)
            order, drawn = self._of_pass(passed)
            rows = order[place : place + self.settings.batch - taken]
            chosen.append(rows)
            crops.append(drawn[rows])
            start += len(rows)
        return np.concatenate(chosen), np.concatenate(crops)

    def _of_pass(self, passed: int) -> tuple[np.ndarray, np.ndarray]:
        if self._order is None or self._order[0] != passed:
            count, seed = len(self._images), self.settings.seed
            crops = draw_crops(count, seed=seed, passed=passed, area=self.settings.crop_area)
            self._order = (passed, order_of(count, seed=seed, passed=passed), crops)
        return self._order[1:]

    def _batch(self, chosen: np.ndarray, crops: np.ndarray) -> Batch:
        settings, places = self.settings, torch.from_numpy(crops).to(self.device)
        # Scaled to -1..1, the input that the bundled weights are declared with.
        images = torch.from_numpy(self._images[chosen]).to(self.device).float().div_(127.5).sub_(1)
        class_tokens = patches = None
        if self._targets is not None:
            class_tokens, maps = (features.to(self.device) for features in self._targets.read(chosen))
            patches = cut(maps, places, settings.img_size // settings.patch_size).flatten(2).transpose(1, 2)
        labels = self._labels[torch.from_numpy(chosen)].to(self.device)
        return Batch(cut(images, places, settings.img_size), labels, class_tokens, patches)

    def save(self, folder: Path) -> None:
        """Write `checkpoint.pt`, whole or not at all."""
        state = {
            "identity": self._identity,
            "seen": self.seen,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self.average,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with atomic_file(folder / CHECKPOINT) as file:
            file.write(buffer.getbuffer())

    def load(self, folder: Path) -> bool:
        """Go on from `checkpoint.pt` where there is one.

        Raises:
            BackboneError: it is unreadable, or of another recipe or other images; says what differs.
        """
        path = folder / CHECKPOINT
        if not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            identity = state["identity"]
        except Exception as error:  # what a damaged file raises depends on where the damage is
            raise BackboneError(f"{path} cannot be read ({error}); delete it to start anew") from error
        self._refuse_other(path, identity)
        self.student.load_state_dict(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.seen, self.seconds = state["seen"], state["seconds"]
        return True

    def _refuse_other(self, path: Path, identity: dict[str, Any]) -> None:
        recipe, other = self._identity["recipe"], identity["recipe"]
        assert isinstance(recipe, dict)
        changes = [
            f"{key}={other.get(key)} there, {value} here" for key, value in recipe.items() if other.get(key) != value
        ]
        if identity["images"] != self._identity["images"]:
            changes.append("other images")
        if changes:
            raise BackboneError(
                f"{path} is of another recipe ({'; '.join(changes)}); give another output=, or the same keys "
                f"(only {', '.join(sorted(HARMLESS))} may change)"
            )

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights (or the last, where nothing is averaged) as bfloat16 under timm's key names."""
        source = self.average if self.settings.averaging else self.student.vit.state_dict()
        return {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in source.items()}
