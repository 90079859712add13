"""Features of images that never change, computed once and found again by later runs: `feature_cache=disk`.

A method that reads nothing but the frozen feature of an image needs each image to pass the backbone once, ever. With
the key on, all images of both parts of the data set pass it before the first batch, in the order of the data set and
in batches of `BATCH`, and nothing of the run depends on whether they were found or computed: numbers are the same with
a warm and a cold cache. They may differ in the last bits from those of `feature_cache=none`, whose features come in
batches of the stream: rounding in a ViT depends on the batch.

The name of a file is a hash of everything its numbers rest on: the pixels themselves, the input transform, weights and
architecture, precision, software, device and threads. What is found is compared with its checksum and made again where
it is damaged. The files can be deleted at any time between runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from cl_prompts.errors import DataError, StrategyError, UserError
from cl_prompts.runs.backbone_guard import tensor_sha256
from cl_prompts.runs.prepared import Prepared
from cl_prompts.runs.schema import RunConfig
from cl_prompts.runs.state_file import from_bytes, to_bytes
from cl_prompts.strategies.base import AUTOCAST
from cl_prompts.strategies.method import Method
from scenarios._atomic_files import atomic_file
from scenarios._locks import locked
from scenarios.datasets import ImageDataset
from scenarios.transforms import EvalTransform

BATCH = 64
"""Images that pass the backbone together, whatever the batches of stream and evaluation."""

SUFFIX = ".features"

_LAYOUT = "cl_prompts features 1"
_SPARE_BYTES = 50_000_000


def keep_features(config: RunConfig, prepared: Prepared) -> None:
    """Give strategy and evaluation the features of all images, where the key asks for it and the method allows it.

    A sentence for the reader of the results is added to `prepared.notices`.

    Raises:
        DataError: the folder cannot be written, or has too little space.
        StrategyError: the method's query is not the feature of the backbone.
    """
    if config.feature_cache == "none":
        return
    learner = prepared.learner
    strategy, notices = learner.strategy, prepared.notices
    if not strategy.model.predicts_from_query:
        notices.append(f"feature_cache={config.feature_cache}: {config.strategy_name} reads more than frozen features")
        return
    _check_query(strategy.model, learner.eval_transform, prepared.device)
    source = _Source(config, strategy.model, learner.eval_transform, prepared.device)
    evaluator = learner.evaluation.evaluator
    evaluator.logits.known_queries = source.features_of(prepared.data.test, notices)
    if strategy.needs.gradient and not strategy.preparation.are_fixed:
        notices.append(
            f"feature_cache={config.feature_cache}: training images change with protocol.augmentation="
            f"{config.protocol.augmentation}, so that features of test images alone are kept"
        )
        return
    strategy.known_features = source.features_of(prepared.data.train, notices)


def cache_folder(setting: str | None) -> Path:
    """`feature_cache_folder`, else the user's cache folder."""
    if setting is not None:
        return Path(setting).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("cl_prompts", appauthor=False) / "features"


def _check_query(method: Method, transform: EvalTransform, device: torch.device) -> None:
    """A method may call anything its query: the cache holds the feature of the backbone."""
    with torch.inference_mode():
        image = torch.arange(3 * transform.size**2, device=device).view(1, 3, transform.size, -1) % 255
        image = transform(image.to(torch.uint8))
        query = method.query(image)
        same = query is not None and torch.equal(query, method.backbone.query(image))
    if not same:
        raise StrategyError(
            f"feature_cache: the query of {type(method).__name__} is not the backbone's feature; set feature_cache=none"
        )


class _Source:
    """What turns images into features in one run."""

    def __init__(self, config: RunConfig, method: Method, transform: EvalTransform, device: torch.device) -> None:
        self._method = method
        self._transform = transform
        self._device = device
        self._setting = config.feature_cache
        self._autocast = AUTOCAST[config.protocol.precision]
        self._folder = cache_folder(config.feature_cache_folder)
        weights = method.backbone.state_dict()
        self._basis = {
            "layout": _LAYOUT,
            "batch": BATCH,
            "backbone": config.backbone.model_dump(mode="json", exclude={"name", "checkpoint"}),
            "weights": {name: tensor_sha256(weights[name]) for name in sorted(weights)},
            "transform": {**vars(transform), "kind": type(transform).__name__},
            "precision": config.protocol.precision,
            **_platform(device),
        }

    def features_of(self, dataset: ImageDataset, notices: list[str]) -> Tensor:
        """Features `(images, width)` on the device, in the order of the data set."""
        key = _hash({**self._basis, "pixels": _pixels_sha256(dataset), "images": len(dataset)})
        place = self._folder / (key + SUFFIX)
        with self._clear_errors():
            found = _read(place, key, [])
            if found is None:
                place.parent.mkdir(parents=True, exist_ok=True)
                with locked(place.with_suffix(".lock"), purpose=f"computing the same features into {place.name}"):
                    found = _read(place, key, notices)  # another process may have made them meanwhile
                    if found is None:
                        found = self._computed(dataset)
                        self._write(place, key, found)
        return found.to(self._device)

    @torch.no_grad()
    def _computed(self, dataset: ImageDataset) -> Tensor:
        rows = []
        autocast = nullcontext() if self._autocast is None else torch.autocast(self._device.type, dtype=self._autocast)
        with autocast:
            for positions in torch.arange(len(dataset)).split(BATCH):
                images = self._transform(dataset.images(positions).to(self._device))
                query = self._method.query(images)
                assert query is not None
                rows.append(query.cpu())
        return torch.cat(rows)

    def _write(self, place: Path, key: str, features: Tensor) -> None:
        free = shutil.disk_usage(place.parent).free
        if free < features.nbytes + _SPARE_BYTES:
            raise DataError(
                f"feature_cache={self._setting}: features need {features.nbytes / 1e6:,.0f} MB, {place.parent} has "
                f"{free / 1e6:,.0f} MB free; name another folder in feature_cache_folder, or set feature_cache=none"
            )
        for left_over in place.parent.glob(f".{place.name}.*"):  # of a process that was killed
            left_over.unlink()
        content = to_bytes({"key": key, "sha256": tensor_sha256(features), "features": features})
        with atomic_file(place) as file:
            file.write(content)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"feature_cache={self._setting}: {error.filename or self._folder}: {error.strerror or error}; name a "
                "folder that can be written in feature_cache_folder, or set feature_cache=none"
            ) from error


def _read(place: Path, key: str, notices: list[str]) -> Tensor | None:
    """The features as they were written; None where there are none, or, with a notice, where they are damaged."""
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        return None
    try:
        state = from_bytes(content)
        features = state["features"]
        if state["key"] == key and tensor_sha256(features) == state["sha256"]:
            return features
    except (UserError, KeyError, TypeError, AttributeError):
        pass
    notices.append(f"kept features were damaged and have been made again ({place})")
    return None


def _platform(device: torch.device) -> dict[str, Any]:
    """What beside data and weights decides about the last bits of a feature."""
    on_gpu = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": None if on_gpu else torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
    }


def _pixels_sha256(dataset: ImageDataset) -> str:
    """Of the decoded pixels: identities of large data sets cover names and sizes of files alone."""
    digest = hashlib.sha256(str(dataset.image_shape).encode())
    for positions in torch.arange(len(dataset)).split(BATCH):
        digest.update(dataset.images(positions).numpy().data)
    return digest.hexdigest()


def _hash(basis: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()
