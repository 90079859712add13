"""`Subject`: the strategy that is checked, and the runs on toy streams that its checks share."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from cl_prompts.contract.toy_settings import DEPTH, toy_settings
from cl_prompts.contract.toys import (
    CLASSES,
    SIZE,
    Pictures,
    build_strategy,
    fingerprint,
    learned,
    normalise,
    stream_of,
    tiny_vit,
    train,
)
from cl_prompts.evaluation import Evaluator
from cl_prompts.plugins import AnytimeEvaluation, Reservoir
from cl_prompts.strategies import load_strategy
from cl_prompts.strategies.base import ContinualStrategy
from cl_prompts.strategies.declaration import Needs, StrategySettings, read_settings
from scenarios import TrainTransform

# Class ids are not in the order of arrival, some arrive in the middle of a batch, sessions end with a short one, and
# class 1 never comes. In batches of six: 6, 5 and 6, 6, 1.
BLURRY = ([5, 5, 2, 5, 2, 4, 2, 4, 5, 2, 4], [3, 0, 4, 0, 3, 3, 0, 4, 3, 3, 0, 4, 0])
TASKS = ([5, 5, 2, 5, 2, 2, 5, 2, 5, 2, 5], [3, 0, 0, 3, 4, 0, 4, 3, 3, 0, 4, 0, 3])
BATCH = 6
BATCHES_OF = (2, 3)
UPDATES = 2
MEMORISED = [5, 5, 1, 1, 3, 3, 0, 0]
"""Labels of a batch: classes come in its middle and in no numeric order."""


class Witness(SupervisedPlugin):
    """Sees a run from the hooks that every plugin has.

    Attributes:
        ids: sample ids of every stream batch.
        losses: named losses of every update.
        trained: whether a module of the backbone was in training mode at some update.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[list[int]] = []
        self.losses: list[dict[str, float]] = []
        self.trained = False

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """A stream batch begins."""
        self.ids.append(strategy.mb_sample_ids.tolist())

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """An update begins."""
        self.trained |= any(module.training for module in strategy.model.backbone.modules())

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """An update is over."""
        self.losses.append({name: float(value) for name, value in strategy.last_losses.items()})


@dataclass
class Run:
    """A strategy after the reference stream.

    Attributes:
        strategy: as it is at the end.
        benchmark: what it was trained on.
        witness: what a plugin saw.
        before: its tensors at the beginning.
        after: its tensors at the end.
        first_optimizer: as the strategy was built.
        middle: its state after the first batch of the second session, saved and read again.
        middle_logits: predictions there.
        random_states: of the global generators, before and after.
    """

    strategy: ContinualStrategy
    benchmark: Any
    witness: Witness
    before: dict[str, Tensor]
    first_optimizer: torch.optim.Optimizer | None
    random_states: list[tuple[Any, ...]] = field(default_factory=list)
    after: dict[str, Tensor] = field(default_factory=dict)
    middle: dict[str, Any] = field(default_factory=dict)


class Subject:
    """A strategy under the contract.

    Args:
        strategy: its name, or its class.
        settings: values to check it with; the rest is small or its default.
    """

    def __init__(self, strategy: str | type[ContinualStrategy], settings: Mapping[str, Any] | None = None) -> None:
        self.strategy = strategy
        self.settings_class: type[StrategySettings] = (
            read_settings(strategy) if isinstance(strategy, str) else strategy.method_class.settings_class
        )
        self.values = toy_settings(self.settings_class, settings)
        self.needs: Needs = self.settings_class(**self.values).declared_needs()

    @property
    def name(self) -> str:
        """The word after `strategy=`, or the name of the class."""
        return self.strategy if isinstance(self.strategy, str) else self.strategy.__name__

    @cached_property
    def strategy_class(self) -> type[ContinualStrategy]:
        """The class, imported now if it was named."""
        return load_strategy(self.strategy) if isinstance(self.strategy, str) else self.strategy

    @cached_property
    def backbone(self) -> Any:
        """The frozen backbone of all its runs."""
        return tiny_vit(depth=DEPTH)

    def make(self, **keywords: Any) -> ContinualStrategy:
        """A fresh strategy; keywords go to its constructor, `backbone` and a dictionary `settings` among them.

        One that cannot learn without a memory gets one.
        """
        backbone = keywords.pop("backbone", None) or self.backbone
        settings = {**self.values, **keywords.pop("settings", {})}
        plugins = list(keywords.pop("plugins", ()))
        if self.needs.replay == "required" and not any(isinstance(plugin, Reservoir) for plugin in plugins):
            plugins.insert(0, self.memory())
        return build_strategy(self.strategy_class, backbone, settings, plugins=plugins, **keywords)

    def memory(self) -> Reservoir:
        """A memory as the method asks for it."""
        return Reservoir(6, 4, seed=1, draws=self.needs.replay_draws)

    def stream(self, **keywords: Any) -> Any:
        """The reference stream: two sessions whose classes return, or where the method needs it, two tasks."""
        return stream_of(TASKS if self.needs.task_ids else BLURRY, order_seed=7, **keywords)

    @cached_property
    def images(self) -> Tensor:
        """Sixteen test images of all classes, float (16, 3, 16, 16)."""
        return Pictures([0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0, 4, 2, 0, 5], seed=5).tensors()

    def logits(self, strategy: ContinualStrategy, images: Tensor | None = None) -> Tensor:
        """Predictions of a strategy for the test images or others, without gradient."""
        strategy.model.eval()
        with torch.no_grad():
            return strategy.model(self.images if images is None else images)

    # --- runs that checks share -------------------------------------------------------------------------------------

    def _augmented(self, seed: int = 3) -> TrainTransform:
        return TrainTransform(SIZE, (0.5,) * 3, (0.25,) * 3, augmentation="crop_flip", seed=seed)

    def _for_reference(self, *, augment: int = 3, **keywords: Any) -> ContinualStrategy:
        return self.make(
            train_transform=self._augmented(augment), train_mb_size=BATCH, updates_per_batch=UPDATES, **keywords
        )

    @cached_property
    def backbone_before(self) -> str:
        """Hash of the backbone before any run."""
        return fingerprint(self.backbone)

    @cached_property
    def reference(self) -> Run:
        """The strategy trained on the reference stream, augmented, with nobody looking."""
        assert self.backbone_before
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        witness = Witness()
        random_states = [_global_random_state()]
        strategy = self._for_reference(plugins=[witness])
        run = Run(strategy, self.stream(), witness, learned(strategy), strategy.optimizer, random_states)
        strategy.batch_listeners.append(lambda watched: _save_middle(run, watched))
        train(strategy, run.benchmark)
        run.random_states.append(_global_random_state())
        run.after = learned(strategy)
        return run

    def disturbed(self) -> ContinualStrategy:
        """The same run, evaluated after every batch and between sessions, from another state of the generators."""
        benchmark = self.stream()
        torch.manual_seed(77)
        np.random.seed(77)  # noqa: NPY002
        random.seed(77)
        evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise, batch_size=7)
        strategy = self._for_reference(plugins=[AnytimeEvaluation(evaluator, every=1)])
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        return strategy

    def with_workers(self) -> ContinualStrategy:
        """The same run with images from two worker processes."""
        return train(self._for_reference(), self.stream(), num_workers=2)

    def augmented_otherwise(self) -> ContinualStrategy:
        """The same run with another seed of the augmentation."""
        return train(self._for_reference(augment=4), self.stream())

    def resumed(self) -> ContinualStrategy:
        """The same run, gone on with from the state in its middle."""
        strategy, benchmark = self._for_reference(seed=9), self.stream()
        for experience in strategy.resume(self.reference.middle, list(benchmark.train_stream)):
            strategy.train(experience)
        return strategy

    @cached_property
    def memorised(self) -> tuple[ContinualStrategy, Witness]:
        """The strategy after thirty updates on one batch of four classes."""
        witness = Witness()
        # Large steps suit a head and prompts; they break a backbone.
        optimizer = partial(torch.optim.Adam, lr=0.005 if self.needs.trains == "backbone" else 0.02)
        strategy = self.make(updates_per_batch=30, plugins=[witness], optimizer=optimizer)
        return train(strategy, stream_of([MEMORISED])), witness


def _save_middle(run: Run, strategy: ContinualStrategy) -> None:
    if not run.middle and strategy.place.experience == 1:
        file = io.BytesIO()
        torch.save(strategy.state_dict(), file)
        file.seek(0)
        # Tensors and plain containers alone: nothing that could execute code.
        run.middle = torch.load(file, weights_only=True)


def _global_random_state() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]  # noqa: NPY002
