"""Toy images, streams and backbones: small enough that a run on them takes a fraction of a second."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT
from cl_prompts.strategies.base import ContinualStrategy
from scenarios import StreamPlan, benchmark_from_plan
from scenarios.benchmark import PlannedBenchmark

SIZE = 16
"""Pixels on each side of a toy image."""
CLASSES = 6
"""Classes of the toy images, unless a caller says otherwise."""


def tiny_vit(width: int = 24, depth: int = 6, heads: int = 3, seed: int = 0) -> FrozenViT:
    """A random ViT on 16 x 16 images, wide enough initialised that its features tell images apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisionTransformer(
            img_size=SIZE, patch_size=8, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, class_token=True
        )
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.ndim > 1:
                    tensor.mul_(4)
    return FrozenViT(model)


class Pictures:
    """A data set of uint8 images (16, 16, 3): a pattern for each class under noise.

    Args:
        targets: class ids.
        seed: of the noise; patterns are the same for every seed.
        noise: largest deviation from the pattern, in grey levels.
    """

    def __init__(self, targets: Sequence[int], seed: int = 0, noise: int = 40) -> None:
        self.targets = np.asarray(targets, dtype=np.int64)
        patterns = np.random.default_rng(99).integers(60, 196, (64, SIZE, SIZE, 3))
        deviations = np.random.default_rng(seed).integers(-noise, noise + 1, (len(self.targets), SIZE, SIZE, 3))
        self.images = (patterns[self.targets] + deviations).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        return self.images[index], int(self.targets[index]), index

    def tensors(self) -> Tensor:
        """All images as the backbone takes them, float (samples, 3, 16, 16)."""
        return normalise(torch.from_numpy(self.images).permute(0, 3, 1, 2))


class Scenes:
    """A data set of uint8 images (16, 16, 3): the mean pattern of an image's labels under noise.

    Args:
        targets: 0/1 (images, classes).
        seed: of the noise; patterns are the same for every seed.
        known: bool (images, classes), or None.
    """

    def __init__(self, targets: np.ndarray, seed: int = 0, known: np.ndarray | None = None) -> None:
        self.targets = np.asarray(targets, dtype=np.uint8)
        self.known = known
        patterns = np.random.default_rng(99).integers(40, 216, (self.targets.shape[1], SIZE, SIZE, 3))
        mean = np.einsum("nc,chwd->nhwd", self.targets, patterns) / self.targets.sum(1)[:, None, None, None]
        noise = np.random.default_rng(seed).integers(-30, 31, mean.shape)
        self.images = (mean + noise).clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        return self.images[index], self.targets[index].copy(), index


def label_rows(count: int, seed: int = 0, classes: int = CLASSES, share: float = 0.3) -> np.ndarray:
    """Random labels uint8 (count, classes), at least one an image."""
    draws = np.random.default_rng(seed)
    rows = draws.random((count, classes)) < share
    rows[np.arange(count), draws.integers(0, classes, count)] = True
    return rows.astype(np.uint8)


def normalise(images: Tensor) -> Tensor:
    """uint8 -> float, the same in training and evaluation."""
    return (images.float() / 255 - 0.5) / 0.25


class TrainNormalise:
    """`normalise` with the signature of a training transform, known not to be random."""

    is_random = False

    def __call__(self, images: Tensor, sample_ids: Tensor, pass_number: Sequence[int]) -> Tensor:
        """Float images (batch, 3, 16, 16), the same in every pass."""
        return normalise(images)


def plan_of(sessions: Sequence[Sequence[int]], targets: Sequence[int], num_classes: int = CLASSES) -> StreamPlan:
    """A plan with these data-set indices in these sessions."""
    classes = np.asarray(targets)
    counts = np.array(
        [np.bincount(classes[np.asarray(session, dtype=int)], minlength=num_classes) for session in sessions]
    )
    kind = np.where(counts.sum(0) == 0, 2, ((counts > 0).sum(0) > 1).astype(int))
    return StreamPlan(
        sessions=tuple(np.asarray(session, dtype=np.int64) for session in sessions),
        class_kind=kind,
        home_session=np.where(kind == 2, -1, counts.argmax(0)),
        targets=classes,
        requested={
            "disjoint_class_pct": 50,
            "blurry_sample_pct": 10,
            "n_sessions": len(sessions),
            "seed": 1,
            "mode": "exact",
            "allow_empty_sessions": True,
            "allow_home": False,
        },
    )


def stream_of(
    sessions_targets: Sequence[Sequence[int]],
    test_targets: Sequence[int] = (),
    *,
    num_classes: int = CLASSES,
    order_seed: int | None = None,
    **keywords: Any,
) -> PlannedBenchmark:
    """A benchmark whose stream has exactly these labels, session by session, on toy images.

    Args:
        sessions_targets: class ids of each session, in the order of the stream.
        test_targets: four images of each class if empty.
        num_classes: of the head.
        order_seed: where the samples lie in the data set is drawn with this seed; None: as they come.
        keywords: for `benchmark_from_plan`.
    """
    stream = np.concatenate([np.asarray(session, dtype=np.int64) for session in sessions_targets])
    places = np.arange(len(stream))
    if order_seed is not None:
        places = np.random.default_rng(order_seed).permutation(len(stream))
    targets = np.empty_like(stream)
    targets[places] = stream
    ends = np.cumsum([0, *(len(session) for session in sessions_targets)])
    sessions = [places[start:end].tolist() for start, end in itertools.pairwise(ends)]
    test = Pictures(list(test_targets) or sorted(list(range(num_classes)) * 4), seed=1)
    return benchmark_from_plan(
        plan_of(sessions, targets.tolist(), num_classes), Pictures(targets.tolist()), test, **keywords
    )


def labels(count: int, classes: Sequence[int], seed: int = 0) -> list[int]:
    """Random labels among `classes`."""
    return np.random.default_rng(seed).choice(classes, count).tolist()


def build_strategy(
    strategy_class: type[ContinualStrategy], backbone: nn.Module, settings: Mapping[str, Any], **keywords: Any
) -> ContinualStrategy:
    """A strategy on toy images in batches of 8 with two updates each; keywords go to its constructor."""
    defaults = {
        "num_classes": CLASSES,
        "train_transform": TrainNormalise(),
        "eval_transform": normalise,
        "updates_per_batch": 2,
        "train_mb_size": 8,
    }
    typed = strategy_class.method_class.settings_class(**settings)
    return strategy_class(backbone=backbone, settings=typed, **defaults | keywords)  # type: ignore[arg-type]


def train(strategy: Any, benchmark: Any, **keywords: Any) -> Any:
    """Train on every experience and return the strategy."""
    for experience in benchmark.train_stream:
        strategy.train(experience, **keywords)
    return strategy


def learned(strategy: Any) -> dict[str, Tensor]:
    """Copies of everything that training may change: trained tensors and the method's own buffers."""
    return {
        name: tensor.detach().clone()
        for name, tensor in strategy.model.state_dict().items()
        if not name.startswith("backbone.")
    }


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor], what: str = "the tensors") -> None:
    """Raise an AssertionError that names what is not bit for bit equal."""
    if left.keys() != right.keys():
        raise AssertionError(f"{what}: {sorted(left.keys() ^ right.keys())} are not on both sides")
    different = [name for name in left if not torch.equal(left[name], right[name])]
    if different:
        raise AssertionError(f"{what} differ in {', '.join(different)}")


def fingerprint(module: nn.Module) -> str:
    """Hash of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
