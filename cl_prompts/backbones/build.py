"""From settings to a frozen backbone: architecture, weights, and a record of both."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
import yaml
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cl_prompts.backbones.checkpoints import load_checkpoint
from cl_prompts.backbones.frozen_vit import FrozenViT
from cl_prompts.backbones.hub import Hub
from cl_prompts.backbones.records import find_record
from cl_prompts.backbones.resolve import resolve_weights
from cl_prompts.backbones.settings import BackboneSettings
from cl_prompts.backbones.supported import SUPPORTED
from cl_prompts.config_folder import config_folder
from cl_prompts.errors import BackboneError
from scenarios.pins import Pins


def load_backbone(name: str, *, seed: int = 0, **changes: Any) -> FrozenViT:
    """The frozen backbone of `configs/backbone/<name>.yaml`, as `backbone=<name>` takes it.

    Args:
        name: a file of that folder, such as `vit_nano`, whose weights ship with the package.
        seed: of the weights of an `"untrained"` backbone.
        changes: keys of that file with other values, such as `checkpoint="/path/to/weights.safetensors"`.

    Raises:
        BackboneError: no such file, a wrong value, or as `build_backbone`.
    """
    folder = config_folder() / "backbone"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise BackboneError(f"backbone {name!r} is unknown; {guess}choose one of {', '.join(names)}")
    record = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    try:
        settings = BackboneSettings(**record | changes)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BackboneError(
            f"backbone {name!r}, {key or 'settings'}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
    return build_backbone(settings, seed=seed)


def build_backbone(
    settings: BackboneSettings, *, seed: int, hub: Hub | None = None, pins: Pins | None = None
) -> FrozenViT:
    """The frozen backbone that `settings` describe, on the CPU, in float32.

    `.identity` records name, architecture, weight file (name, sha256, what that was compared with, hub revision) and
    input constants.

    Args:
        settings: which architecture, weights and input.
        seed: of the weights of an `"untrained"` backbone and of nothing else; the global random state is not touched.
        hub: where weights are found and downloaded; None: the usual hub and its cache.
        pins: hashes of files seen before; None: those of this user.

    Raises:
        BackboneError: unknown or unsupported architecture; a weight file that is missing, unreadable, of another hash
            than recorded, or does not fit; the hub is out of reach.
        DataError: a weight file of another hash than the one seen first.
    """
    untrained = settings.checkpoint == "untrained"
    # Before the file, which may be a download: what cannot be built is known at once.
    frozen = FrozenViT(_architecture(settings, seed), identity=_identity(settings), untrained=untrained)
    weights = resolve_weights(settings, hub=hub, pins=pins)
    if weights is None:
        return frozen
    load_checkpoint(frozen.model, weights.path)
    weights.keep(pins)
    frozen.identity |= {
        "checkpoint": weights.path.name,
        "sha256": weights.sha256,
        "trust": weights.trust,
        "revision": weights.revision,
    }
    return frozen


def _architecture(settings: BackboneSettings, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the GPUs, which this fork does not restore.
        torch.default_generator.manual_seed(seed)
        sizes: dict[str, Any] = {key: size for key, size in _sizes(settings).items() if size is not None}
        if settings.timm_name is None:
            return VisionTransformer(num_classes=0, **sizes)
        return _timm_model(settings.timm_name, sizes)


def _sizes(settings: BackboneSettings) -> dict[str, int | None]:
    """What shapes the model; None: as timm's model of that name has it."""
    sizes = {key: getattr(settings, key) for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    record = find_record(settings.timm_name)
    if record is not None and sizes["num_heads"] is None:
        sizes["num_heads"] = record.num_heads
    return sizes


def _timm_model(name: str, sizes: dict[str, Any]) -> nn.Module:
    if find_record(name) is not None:
        # The model alone: a tag of weights that timm does not serve is none of its own.
        return _created(name, name.split(".", 1)[0], sizes)
    known = timm.list_models(pretrained=True)
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none; list them with timm.list_pretrained()"
        raise BackboneError(
            f"backbone.timm_name={name} is not known to timm {timm.__version__}; close matches: {close}"
        )
    return _created(name, name, sizes)


def _created(name: str, model: str, sizes: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(model, pretrained=False, num_classes=0, **sizes)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(
            f"backbone.timm_name={name} cannot be built with {sizes} ({reason}); what works: {SUPPORTED}"
        ) from error


def _identity(settings: BackboneSettings) -> dict[str, Any]:
    names = {"name": settings.name, "timm_name": settings.timm_name}
    constants = {"mean": list(settings.mean), "std": list(settings.std), "interpolation": settings.interpolation}
    weights = {"checkpoint": settings.checkpoint, "sha256": None, "trust": None, "revision": None}
    return names | _sizes(settings) | constants | weights
