"""Targets from a trained Vision Transformer: its features of every whole image, computed once and kept in two files.

The teacher costs several times what the student does, so it sees each image once. The student's crops are cut out of
the teacher's map of patch tokens at the same place; its class token stands for the whole image, as a label does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_prompts.backbones.frozen_vit import FrozenViT
from cl_prompts.errors import BackboneError
from scenarios._atomic_files import atomic_file

TEACHER_BATCH = 64


@dataclass(frozen=True)
class Targets:
    """Features of the teacher after its final norm, standardised: mean 0 and deviation 1 in each channel.

    Attributes:
        class_tokens: float16 `(images, width)`, as computed.
        patches: float16 `(images, side, side, width)`, as computed.
        statistics: float32 `(2, 2, width)`: mean and deviation of class tokens, then of patches.
    """

    class_tokens: np.ndarray
    patches: np.ndarray
    statistics: Tensor

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return self.class_tokens.shape[1]

    def read(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """Class tokens float32 `(batch, width)` and patches float32 `(batch, width, side, side)` of these images."""
        class_tokens = torch.from_numpy(self.class_tokens[chosen]).float()
        patches = torch.from_numpy(self.patches[chosen]).float()
        (mean, deviation), (patch_mean, patch_deviation) = self.statistics
        standard = (patches - patch_mean) / patch_deviation
        return (class_tokens - mean) / deviation, standard.permute(0, 3, 1, 2)


def teacher_targets(
    teacher: FrozenViT,
    images: np.ndarray,
    folder: Path,
    *,
    identity: dict[str, str | int],
    normalisation: tuple[Tensor, Tensor],
    size: int,
    precision: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> Targets:
    """The teacher's features of all images; what an earlier call has computed in `folder` is not computed again.

    Args:
        teacher: the backbone to learn from.
        images: uint8 `(images, 3, height, width)`.
        folder: where the two files live; several gigabytes.
        identity: what the features depend on; files of something else are refused.
        normalisation: mean and deviation of the teacher's input, each `(3, 1, 1)`.
        size: side to which images are enlarged, bicubic.
        precision: of the passes.
        device: where the teacher runs.
        progress: called with (images done, images in all).

    Raises:
        BackboneError: files in `folder` belong to another teacher or other images.
    """
    side = math.isqrt(teacher.model.patch_embed.num_patches)
    count, width = len(images), teacher.width
    files = _Files(folder, identity, {"class_tokens": (count, width), "patches": (count, side, side, width)})
    class_tokens, patches = files.arrays["class_tokens"], files.arrays["patches"]
    teacher.to(device)
    for start in range(files.done, count, TEACHER_BATCH):
        stop = min(start + TEACHER_BATCH, count)
        batch = torch.from_numpy(images[start:stop]).to(device)
        with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
            enlarged = F.interpolate(batch.float() / 255, size=(size, size), mode="bicubic", antialias=True)
            states = teacher.model.forward_features((enlarged.clamp(0, 1) - normalisation[0]) / normalisation[1])
        features = states.float().cpu().numpy()
        class_tokens[start:stop] = features[:, 0]
        patches[start:stop] = features[:, teacher.num_prefix_tokens :].reshape(stop - start, side, side, width)
        files.advance(stop)
        progress(stop, count)
    return Targets(class_tokens, patches, _statistics(class_tokens, patches))


def _statistics(class_tokens: np.ndarray, patches: np.ndarray) -> Tensor:
    """Of a fixed part of the images: a few thousand tell mean and deviation to a per cent."""
    part = slice(None, None, max(1, len(class_tokens) // 4096))
    rows = []
    for features in (class_tokens[part], patches[part]):
        flat = torch.from_numpy(features.reshape(-1, features.shape[-1]).astype(np.float32))
        rows.append(torch.stack([flat.mean(dim=0), flat.std(dim=0).clamp_min(1e-3)]))
    return torch.stack(rows)


class _Files:
    """Arrays on disk that are filled from the start, and how far they are."""

    def __init__(self, folder: Path, identity: dict[str, str | int], shapes: dict[str, tuple[int, ...]]) -> None:
        self._record = folder / "targets.json"
        self._identity = identity
        self.arrays: dict[str, np.ndarray] = {}
        self.done = 0
        folder.mkdir(parents=True, exist_ok=True)
        known = self._record.is_file()
        if known:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if record["identity"] != identity:
                raise BackboneError(
                    f"{folder} holds the features of another teacher or of other images; "
                    "give another output=, or delete that folder"
                )
            self.done = record["done"]
        for name, shape in shapes.items():
            path = folder / f"{name}.npy"
            mode = "r+" if known else "w+"
            self.arrays[name] = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=shape)

    def advance(self, done: int) -> None:
        """Record that the first `done` images are complete, now and then."""
        total = len(next(iter(self.arrays.values())))
        if done == total or done // TEACHER_BATCH % 16 == 0:
            for array in self.arrays.values():
                array.flush()  # type: ignore[attr-defined]
            with atomic_file(self._record) as file:
                file.write(json.dumps({"identity": self._identity, "done": done}).encode())
