"""Settings of the pretraining recipe. Light: neither torch nor timm is imported."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cl_prompts.errors import BackboneError
from scenarios.settings import Settings
from scenarios.words import help_of, settings_of_words

COMMAND = "python -m cl_prompts.backbones.pretrain"

HARMLESS = frozenset({"images", "output", "teacher_checkpoint", "save_seconds", "threads", "device", "progress"})
"""Keys that may change between a checkpoint and the command that goes on from it: no weight depends on them."""


class PretrainSettings(Settings):
    """Keys of `python -m cl_prompts.backbones.pretrain key=value ...`."""

    images: str = Field(description="folder with one folder of images a class; all of them are trained on")
    output: str = Field(description="folder of the checkpoint, the targets, the curve and the weights")

    img_size: int = Field(32, ge=4, description="side of the square input in pixels")
    patch_size: int = Field(4, ge=1, description="side of a patch in pixels")
    embed_dim: int = Field(192, ge=1, description="width of a token")
    depth: int = Field(6, ge=1, description="number of blocks")
    num_heads: int = Field(3, ge=1, description="attention heads")

    teacher: str | None = Field(None, description="timm tag of a Vision Transformer to learn from; null: none")
    teacher_checkpoint: str | None = Field(None, description="its weight file; null: as its record says")
    teacher_size: int = Field(224, ge=16, description="side to which images are enlarged for the teacher")
    features_weight: float = Field(10.0, ge=0, allow_inf_nan=False, description="weight of the features' loss")
    labels_weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="weight of the cross-entropy; 0: no labels"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="smoothing of the labels")

    samples: int = Field(1_200_000, ge=1, description="images to learn from, repetitions counted")
    batch: int = Field(256, ge=1, description="images an update")
    lr: float = Field(1.5e-3, gt=0, allow_inf_nan=False, description="highest learning rate; a cosine to 0")
    warmup: int = Field(12_000, ge=0, description="samples over which the learning rate rises")
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False, description="weight decay of matrices (AdamW)")
    clip: float = Field(1.0, gt=0, description="largest norm of a gradient")
    crop_area: float = Field(0.5, gt=0, le=1, description="smallest part of an image's area that a crop keeps")
    drop_patches: float = Field(0.5, ge=0, lt=1, description="part of the patches left out of a training image")
    drop_until: float = Field(0.7, ge=0, le=1, description="part of the training after which no patch is left out")
    averaging: float = Field(0.999, ge=0, lt=1, description="decay of the weight average that is kept; 0: none")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of the passes; weights are float32")
    seed: int = Field(0, ge=0, lt=2**63, description="root of every random draw")

    device: str = Field("cpu", description="cpu, cuda or cuda:N")
    threads: int | None = Field(None, ge=1, description="threads of the processor; null: as torch decides")
    save_seconds: float = Field(120.0, ge=0, description="seconds between checkpoints")
    progress: Literal["plain", "none"] = Field("plain", description="what the terminal shows")

    @model_validator(mode="after")
    def _check(self) -> PretrainSettings:
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size={self.img_size} is not a multiple of patch_size={self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if not self.learns_features and not self.labels_weight:
            raise ValueError("nothing to learn from: set teacher=, or labels_weight above 0")
        if self.teacher is None and self.teacher_checkpoint is not None:
            raise ValueError("teacher_checkpoint is set but no teacher; set teacher= to its timm tag")
        return self

    @property
    def learns_features(self) -> bool:
        """Whether there is a teacher whose features count."""
        return self.teacher is not None and self.features_weight > 0

    def recipe(self) -> dict[str, Any]:
        """The keys that decide the weights, JSON-ready."""
        return self.model_dump(mode="json", exclude=set(HARMLESS))


def read_words(words: list[str]) -> PretrainSettings:
    """Settings from words `key=value`.

    Raises:
        BackboneError: a word that is none, an unknown key, a wrong value; all problems, one line each.
    """
    return settings_of_words(words, PretrainSettings, COMMAND, BackboneError)


def help_text() -> str:
    """Every key with its default and meaning."""
    return help_of(PretrainSettings, COMMAND)
