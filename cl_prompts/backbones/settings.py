"""Settings of a backbone and its input normalisation. Light: neither torch nor timm is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cl_prompts.backbones.records import candidates, find_record, record_lines
from cl_prompts.errors import BackboneError
from scenarios.settings import ChannelValues, Settings

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".npz")
"""Kinds of weight files that can be read."""

NOT_A_FILE = ("hub", "bundled", "untrained")
"""Values of `backbone.checkpoint` that are no path."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_WEIGHTS = Path(__file__).parent / "weights"
_NOT_GIVEN: Any = None
"""Default of keys that the record fills in before they are checked."""

_WITHOUT_RECORD = {"interpolation": "bicubic"}
"""What of the input is no matter of the weights alone."""

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
    checkpoint: str = Field(
        "hub",
        description="hub (cached, or downloaded once and pinned), path of a weight file, bundled (ships with the "
        "package) or untrained (random weights)",
    )
    mean: ChannelValues = Field(
        _NOT_GIVEN,
        description="mean of the input that the weights were trained with, images in 0..1; null: as in the record of "
        "timm_name",
        json_schema_extra={"allowed": "a list of 3 numbers, or null"},
    )
    std: ChannelValues = Field(
        _NOT_GIVEN,
        description="standard deviation that belongs to it; null: as in the record",
        json_schema_extra={"allowed": "a list of 3 numbers, or null"},
    )
    interpolation: Literal["bicubic", "bilinear"] = Field(
        _NOT_GIVEN,
        description="how images are resized; null: as in the record, bicubic where there is none",
        json_schema_extra={"allowed": "bicubic, bilinear or null"},
    )
    normalisation: Literal["checkpoint", "imagenet", "dataset", "none"] = Field(
        "checkpoint", description="constants images are normalised with: mean and std above, or other ones"
    )

    @field_validator("timm_name")
    @classmethod
    def _check_tag(cls, value: str | None) -> str | None:
        if value is not None and not _FULL_TAG.fullmatch(value):
            choices = candidates(value)
            if not choices:
                raise ValueError("names no weights; write model.weights, such as vit_base_patch16_224.orig_in21k")
            raise ValueError(
                "\n".join(["names no weights, and several belong to such a name; write one of", *record_lines(choices)])
            )
        return value

    @field_validator("mean", "std", "interpolation", mode="before")
    @classmethod
    def _from_record(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            return value
        name, key = info.data.get("timm_name"), str(info.field_name)
        record = find_record(name)
        if record is not None:
            return getattr(record.input, key)
        if key in _WITHOUT_RECORD or "timm_name" not in info.data:  # a wrong name is all there is to say
            return _WITHOUT_RECORD.get(key, (1.0, 1.0, 1.0))
        if name is None:
            raise ValueError("must be given where timm_name is null, as nothing else says what the weights expect")
        known = candidates(name)
        advice = ["; or take one of", *record_lines(known)] if known else [""]
        raise ValueError(f"must be given, as there is no record of {name}" + "\n".join(advice))

    @field_validator("std")
    @classmethod
    def _check_std(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError("every standard deviation must be above 0")
        return value

    @field_validator("checkpoint")
    @classmethod
    def _check_file(cls, value: str, info: ValidationInfo) -> str:
        name = info.data.get("name")
        if value == "hub" and "timm_name" in info.data:
            _check_hub(info.data["timm_name"])
        if value == "bundled" and name is not None and not bundled_weights(name).is_file():
            bundled = ", ".join(sorted(path.stem for path in _WEIGHTS.glob("*.safetensors")))
            raise ValueError(f"no weights are bundled for {name!r} (only for: {bundled}); give the path of a file")
        if value == "bundled" and info.data.get("timm_name") is not None:
            raise ValueError(
                f"the bundled weights of {name} are not those of {info.data['timm_name']}; choose a backbone=<name> "
                "that takes its weights from the hub, such as vit_base, or leave timm_name null"
            )
        if value not in NOT_A_FILE:
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


def has_weight_suffix(path: Path) -> bool:
    """The name of the file ends like a kind of weight file that can be read."""
    return path.name.lower().endswith(WEIGHT_SUFFIXES)


def _check_hub(timm_name: str | None) -> None:
    record = find_record(timm_name)
    if timm_name is None:
        raise ValueError("a plain ViT is on no hub; give the path of a file, bundled, or untrained for random weights")
    if record is None:
        raise ValueError(
            f"there is no record of {timm_name}; get its file (https://huggingface.co/timm/{timm_name}) and give the "
            "path, or untrained for random weights"
        )
    if record.by_hand is not None:
        raise ValueError(
            f"{timm_name} is not on the hub; get the file ({record.by_hand.file}) from {record.page} and give its "
            "path, or untrained for random weights"
        )


def _check_path(path: Path) -> None:
    if not has_weight_suffix(path):
        raise ValueError(
            f"{str(path)!r} is not a known kind of weight file; use one of {', '.join(WEIGHT_SUFFIXES)}, or hub, "
            "bundled or untrained"
        )
    if not path.is_file():
        raise ValueError(f"no file at {str(path)!r}; check the path, or set 'untrained' for random weights")
