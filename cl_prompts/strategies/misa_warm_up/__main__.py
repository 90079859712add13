"""Command line of the warm-up: reads the images, trains, writes the prompts with what they were made of."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cl_prompts.backbones import FrozenViT, load_backbone
from cl_prompts.errors import StrategyError, UserError
from cl_prompts.prompts.files import save_prompts
from cl_prompts.prompts.forgetting_aware import forgetting_aware_step
from cl_prompts.prompts.general_and_experts import GeneralAndExperts, Place
from cl_prompts.strategies.misa_warm_up.learner import WarmUpLearner
from cl_prompts.strategies.misa_warm_up.settings import WarmUpSettings, help_text, read_words
from cl_prompts.strategies.misa_warm_up.sources import divide, held_out_batches, stream_batches
from scenarios.datasets import load_dataset
from scenarios.datasets.image_folder import ImageFolderSettings
from scenarios.transforms import TrainTransform

EVERY = 20
"""Updates between two lines on the terminal."""


def main(words: list[str] | None = None) -> int:
    """Warm prompts up; exit code 0, or 2 after one line of what is wrong, or 130 interrupted."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0
    try:
        settings = read_words(words)
        _warm_up(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _warm_up(settings: WarmUpSettings) -> None:
    output = Path(settings.output).expanduser()
    if not output.parent.is_dir():
        raise StrategyError(f"output={settings.output}: there is no folder {output.parent}; make it first")
    changes = {} if settings.checkpoint is None else {"checkpoint": settings.checkpoint}
    backbone = load_backbone(settings.backbone, seed=settings.seed, **changes).to(settings.device)
    side = backbone.model.patch_embed.img_size[0]
    chosen = ImageFolderSettings(root=settings.images, size=side, test_pct=1, allow_untested_classes=True)
    # What the data set calls its test part is trained on as well.
    parts = load_dataset("image_folder", chosen, image_size=side)
    images = torch.cat([part.images(np.arange(len(part))) for part in parts])
    labels = np.concatenate([part.targets for part in parts])
    prompts = train(settings, backbone, images, labels)
    kept = {"general_prompt": prompts.general_prompt, "expert_prompts": prompts.expert_prompts}
    metadata = {
        "recipe": json.dumps(settings.recipe()),
        "images": str(parts[0].identity["sha256"]),
        "backbone": str(backbone.identity.get("sha256")),
    }
    save_prompts(output, kept, metadata)
    _say(settings, f"written: {output}")


def train(settings: WarmUpSettings, backbone: FrozenViT, images: torch.Tensor, labels: np.ndarray) -> GeneralAndExperts:
    """The warmed-up prompts.

    Args:
        settings: the recipe.
        backbone: on `settings.device`.
        images: uint8 `(images, 3, side, side)`.
        labels: class ids, int64 `(images,)`.

    Raises:
        StrategyError: too few classes, or a loss that is not finite.
    """
    draws = np.random.default_rng(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    prompts = GeneralAndExperts(
        backbone,
        general=Place(settings.general_layers, settings.general_length),
        expert=Place(settings.expert_layers, settings.expert_length),
        pool_size=settings.pool_size,
        insertion=settings.insertion,
        generator=generator,
    )
    classes = int(labels.max()) + 1
    hidden = max(1, backbone.width // settings.reduction)
    learner = WarmUpLearner(backbone, prompts, classes, hidden, generator).to(settings.device)
    optimizer = torch.optim.Adam(learner.trained(), lr=settings.lr)
    identity = backbone.identity
    transform = TrainTransform(
        images.shape[-1], identity["mean"], identity["std"], augmentation=settings.augmentation, seed=settings.seed
    )
    stream, held_out = divide(classes, settings.held_out_pct, draws)
    others = held_out_batches(
        labels, held_out, at_once=settings.classes_at_once, batch=settings.batch, draws=draws.spawn(1)[0]
    )
    updates = list(
        stream_batches(
            labels, stream, sessions=settings.sessions, epochs=settings.epochs, batch=settings.batch, draws=draws
        )
    )
    targets = torch.from_numpy(labels)
    exposed = torch.zeros(classes, dtype=torch.bool)
    started = time.monotonic()

    def loss(rows: np.ndarray, passed: int, allowed: torch.Tensor) -> torch.Tensor:
        chosen = torch.from_numpy(rows)
        inputs = transform(images[chosen].to(settings.device), chosen, passed)
        return learner.loss(inputs, targets[chosen].to(settings.device), allowed.to(settings.device))

    for number, rows in enumerate(updates):
        other = next(others)
        exposed[targets[torch.from_numpy(rows)]] = True
        # The classes of the second source compete where they are asked for, and nowhere else.
        with_other = exposed.clone()
        with_other[targets[torch.from_numpy(other)]] = True
        of_other, of_stream = forgetting_aware_step(
            learner.trained(),
            optimizer,
            lambda rows=other, number=number, allowed=with_other: loss(rows, number, allowed),  # type: ignore[misc]
            lambda rows=rows, number=number: loss(rows, number, exposed),  # type: ignore[misc]
            rho=settings.rho,
        )
        if not torch.isfinite(of_stream + of_other):
            raise StrategyError(f"the loss is not finite in update {number + 1}; lower lr={settings.lr:g}")
        if number % EVERY == 0 or number + 1 == len(updates):
            left = (time.monotonic() - started) / (number + 1) * (len(updates) - number - 1)
            _say(
                settings,
                f"update {number + 1} of {len(updates)}, {left / 60:.0f} min left: "
                f"stream {of_stream:.3f} held out {of_other:.3f}",
            )
    return learner.prompts


def _say(settings: WarmUpSettings, text: str) -> None:
    if settings.progress != "none":
        print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
