"""From a checked configuration to the live objects of one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from cl_prompts.backbones import FrozenViT, build_backbone, normalisation
from cl_prompts.errors import PlanError, UserError
from cl_prompts.evaluation import Evaluator
from cl_prompts.plugins import AnytimeEvaluation, Reservoir
from cl_prompts.runs.schema import ProtocolSettings, RunConfig
from cl_prompts.runs.seeds import Seeds
from cl_prompts.strategies import load_strategy
from cl_prompts.strategies.base import AUTOCAST, ContinualStrategy
from scenarios import StreamPlan, benchmark_from_plan, load_dataset, si_blurry_plan
from scenarios.benchmark import PlannedBenchmark
from scenarios.datasets import ImageDataset, read_dataset_settings
from scenarios.si_blurry import SiBlurrySettings
from scenarios.transforms import EvalTransform, TrainTransform

OPTIMIZERS: dict[str, Callable[[ProtocolSettings], Callable[..., torch.optim.Optimizer]]] = {
    "adam": lambda protocol: partial(torch.optim.Adam, lr=protocol.lr, weight_decay=protocol.weight_decay),
    "adamw": lambda protocol: partial(torch.optim.AdamW, lr=protocol.lr, weight_decay=protocol.weight_decay),
    "sgd": lambda protocol: partial(
        torch.optim.SGD, lr=protocol.lr, weight_decay=protocol.weight_decay, momentum=protocol.momentum
    ),
}
"""Name in the protocol -> settings -> optimizer of a list of tensors."""


@dataclass
class Data:
    """The two parts of a data set and the plan of the training stream."""

    train: ImageDataset
    test: ImageDataset
    plan: StreamPlan


@dataclass
class Learner:
    """The strategy of a run with what it trains on and what evaluates it."""

    strategy: ContinualStrategy
    benchmark: PlannedBenchmark
    evaluation: AnytimeEvaluation
    backbone: FrozenViT


def check_device(name: str) -> torch.device:
    """The device asked for.

    Raises:
        UserError: it does not exist here; nothing else is used instead.
    """
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            built = "" if torch.version.cuda else "; this torch is a CPU-only build"
            raise UserError(f"device={name}: torch sees no CUDA device here{built}; use device=cpu")
        if (device.index or 0) >= count:
            there = ", ".join(f"cuda:{number}" for number in range(count))
            raise UserError(f"device={name}: there is no such device; choose one of cpu, {there}")
    return device


def build_data(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> Data:
    """Load the data set and decide, or load, the stream."""
    settings = read_dataset_settings(config.dataset_name)(**config.dataset_arguments())
    train, test = load_dataset(config.dataset_name, settings, image_size=config.backbone.img_size, progress=progress)
    return Data(train, test, _plan(config, train))


def _plan(config: RunConfig, train: ImageDataset) -> StreamPlan:
    if config.plan_path is not None:
        plan = StreamPlan.load(config.plan_path)
        plan.check_targets(train.targets)
        _check_saved_plan(config, plan)
        return plan
    keys = SiBlurrySettings.model_fields
    return si_blurry_plan(
        train.targets,
        seed=config.plan_seed,
        class_names=train.class_names,
        dataset_name=train.name,
        **{key: getattr(config.scenario, key) for key in keys},
    )


def _check_saved_plan(config: RunConfig, plan: StreamPlan) -> None:
    """What the check of the configuration knows of streams made here, it cannot know of saved ones."""
    users = {
        "protocol.train_mask=task": config.protocol.train_mask == "task",
        f"strategy={config.strategy_name}": config.strategy.needs.task_ids,
    }
    needing = [user for user, needs_tasks in users.items() if needs_tasks]
    if needing and np.any((plan.counts > 0).sum(axis=0) > 1):
        raise PlanError(
            f"scenario.plan={config.scenario.plan}: classes of this stream lie in several sessions and belong to no "
            f"single task, which {needing[0]} needs; choose another, or the plan of a disjoint stream"
        )


def build_learner(config: RunConfig, data: Data, device: torch.device) -> Learner:
    """Backbone, strategy, plugins and benchmark of a run."""
    seeds = Seeds.from_root(config.seed)
    protocol, scenario = config.protocol, config.scenario
    backbone = build_backbone(config.backbone, seed=seeds.init)
    mean, std = normalisation(config.backbone, data.train.normalisation)
    size, interpolation = config.backbone.img_size, config.backbone.interpolation
    eval_transform = EvalTransform(size, mean, std, interpolation=interpolation)
    train_transform = TrainTransform(
        size,
        mean,
        std,
        augmentation=protocol.augmentation,
        per=protocol.augment_per,
        seed=seeds.augment,
        interpolation=interpolation,
    )
    benchmark = benchmark_from_plan(
        data.plan, data.train, data.test, view=scenario.view, task_label=scenario.task_label
    )
    evaluation = AnytimeEvaluation(
        Evaluator(
            benchmark.test_stream[0].dataset,
            num_classes=data.plan.num_classes,
            transform=eval_transform,
            batch_size=protocol.eval_batch,
            device=device,
            autocast=AUTOCAST[protocol.precision],
            mask=protocol.eval_mask,
        ),
        every=protocol.eval_every,
        rule=protocol.anytime_rule,
        session_ends=data.plan.session_ends,
    )
    plugins: list[Any] = [evaluation]
    if protocol.memory_size:
        plugins.insert(
            0, Reservoir(protocol.memory_size, protocol.replay_batch, seed=seeds.replay, rule=protocol.reservoir)
        )
    strategy_class = load_strategy(config.strategy_name)
    strategy = strategy_class(
        backbone=backbone,
        num_classes=data.plan.num_classes,
        settings=strategy_class.method_class.settings_class(**config.strategy_arguments()),
        seed=seeds.init,
        updates_per_batch=protocol.updates_per_batch,
        train_mask=protocol.train_mask,
        eval_mask=protocol.eval_mask,
        train_transform=train_transform,
        eval_transform=eval_transform,
        optimizer=OPTIMIZERS[protocol.optimizer](protocol),
        precision=protocol.precision,
        train_mb_size=protocol.stream_batch,
        eval_mb_size=protocol.eval_batch,
        device=device,
        plugins=plugins,
    )
    return Learner(strategy, benchmark, evaluation, backbone)


def check_test_classes(data: Data) -> None:
    """Refuse a stream whose classes the test set cannot measure.

    Raises:
        PlanError: a class of the stream has no test image.
    """
    tested = set(data.test.targets.tolist())
    missing = [index for index, count in enumerate(data.plan.counts.sum(0)) if count and index not in tested]
    if missing:
        name = data.train.class_names[missing[0]]
        raise PlanError(f"class {name!r} is in the training stream but has no test image; add some or leave it out")
