"""Toy images, streams and strategies that tests share: small enough that a run takes a fraction of a second."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cl_prompts.strategies import load_strategy
from cl_prompts.strategies.declaration import read_settings
from scenarios import StreamPlan, benchmark_from_plan

SIZE = 16
CLASSES = 6
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"prompt_layers": 3, "prompt_length": 2} for name in ("er", "er_ace", "derpp", "lwf", "ewc")},
    "l2p": {"pool_size": 4, "prompt_length": 2, "selection_size": 3, "init": "small"},
    "misa": {"pool_size": 4, "general_length": 2, "expert_length": 3},
    "gacl": {"expansion": 64, "gamma": 0.1},
    "mvp": {"pool_size": 4, "general_length": 2, "expert_length": 3},
    "ranpac": {"projection": 64},
    "single_prompt": {"prompt_layers": 3, "prompt_length": 2},
}
"""Method -> settings that fit a tiny backbone; methods not named take their defaults."""


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


def normalise(images: Tensor) -> Tensor:
    """uint8 -> float, the same in training and evaluation."""
    return (images.float() / 255 - 0.5) / 0.25


class TrainNormalise:
    """`normalise` with the signature of a training transform, known not to be random."""

    is_random = False

    def __call__(self, images: Tensor, sample_ids: Tensor, pass_number: int) -> Tensor:
        return normalise(images)


def plan_of(sessions: Sequence[Sequence[int]], targets: Sequence[int], num_classes: int = CLASSES) -> StreamPlan:
    """A plan with these data-set indices in these sessions."""
    labels = np.asarray(targets)
    counts = np.array(
        [np.bincount(labels[np.asarray(session, dtype=int)], minlength=num_classes) for session in sessions]
    )
    kind = np.where(counts.sum(0) == 0, 2, ((counts > 0).sum(0) > 1).astype(int))
    return StreamPlan(
        sessions=tuple(np.asarray(session, dtype=np.int64) for session in sessions),
        class_kind=kind,
        home_session=np.where(kind == 2, -1, counts.argmax(0)),
        targets=labels,
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


def stream_of(sessions_targets: Sequence[Sequence[int]], test_targets: Sequence[int] = (), **keywords: Any):
    """A benchmark whose stream has exactly these labels, session by session, on toy images.

    `test_targets` defaults to four images of each class; keywords go to `benchmark_from_plan`.
    """
    targets = [target for session in sessions_targets for target in session]
    ends = np.cumsum([0, *(len(session) for session in sessions_targets)])
    sessions = [list(range(start, end)) for start, end in itertools.pairwise(ends)]
    num_classes = keywords.pop("num_classes", CLASSES)
    test = Pictures(list(test_targets) or sorted(list(range(num_classes)) * 4), seed=1)
    return benchmark_from_plan(plan_of(sessions, targets, num_classes), Pictures(targets), test, **keywords)


def labels(count: int, classes: Sequence[int], seed: int = 0) -> list[int]:
    """Random labels among `classes`."""
    return np.random.default_rng(seed).choice(classes, count).tolist()


def make_strategy(name: str, backbone: nn.Module, **keywords: Any):
    """The strategy `name` with toy settings and images; `settings` is a dict of changes, the rest is its own."""
    settings = SETTINGS.get(name, {}) | keywords.pop("settings", {})
    defaults = {
        "num_classes": CLASSES,
        "train_transform": TrainNormalise(),
        "eval_transform": normalise,
        "updates_per_batch": 2,
        "train_mb_size": 8,
    }
    strategy_class = load_strategy(name)
    assert set(settings) <= set(read_settings(name).model_fields)
    typed = strategy_class.method_class.settings_class(**settings)
    return strategy_class(backbone=backbone, settings=typed, **defaults | keywords)


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


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bit for bit equal."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


def fingerprint(module: nn.Module) -> str:
    """Hash of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
