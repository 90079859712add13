"""From settings to a frozen backbone: architecture, weights, and a record of both."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cl_prompts.backbones.checkpoints import file_sha256, load_checkpoint
from cl_prompts.backbones.frozen_vit import SUPPORTED, FrozenViT
from cl_prompts.backbones.settings import BackboneSettings, bundled_weights
from cl_prompts.config_folder import config_folder
from cl_prompts.errors import BackboneError


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


def build_backbone(settings: BackboneSettings, *, seed: int) -> FrozenViT:
    """The frozen backbone that `settings` describe, on the CPU, in float32.

    `seed` decides the weights of an `"untrained"` backbone and nothing else; the global random state is not touched.
    Nothing is downloaded. `.identity` records name, architecture, weight file (name and sha256) and input constants.

    Raises:
        BackboneError: unknown or unsupported architecture; a weight file that is missing, unreadable or does not fit.
    """
    untrained = settings.checkpoint == "untrained"
    frozen = FrozenViT(_architecture(settings, seed), identity=_identity(settings), untrained=untrained)
    if untrained:
        return frozen
    path = _weight_file(settings)
    load_checkpoint(frozen.model, path)
    frozen.identity |= {"checkpoint": path.name, "sha256": file_sha256(path)}
    return frozen


def _architecture(settings: BackboneSettings, seed: int) -> nn.Module:
    given = {key: getattr(settings, key) for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    sizes = {key: size for key, size in given.items() if size is not None} | {"img_size": settings.img_size}
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the GPUs, which this fork does not restore.
        torch.default_generator.manual_seed(seed)
        if settings.timm_name is None:
            return VisionTransformer(num_classes=0, **sizes)
        return _timm_model(settings.timm_name, sizes)


def _timm_model(name: str, sizes: dict[str, Any]) -> nn.Module:
    known = timm.list_models(pretrained=True)
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none; list them with timm.list_pretrained()"
        raise BackboneError(
            f"backbone.timm_name={name} is not known to timm {timm.__version__}; close matches: {close}"
        )
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **sizes)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(
            f"backbone.timm_name={name} cannot be built with {sizes} ({reason}); what works: {SUPPORTED}"
        ) from error


def _weight_file(settings: BackboneSettings) -> Path:
    if settings.checkpoint is None:
        raise BackboneError("backbone.checkpoint is null; give a weight file, 'bundled', or 'untrained'")
    if settings.checkpoint == "bundled":
        return bundled_weights(settings.name)
    return Path(settings.checkpoint).expanduser()


def _identity(settings: BackboneSettings) -> dict[str, Any]:
    keys = ("name", "timm_name", "img_size", "patch_size", "embed_dim", "depth", "num_heads")
    constants = {"mean": list(settings.mean), "std": list(settings.std), "interpolation": settings.interpolation}
    record = {key: getattr(settings, key) for key in keys}
    return record | constants | {"checkpoint": settings.checkpoint, "sha256": None}
