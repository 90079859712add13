"""How good frozen features are: a linear probe on a few images a class, by one command.

    python -m cl_prompts.backbones.probe images=FOLDER [backbone=vit_nano] [checkpoint=FILE]

Features of the first 40 training and 20 test images of each class, standardised, into a multinomial logistic
regression with C=0.1: the measure of the bundled backbone's card (there on CIFAR-100, which it never saw).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from pydantic import Field, ValidationError

from cl_prompts.backbones.build import load_backbone
from cl_prompts.backbones.frozen_vit import FrozenViT
from cl_prompts.errors import UserError
from scenarios.datasets import ImageDataset, load_dataset
from scenarios.datasets.image_folder import ImageFolderSettings
from scenarios.settings import Settings
from scenarios.transforms import EvalTransform

BATCH = 250


class ProbeSettings(Settings):
    """Keys of `python -m cl_prompts.backbones.probe key=value ...`."""

    images: str = Field(description="folder with train/<class>/* and test/<class>/*")
    backbone: str = Field("vit_nano", description="a file of configs/backbone")
    checkpoint: str | None = Field(None, description="its weights; null: as that file says")
    train_per_class: int = Field(40, ge=1, description="first training images used of each class")
    test_per_class: int = Field(20, ge=1, description="first test images used of each class")
    regularisation: float = Field(0.1, gt=0, description="C of the logistic regression; smaller: stronger")


def first_of_each_class(targets: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` entries of each class id, ascending, int64."""
    chosen = [np.flatnonzero(targets == label)[:count] for label in np.unique(targets)]
    return np.sort(np.concatenate(chosen))


def linear_probe(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], regularisation: float = 0.1
) -> float:
    """Accuracy 0..1 of a logistic regression on standardised features.

    Args:
        train: features float `(images, width)` and class ids `(images,)`.
        test: the same of the images it is judged on.
        regularisation: scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=300))
    probe.fit(*train)
    return float(probe.score(*test))


def features_of(backbone: FrozenViT, dataset: ImageDataset, chosen: np.ndarray, transform: EvalTransform) -> np.ndarray:
    """Class-token features of the chosen images, float32 `(images, width)`."""
    parts = np.array_split(chosen, max(1, -(-len(chosen) // BATCH)))
    return np.concatenate([backbone.query(transform(dataset.images(part))).float().numpy() for part in parts])


def probe(settings: ProbeSettings) -> float:
    """Accuracy 0..1 of the probe that the settings describe.

    Raises:
        UserError: unknown backbone, weights or images that cannot be read.
    """
    changes: dict[str, Any] = {} if settings.checkpoint is None else {"checkpoint": settings.checkpoint}
    backbone = load_backbone(settings.backbone, **changes)
    identity = backbone.identity
    side = identity["img_size"]
    transform = EvalTransform(side, identity["mean"], identity["std"], identity["interpolation"])
    parts = load_dataset("image_folder", ImageFolderSettings(root=settings.images), image_size=side)

    def read(dataset: ImageDataset, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = first_of_each_class(dataset.targets, count)
        return features_of(backbone, dataset, chosen, transform), dataset.targets[chosen]

    train, test = (read(*one) for one in zip(parts, (settings.train_per_class, settings.test_per_class), strict=True))
    return linear_probe(train, test, settings.regularisation)


def main(words: list[str] | None = None) -> int:
    """Print the accuracy in per cent; exit code 0, or 2 after one line of what is wrong."""
    words = sys.argv[1:] if words is None else words
    try:
        settings = ProbeSettings(**OmegaConf.to_container(OmegaConf.from_dotlist(words)))  # type: ignore[arg-type]
        accuracy = probe(settings)
    except ValidationError as error:
        for one in error.errors():
            key = ".".join(map(str, one["loc"]))
            print(f"error: {key}: {one['msg']}; keys: {', '.join(ProbeSettings.model_fields)}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{settings.backbone}: {100 * accuracy:.2f} % of the test images, linear probe with {settings.train_per_class} "
        f"training and {settings.test_per_class} test images a class, C={settings.regularisation:g}, "
        f"{torch.get_num_threads()} threads"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
