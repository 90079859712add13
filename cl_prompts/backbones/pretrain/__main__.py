"""Command line of the recipe: reads the folder, asks the teacher once, trains, writes weights and their card."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError
from safetensors.torch import save_file

from cl_prompts.backbones.build import build_backbone
from cl_prompts.backbones.pretrain.loop import Pretraining
from cl_prompts.backbones.pretrain.settings import PretrainSettings, help_text, read_words
from cl_prompts.backbones.pretrain.teacher import Targets, teacher_targets
from cl_prompts.backbones.settings import BackboneSettings, normalisation
from cl_prompts.backbones.weight_checks import file_sha256
from cl_prompts.errors import BackboneError, UserError
from scenarios.datasets import load_dataset
from scenarios.datasets.image_folder import ImageFolderSettings

PRODUCT = "weights.safetensors"


def main(words: list[str] | None = None) -> int:
    """Train, or go on training; exit code 0, or 2 after one line of what is wrong, or 130 interrupted."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0
    try:
        settings = read_words(words)
        folder = Path(settings.output).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            _pretrain(settings, folder)
    except Timeout:
        print(f"error: output={settings.output} is in use by another process; give another folder", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _pretrain(settings: PretrainSettings, folder: Path) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    images, labels, content = _read_images(settings)
    say = _speaker(settings)
    say(f"{len(images):,} images, {labels.max() + 1} classes, sha256 {content[:12]}")
    targets = _targets(settings, folder, images, content, say)
    training = Pretraining(settings, images, labels, targets, content=content)
    if training.load(folder):
        say(f"going on after {training.seen:,} samples")
    curve = _Curve(folder / "curve.csv", training, say)
    training.run(curve.report, lambda: training.save(folder))
    _write_product(settings, folder, training, content)
    say(f"written: {folder / PRODUCT}, {folder / 'card.json'}, {folder / 'curve.csv'}")


def _read_images(settings: PretrainSettings) -> tuple[np.ndarray, np.ndarray, str]:
    """All images of the folder at the student's size; what the data set calls its test part is trained on as well."""
    chosen = ImageFolderSettings(root=settings.images, size=settings.img_size, test_pct=1, allow_untested_classes=True)
    parts = load_dataset("image_folder", chosen, image_size=settings.img_size)
    pixels = [part.images(np.arange(len(part))).numpy() for part in parts]
    labels = np.concatenate([part.targets for part in parts])
    return np.concatenate(pixels), labels, str(parts[0].identity["sha256"])


def _targets(
    settings: PretrainSettings, folder: Path, images: np.ndarray, content: str, say: Callable[[str], None]
) -> Targets | None:
    if not settings.learns_features:
        return None
    assert settings.teacher is not None
    try:
        chosen = BackboneSettings(
            name="teacher",
            timm_name=settings.teacher,
            img_size=settings.teacher_size,
            checkpoint=settings.teacher_checkpoint or "hub",
        )
    except ValidationError as error:
        raise BackboneError(f"teacher={settings.teacher}: {error.errors()[0]['msg']}") from error
    teacher = build_backbone(chosen, seed=0)
    mean, std = (torch.tensor(values, device=settings.device).view(3, 1, 1) for values in normalisation(chosen, None))
    device = torch.device(settings.device)
    started = time.monotonic()

    def progress(done: int, total: int) -> None:
        if done == total or done % (64 * 32) == 0:
            say(f"teacher: {done:,} of {total:,} images, {time.monotonic() - started:.0f} s")

    return teacher_targets(
        teacher,
        images,
        folder / "teacher",
        identity={
            "teacher": settings.teacher,
            "sha256": str(teacher.identity["sha256"]),
            "size": settings.teacher_size,
            "images": content,
        },
        normalisation=(mean, std),
        size=settings.teacher_size,
        precision={"bf16": torch.bfloat16, "fp32": torch.float32}[settings.precision],
        device=device,
        progress=progress,
    )


class _Curve:
    """A line in `curve.csv` and on the terminal about every hundred updates."""

    EVERY = 100

    def __init__(self, path: Path, training: Pretraining, say: Callable[[str], None]) -> None:
        self._path, self._training, self._say = path, training, say
        self._rows: list[dict[str, float]] = []
        # Rows behind the checkpoint were written by updates that are made again.
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["samples"]) <= training.seen]
            self._write(kept)
        self._started, self._first = time.monotonic(), training.seen

    def report(self, seen: int, terms: dict[str, float]) -> None:
        """Collect the terms of one update."""
        self._rows.append(terms)
        training, total = self._training, self._training.settings.samples
        if (seen // training.settings.batch) % self.EVERY and training.seen < total:
            return
        means = {name: sum(row[name] for row in self._rows) / len(self._rows) for name in terms}
        self._rows.clear()
        rate = (training.seen - self._first) / (time.monotonic() - self._started)
        left = max(0, total - training.seen) / rate / 60
        losses = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        self._say(f"{training.seen:,} of {total:,} samples, {rate:.0f}/s, {left:.0f} min left: {losses}")
        row = {"samples": training.seen, "seconds": round(training.seconds, 1), **means}
        new = not self._path.is_file()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _write(self, rows: list[dict[str, str]]) -> None:
        if not rows:
            self._path.unlink()
            return
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _write_product(settings: PretrainSettings, folder: Path, training: Pretraining, content: str) -> None:
    recipe = settings.recipe()
    save_file(training.weights(), folder / PRODUCT, metadata={"recipe": json.dumps(recipe), "images": content})
    card = {
        "recipe": recipe,
        "images": {"sha256": content},
        "samples": training.seen,
        "seconds": round(training.seconds),
        "parameters": sum(value.numel() for value in training.average.values()),
        "sha256": file_sha256(folder / PRODUCT),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _speaker(settings: PretrainSettings) -> Callable[[str], None]:
    return lambda text: None if settings.progress == "none" else print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
