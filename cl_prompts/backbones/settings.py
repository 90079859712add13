"""Settings of a backbone and its input normalisation. Light: neither torch nor timm is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cl_prompts.errors import BackboneError
from scenarios.settings import ChannelValues, Settings

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""Kinds of weight files that can be read."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_WEIGHTS = Path(__file__).parent / "weights"
_FULL_TAG = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")


class BackboneSettings(Settings):
    """Schema of `configs/backbone/<name>.yaml`: which Vision Transformer, which weights, which input."""

    name: str = Field(description="name of this backbone: the file in configs/backbone")
    timm_name: str | None = Field(
        None, description="full timm tag, model.weights; null: a plain ViT of the four sizes below"
    )
    img_size: int = Field(ge=1, description="side of the square input in pixels; positions are resampled to it")
    patch_size: int | None = Field(None, ge=1, description="side of a patch in pixels; null: as in timm_name")
    embed_dim: int | None = Field(None, ge=1, description="width of a token; null: as in timm_name")
    depth: int | None = Field(None, ge=1, description="number of blocks; null: as in timm_name")
    num_heads: int | None = Field(None, ge=1, description="attention heads; null: as in timm_name")
    checkpoint: str | None = Field(
        None, description="path of a weight file, 'bundled' (ships with the package), or 'untrained' (random weights)"
    )
    mean: ChannelValues = Field(description="mean of the input that the weights were trained with, images in 0..1")
    std: ChannelValues = Field(description="standard deviation that belongs to it")
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="how images are resized")
    normalisation: Literal["checkpoint", "imagenet", "dataset", "none"] = Field(
        "checkpoint", description="constants images are normalised with: mean and std above, or other ones"
    )

    @field_validator("timm_name")
    @classmethod
    def _check_tag(cls, value: str | None) -> str | None:
        if value is not None and not _FULL_TAG.fullmatch(value):
            raise ValueError(
                f"{value!r} does not name its weights: write model.weights, such as vit_base_patch16_224.orig_in21k"
            )
        return value

    @field_validator("std")
    @classmethod
    def _check_std(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError("every standard deviation must be above 0")
        return value

    @field_validator("checkpoint")
    @classmethod
    def _check_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        name, timm_name = info.data.get("name"), info.data.get("timm_name")
        if value is None:
            wanted = (
                f"the weight file of {timm_name} (https://huggingface.co/timm/{timm_name})" if timm_name else "a file"
            )
            raise ValueError(f"no weights given: set it to the path of {wanted}, or to 'untrained' for random weights")
        if value == "bundled" and name is not None and not bundled_weights(name).is_file():
            bundled = ", ".join(sorted(path.stem for path in _WEIGHTS.glob("*.safetensors")))
            raise ValueError(f"no weights are bundled for {name!r} (only for: {bundled}); give the path of a file")
        if value not in ("bundled", "untrained"):
            _check_path(Path(value).expanduser())
        return value

    @model_validator(mode="after")
    def _check_architecture(self) -> BackboneSettings:
        sizes = {key: getattr(self, key) for key in ("patch_size", "embed_dim", "depth", "num_heads")}
        absent = [key for key, size in sizes.items() if size is None]
        if self.timm_name is None and absent:
            raise ValueError(f"without timm_name the architecture must be given: set {', '.join(absent)}")
        if self.embed_dim and self.num_heads and self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        patch_size = self.patch_size or _patch_in_name(self.timm_name)
        if patch_size and self.img_size % patch_size:
            raise ValueError(
                f"img_size={self.img_size} is not a multiple of the patch size {patch_size}; "
                f"use {self.img_size // patch_size * patch_size or patch_size}"
            )
        return self


def bundled_weights(name: str) -> Path:
    """Where the weight file that ships for backbone `name` lies (or would lie)."""
    return _WEIGHTS / f"{Path(name).name}.safetensors"


def normalisation(
    settings: BackboneSettings, dataset_constants: tuple[ChannelValues, ChannelValues] | None
) -> tuple[ChannelValues, ChannelValues]:
    """Mean and standard deviation that images in 0..1 are normalised with, three floats each.

    `dataset_constants` are the data set's own (mean, std), None if it has none; read only where
    `settings.normalisation` is `"dataset"`.

    Raises:
        BackboneError: the data set's constants are asked for and it has none.
    """
    if settings.normalisation == "dataset" and dataset_constants is None:
        raise BackboneError(
            "backbone.normalisation=dataset, but this data set has no constants of its own; "
            "use checkpoint, imagenet or none"
        )
    constants = {
        "checkpoint": (settings.mean, settings.std),
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "dataset": dataset_constants or (settings.mean, settings.std),
        "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }
    return constants[settings.normalisation]


def _patch_in_name(timm_name: str | None) -> int | None:
    found = re.search(r"patch(\d+)", timm_name or "")
    return int(found.group(1)) if found else None


def _check_path(path: Path) -> None:
    if path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise ValueError(f"{str(path)!r} is not a known kind of weight file; use one of {', '.join(WEIGHT_SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"no file at {str(path)!r}; check the path, or set 'untrained' for random weights")
