"""`load_run`: the model of a run that was saved, for predictions and for learning on, without its data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import DataError, UserError
from cl_prompts.evaluation.logits import evaluating
from cl_prompts.masks import mask_logits
from cl_prompts.runs.build import build_run_backbone, build_strategy, check_device
from cl_prompts.runs.checkpoints import CheckpointStore
from cl_prompts.runs.continuing import require_run, saved_config
from cl_prompts.runs.directory import RunDirectory
from cl_prompts.runs.identity import SavedContent, saved_content
from cl_prompts.runs.image_inputs import ImageInput
from cl_prompts.runs.predicted import Predictions, joined
from cl_prompts.runs.schema import RunConfig
from cl_prompts.strategies.base import AUTOCAST, ContinualStrategy
from cl_prompts.strategies.state import restore_learning
from scenarios.datasets._decoding import Decoder
from scenarios.transforms import EvalTransform


def load_run(
    path: str | PathLike[str], *, device: str = "cpu", weights: str | PathLike[str] | None = None
) -> LoadedRun:
    """The model of a run's newest checkpoint.

    The folder is all that is needed, beside the weights of the backbone, which are built or read as the run did and
    have to be the same bytes. Nothing in the folder can execute code.

    Args:
        path: folder of a run.
        device: `cpu`, `cuda` or `cuda:N`.
        weights: weight file of the backbone where it lies elsewhere than the run found it.

    Raises:
        UserError: no run, no checkpoint that can be read, other weights than those of the run.
    """
    elsewhere = None if weights is None else str(Path(weights).expanduser())
    return read_run(Path(path).expanduser(), device, elsewhere, warnings.warn)


def read_run(folder: Path, device: str, weights: str | None, warn: Callable[[str], None]) -> LoadedRun:
    """As `load_run`; `warn` is told about checkpoints that were passed over."""
    require_run("path", folder)
    target = check_device(device)
    config = saved_config(folder, weights=weights)
    state = CheckpointStore(RunDirectory(folder).checkpoints).load(warn)
    if state is None:
        raise UserError(f"{folder}: nothing was saved there yet, so there is no model to load; wait, or resume the run")
    try:
        content = saved_content(state)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    backbone = build_run_backbone(config.model_copy(update={"progress": "none"}))
    _refuse_other_weights(backbone, content, folder)
    try:
        transform = EvalTransform(**dict(content.input))
        with warnings.catch_warnings():
            # Avalanche warns that nothing of its own prints, as intended.
            warnings.filterwarnings("ignore", message="No loggers specified")
            strategy = build_strategy(config, backbone, len(content.classes), transform, target)
        restore_learning(strategy, state["strategy"])
        _refuse_other_classes(strategy, content)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except Exception as error:  # a state is nested data of any kind, and what a wrong one raises depends on where
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the checkpoint does not fit the configuration beside it ({reason})") from error
    return LoadedRun(folder, config, strategy, content)


def _refuse_other_weights(backbone: FrozenViT, content: SavedContent, folder: Path) -> None:
    found = backbone.identity["sha256"]
    if found != content.backbone:
        raise UserError(
            f"{folder}: the run used weights with sha256 {content.backbone}, {backbone.identity['checkpoint']} has "
            f"{found}; give the right file with weights="
        )


def _refuse_other_classes(strategy: ContinualStrategy, content: SavedContent) -> None:
    exposed = strategy.exposed
    if exposed.dtype != torch.bool or exposed.shape != (len(content.classes),):
        raise UserError(
            f"the checkpoint says of {tuple(exposed.shape)} classes whether they were seen, the run has "
            f"{len(content.classes)}; take another checkpoint"
        )


class LoadedRun:
    """A model that was trained in a run.

    Attributes:
        folder: of the run.
        config: its configuration.
        content: what the checkpoint says of stream, weights and data.
        strategy: the Avalanche strategy with its method, classes and optimizer moments as saved. It learns on with
            `strategy.train(experience)` of a benchmark of your own, whose labels are class ids of `class_names`. It
            begins a new stream there: its place in that of the run, and a memory of past samples, which holds places
            and no images, are not continued; `resume=` on the command line does that.
        class_names: one name a class id.
        multi_label: an image may have several labels.
    """

    def __init__(self, folder: Path, config: RunConfig, strategy: ContinualStrategy, content: SavedContent) -> None:
        self.folder = folder
        self.config = config
        self.strategy = strategy
        self.content = content
        self.class_names = tuple(content.classes)
        self.multi_label = config.scenario.multi_label
        self._transform = EvalTransform(**dict(content.input))

    def __repr__(self) -> str:
        seen = f"{int(self.exposed.sum())} of {len(self.class_names)} classes"
        return f"LoadedRun({self.folder}: {self.config.strategy_name}, {self.samples_seen:,} samples, {seen})"

    @property
    def exposed(self) -> Tensor:
        """Classes seen in the stream so far, bool `(classes,)`; no other is ever predicted."""
        return self.strategy.exposed

    @property
    def samples_seen(self) -> int:
        """Stream samples that the model has learnt from."""
        return self.strategy.samples_seen

    def images(self, images: Any) -> ImageInput:
        """Images in any form of `predict`, decoded as the data set of the run was."""
        return ImageInput(images, Decoder(self.content.decoding.size, self.content.decoding.interpolation))

    def predict(self, images: Any, *, skip_unreadable: bool = False) -> Predictions:
        """Probabilities of images, which are decoded and normalised as those of the run.

        Args:
            images: a path, a folder, a list of paths, PIL images, uint8 arrays `(height, width, 3)` or
                `(n, height, width, 3)`, or uint8 tensors `(3, height, width)` or `(n, 3, height, width)`.
            skip_unreadable: leave out what cannot be read, and name it in the result.

        Raises:
            DataError: another form, a path that leads nowhere, an image that cannot be read.
        """
        given = self.images(images)
        parts = list(self.predict_batches(given, skip_unreadable=skip_unreadable))
        return joined(parts) if parts else self._predicted([], torch.zeros(0, len(self.class_names)), [])

    def predict_batches(self, images: ImageInput, *, skip_unreadable: bool = False) -> Iterator[Predictions]:
        """Predictions of a part of the images after the other, so that any number of them fits into memory.

        Raises:
            DataError: an image that cannot be read.
        """
        for batch in images.batches(self.config.protocol.eval_batch):
            if batch.skipped and not skip_unreadable:
                more = f" (and {len(batch.skipped) - 1} of those near it)" if len(batch.skipped) > 1 else ""
                raise DataError(
                    f"{batch.skipped[0]}{more}; repair or remove it, or set skip_unreadable=true to leave out such "
                    "images"
                )
            yield self._predicted(batch.names, self.probabilities(batch.images), batch.skipped)

    def probabilities(self, images: Tensor) -> Tensor:
        """Float32 `(n, classes)` on the CPU of uint8 `(n, 3, size, size)`, images as the data set gives them."""
        strategy = self.strategy
        columns = torch.zeros(0, len(self.class_names))
        if not len(images):
            return columns
        dtype = AUTOCAST[self.config.protocol.precision]
        autocast = nullcontext() if dtype is None else torch.autocast(strategy.device.type, dtype=dtype)
        with evaluating(strategy.model), torch.inference_mode(), autocast:
            logits = strategy.model(self._transform(images.to(strategy.device))).float()
        masked = mask_logits(logits, strategy.exposed)
        return (masked.sigmoid() if self.multi_label else masked.softmax(-1)).cpu()

    def _predicted(self, names: list[str], probabilities: Tensor, skipped: list[str]) -> Predictions:
        exposed = np.array(self.exposed.cpu())
        return Predictions(
            probabilities.numpy(), self.class_names, exposed, self.multi_label, tuple(names), tuple(skipped)
        )
