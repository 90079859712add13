"""From a checked configuration to the live objects of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from cl_prompts.backbones import FrozenViT, build_backbone, normalisation
from cl_prompts.backbones.hub import Hub
from cl_prompts.errors import PlanError, UserError
from cl_prompts.evaluation import Evaluator, MultiLabelEvaluator
from cl_prompts.metrics.tables import MultiLabelTables, SingleLabelTables, Tables
from cl_prompts.plugins import AnytimeEvaluation, Reservoir
from cl_prompts.runs.schema import ProtocolSettings, RunConfig
from cl_prompts.runs.seeds import Seeds
from cl_prompts.strategies import load_strategy
from cl_prompts.strategies.base import AUTOCAST, ContinualStrategy
from scenarios import Plan, benchmark_from_plan, load_dataset, load_plan, ml_si_blurry_plan, mlcil_plan, si_blurry_plan
from scenarios.benchmark import PlannedBenchmark
from scenarios.datasets import ImageDataset, read_dataset_settings
from scenarios.ml_si_blurry import MLSiBlurrySettings
from scenarios.mlcil import MLCILSettings
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.multi_label_settings import MultiLabelEvaluationSettings
from scenarios.settings import Settings
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
    plan: Plan


@dataclass
class Learner:
    """The strategy of a run with what it trains on and what evaluates it."""

    strategy: ContinualStrategy
    benchmark: PlannedBenchmark
    evaluation: AnytimeEvaluation
    backbone: FrozenViT
    tables: Tables
    eval_transform: EvalTransform


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


def _plan(config: RunConfig, train: ImageDataset) -> Plan:
    if config.plan_path is not None:
        plan = load_plan(config.plan_path)
        _check_kind(config, plan)
        if isinstance(plan, MultiLabelPlan):
            plan.check_targets(train.targets, train.known)
        else:
            plan.check_targets(train.targets)
        _check_saved_plan(config, plan)
        return plan
    return GENERATORS[config.scenario.generator](config, train)


def _arguments(config: RunConfig, settings: type[Settings], train: ImageDataset) -> dict[str, Any]:
    """Keywords of a plan: the keys of the scenario that shape the stream, and what names it."""
    shaping = settings.model_fields.keys() - MultiLabelEvaluationSettings.model_fields.keys()
    named = {"seed": config.plan_seed, "class_names": train.class_names, "dataset_name": train.name}
    return {key: getattr(config.scenario, key) for key in shaping} | named


def _ml_si_blurry(config: RunConfig, train: ImageDataset) -> Plan:
    return ml_si_blurry_plan(
        train.targets,
        known=train.known,
        stream_batch=config.protocol.stream_batch,
        **_arguments(config, MLSiBlurrySettings, train),
    )


GENERATORS: dict[str, Callable[[RunConfig, ImageDataset], Plan]] = {
    "si_blurry": lambda config, train: si_blurry_plan(train.targets, **_arguments(config, SiBlurrySettings, train)),
    "mlcil": lambda config, train: mlcil_plan(
        train.targets, known=train.known, **_arguments(config, MLCILSettings, train)
    ),
    "ml_si_blurry": _ml_si_blurry,
}
"""Word after `scenario.generator=` -> configuration and training set -> the stream."""


def _check_kind(config: RunConfig, plan: Plan) -> None:
    """A saved stream says by itself whether its images have several labels, and for which batches it was made."""
    several = isinstance(plan, MultiLabelPlan)
    if several != config.scenario.multi_label:
        suited = "mlcil or ml_si_blurry" if several else "si_blurry"
        raise PlanError(
            f"scenario.plan={config.scenario.plan}: images with {'several labels' if several else 'one label'}; "
            f"use scenario={suited} with it"
        )
    if isinstance(plan, MultiLabelPlan) and plan.requested["mode"] != config.scenario.generator:
        raise PlanError(
            f"scenario.plan={config.scenario.plan}: a stream of scenarios/{plan.requested['mode']}.py, scenario="
            f"{config.scenario.name} makes others; use scenario={plan.requested['mode']} with it"
        )
    if isinstance(plan, MultiLabelPlan) and plan.stream_batch not in (None, config.protocol.stream_batch):
        raise PlanError(
            f"scenario.plan={config.scenario.plan}: its visible labels are those of batches of {plan.stream_batch}; "
            f"set protocol.stream_batch={plan.stream_batch}"
        )


def _check_saved_plan(config: RunConfig, plan: Plan) -> None:
    """What the check of the configuration knows of streams made here, it cannot know of saved ones."""
    users = {
        "protocol.train_mask=task": config.protocol.train_mask == "task",
        f"strategy={config.strategy_name}": config.strategy.declared_needs().task_ids,
    }
    needing = [user for user, needs_tasks in users.items() if needs_tasks]
    if needing and np.any((plan.counts > 0).sum(axis=0) > 1):
        raise PlanError(
            f"scenario.plan={config.scenario.plan}: classes of this stream lie in several sessions and belong to no "
            f"single task, which {needing[0]} needs; choose another, or the plan of a disjoint stream"
        )


def build_run_backbone(config: RunConfig) -> FrozenViT:
    """The backbone of a run; its weights may be downloaded."""
    hub = Hub(quiet=config.progress == "none")
    return build_backbone(config.backbone, seed=Seeds.from_root(config.seed).init, hub=hub)


def build_learner(config: RunConfig, data: Data, device: torch.device, backbone: FrozenViT | None = None) -> Learner:
    """Backbone (built here if it is None), strategy, plugins and benchmark of a run."""
    protocol, scenario = config.protocol, config.scenario
    backbone = backbone or build_run_backbone(config)
    mean, std = normalisation(config.backbone, data.train.normalisation)
    eval_transform = EvalTransform(
        config.backbone.img_size,
        mean,
        std,
        interpolation=config.backbone.interpolation,
        crop=protocol.eval_crop,
    )
    benchmark = benchmark_from_plan(
        data.plan, data.train, data.test, view=scenario.view, task_label=scenario.task_label
    )
    tables, evaluator = _measuring(config, data, benchmark, eval_transform, device)
    evaluation = AnytimeEvaluation(
        evaluator,
        every=protocol.eval_every,
        rule=protocol.anytime_rule,
        session_ends=data.plan.session_ends * protocol.epochs,
        deferred=protocol.session_evaluation == "deferred",
    )
    strategy = build_strategy(config, backbone, data.plan.num_classes, eval_transform, device, [evaluation])
    return Learner(strategy, benchmark, evaluation, backbone, tables, eval_transform)


def build_strategy(
    config: RunConfig,
    backbone: FrozenViT,
    num_classes: int,
    eval_transform: EvalTransform,
    device: torch.device,
    plugins: Sequence[Any] = (),
) -> ContinualStrategy:
    """The strategy of a run, untrained; the memory that its protocol asks for comes before the other plugins."""
    seeds, protocol = Seeds.from_root(config.seed), config.protocol
    train_transform = TrainTransform(
        eval_transform.size,
        eval_transform.mean,
        eval_transform.std,
        augmentation=protocol.augmentation,
        per=protocol.augment_per,
        seed=seeds.augment,
        interpolation=eval_transform.interpolation,
        crop=eval_transform.crop,
    )
    memory = (
        [
            Reservoir(
                protocol.memory_size,
                protocol.replay_batch,
                seed=seeds.replay,
                rule=protocol.reservoir,
                draws=config.strategy.declared_needs().replay_draws,
            )
        ]
        if protocol.memory_size
        else []
    )
    strategy_class = load_strategy(config.strategy_name)
    return strategy_class(
        backbone=backbone,
        num_classes=num_classes,
        settings=strategy_class.method_class.settings_class(**config.strategy_arguments()),
        seed=seeds.init,
        updates_per_batch=protocol.updates_per_batch,
        train_mask=protocol.train_mask,
        eval_mask=protocol.eval_mask,
        train_transform=train_transform,
        eval_transform=eval_transform,
        optimizer=OPTIMIZERS[protocol.optimizer](protocol),
        optimizer_scope=protocol.optimizer_scope,
        lr_schedule=protocol.lr_schedule,
        clip_norm=protocol.clip_norm,
        epochs=protocol.epochs,
        shuffle_seed=seeds.order if protocol.shuffle else None,
        precision=protocol.precision,
        train_mb_size=protocol.stream_batch,
        eval_mb_size=protocol.eval_batch,
        device=device,
        plugins=[*memory, *plugins],
    )


def _measuring(
    config: RunConfig, data: Data, benchmark: PlannedBenchmark, transform: EvalTransform, device: torch.device
) -> tuple[Tables, Evaluator | MultiLabelEvaluator]:
    """What measures the run, and how it is written down."""
    protocol, scenario, plan = config.protocol, config.scenario, data.plan
    common: dict[str, Any] = {
        "num_classes": plan.num_classes,
        "transform": transform,
        "batch_size": protocol.eval_batch,
        "device": device,
        "autocast": AUTOCAST[protocol.precision],
    }
    test = benchmark.test_stream[0].dataset
    if not isinstance(scenario, MultiLabelEvaluationSettings):
        return SingleLabelTables(plan.class_kind), Evaluator(test, mask=protocol.eval_mask, **common)
    assert isinstance(plan, MultiLabelPlan)
    evaluator = MultiLabelEvaluator(
        test,
        eval_images=scenario.eval_images,
        final_seen=plan.seen_after[-1],
        threshold=scenario.threshold,
        scores=scenario.scores,
        **common,
    )
    return MultiLabelTables(plan.class_kind, scenario), evaluator


def check_test_classes(data: Data) -> list[str]:
    """Classes of the stream that the test set cannot measure.

    Returns:
        Of several labels an image a sentence about them: average precision leaves them out.

    Raises:
        PlanError: of one label an image, a class of the stream has no test image.
    """
    targets = np.asarray(data.test.targets)
    several = targets.ndim == 2
    tested = set(np.flatnonzero(targets.any(0)) if several else targets.tolist())
    missing = [index for index, count in enumerate(data.plan.counts.sum(0)) if count and index not in tested]
    if not missing:
        return []
    name = data.train.class_names[missing[0]]
    if not several:
        raise PlanError(f"class {name!r} is in the training stream but has no test image; add some or leave it out")
    return [f"{len(missing)} classes of the stream have no test image ({name!r}, ...): they are left out of mAP"]
