"""Image pipelines as data: the random steps of training by name, and what each paper did to its images.

A paper's pipeline has three parts that are set apart, because papers mix them: `protocol.augmentation=<name>` takes
its training steps, `protocol.eval_crop` and `backbone.normalisation` take the values that `PRESETS[name]` holds.
Interpolation and granularity are those of the code that produced the published numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Augmentation:
    """The random steps of training, in this order.

    Attributes:
        policy: AutoAugment of the image at its own size with this policy.
        smallest_area: a random rectangle of at least this share of the image's area becomes the square, bilinear; None:
            the square is made as in evaluation.
        crop: the square is padded with 4 black pixels and cropped back at random.
        flip: left and right are exchanged with probability one half.
    """

    policy: Literal["cifar10", "imagenet"] | None = None
    smallest_area: float | None = None
    crop: bool = False
    flip: bool = False


@dataclass(frozen=True)
class Preset:
    """What a paper's code does to its images.

    Attributes:
        training: the random steps.
        augment_per: `image` or `batch`, the value of `protocol.augment_per`.
        eval_crop: the value of `protocol.eval_crop`.
        interpolation: filter of the evaluation, the value of `backbone.interpolation`.
        normalisation: the value of `backbone.normalisation`; `none` leaves pixels in 0..1.
        source: whose code it is, in words.
        unverified: what is probable only, because that code was not at hand; empty where all was compared.
    """

    training: Augmentation
    augment_per: Literal["image", "batch"]
    eval_crop: Literal["resize", "centre", "resized_centre"]
    interpolation: Literal["bilinear", "bicubic"]
    normalisation: Literal["none", "dataset"]
    source: str
    unverified: str = ""


_INCEPTION = Augmentation(smallest_area=0.05, flip=True)


def _si_blurry(policy: Literal["cifar10", "imagenet"], data_sets: str) -> Preset:
    return Preset(
        training=Augmentation(policy, crop=True, flip=True),
        augment_per="batch",
        eval_crop="resize",
        interpolation="bilinear",
        normalisation="dataset",
        source="Moon et al., Online class incremental learning on stochastic blurry task boundary via mask and visual "
        f"prompt tuning, ICCV 2023, released code (Si-Blurry), {data_sets}; its random crop of ImageNet-R test images "
        "is left out: evaluation never draws",
    )


PRESETS = {
    "l2p": Preset(
        training=_INCEPTION,
        augment_per="image",
        eval_crop="resized_centre",
        interpolation="bicubic",
        normalisation="none",
        source="Wang et al., Learning to prompt for continual learning, CVPR 2022, and DualPrompt, ECCV 2022, in their "
        "PyTorch ports",
    ),
    "coda_prompt": Preset(
        training=Augmentation(smallest_area=0.08, flip=True),
        augment_per="image",
        eval_crop="resized_centre",
        interpolation="bilinear",
        normalisation="none",
        source="Smith et al., CODA-Prompt, CVPR 2023; its normalisation has mean 0 and deviation 1",
        unverified="smallest area of the crop, filter of the evaluation",
    ),
    "multi_lane": Preset(
        training=_INCEPTION,
        augment_per="image",
        eval_crop="resized_centre",
        interpolation="bicubic",
        normalisation="none",
        source="De Min et al., Less is more: summarizing patch tokens for efficient multi-label class-incremental "
        "learning, CoLLAs 2024, released code with its default options",
    ),
    "ranpac": Preset(
        training=_INCEPTION,
        augment_per="image",
        eval_crop="resized_centre",
        interpolation="bicubic",
        normalisation="none",
        source="McDonnell et al., RanPAC: random projections and pre-trained models for continual learning, NeurIPS "
        "2023, for its ViTs",
        unverified="smallest area of the crop, evaluation: taken from the toolbox that its code builds on",
    ),
    "mvp_cifar": _si_blurry("cifar10", "CIFAR-100"),
    "mvp_imagenet": _si_blurry("imagenet", "Tiny-ImageNet and ImageNet-R"),
}
"""The papers' pipelines by the name that `protocol.augmentation` may have."""

AUGMENTATIONS = {
    "none": Augmentation(),
    "crop": Augmentation(crop=True),
    "crop_flip": Augmentation(crop=True, flip=True),
    "resized_crop_flip": _INCEPTION,
    "autoaugment_cifar10": Augmentation("cifar10", crop=True, flip=True),
    "autoaugment_imagenet": Augmentation("imagenet", crop=True, flip=True),
    **{name: preset.training for name, preset in PRESETS.items()},
}
"""The random steps behind each name that `protocol.augmentation` may have."""
