"""Combinations of settings that cannot run, one small function each; `RULES` is the table of all.

A rule yields problems of configurations whose single values are all allowed. It reads no data, only names of files.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

from cl_prompts.backbones.hub import Hub
from cl_prompts.backbones.records import find_record
from cl_prompts.runs.label_rules import LABEL_RULES
from cl_prompts.runs.problems import Problem, Rule, problem_of
from cl_prompts.runs.schema import RunConfig, SiBlurryScenario
from scenarios.datasets import check_dataset
from scenarios.errors import DataError


def published_samplers_return_home(config: RunConfig) -> Iterator[Problem]:
    """Only the exact sampler has the switch `allow_home`."""
    scenario = config.scenario
    assert isinstance(scenario, SiBlurryScenario)
    if scenario.mode != "exact" and scenario.allow_home:
        yield problem_of(
            config,
            "scenario.allow_home",
            f"only scenario.mode=exact has this switch, mode={scenario.mode} always does so; "
            "set scenario.allow_home=false",
        )


def boundary_masks_need_sessions(config: RunConfig) -> Iterator[Problem]:
    """Masks by task or session read a boundary, which the merged view hides."""
    if config.protocol.train_mask in ("task", "session") and config.scenario.view == "merged":
        yield problem_of(
            config,
            "protocol.train_mask",
            "needs to know the session, which scenario.view=merged hides; use exposed or batch, "
            "or scenario.view=sessions",
        )


def task_mask_needs_disjoint_classes(config: RunConfig) -> Iterator[Problem]:
    """Classes that lie in several sessions belong to no single task."""
    if config.scenario.multi_label:
        return  # its own rule: no mask has an effect
    if config.protocol.train_mask == "task" and config.scenario.view == "sessions" and config.scenario.classes_return:
        yield problem_of(
            config,
            "protocol.train_mask",
            "undefined on a blurry stream, where a class belongs to no single task; "
            "use exposed, batch or session, or scenario=disjoint",
        )


def required_boundaries_are_visible(config: RunConfig) -> Iterator[Problem]:
    """A method that needs boundaries cannot run on the merged view."""
    if config.strategy.declared_needs().boundaries == "required" and config.scenario.view == "merged":
        yield Problem(
            "strategy",
            f"strategy={config.strategy_name}: needs session boundaries, which scenario.view=merged hides; "
            "set scenario.view=sessions, or choose a method without boundaries",
        )


def required_task_ids_exist(config: RunConfig) -> Iterator[Problem]:
    """A method that needs task identities needs sessions whose classes are their own."""
    if config.strategy.declared_needs().task_ids and (
        config.scenario.view == "merged" or config.scenario.classes_return
    ):
        yield Problem(
            "strategy",
            f"strategy={config.strategy_name}: needs the task of each batch, which this stream does not have; "
            "use scenario=disjoint scenario.view=sessions, or choose a method without task identities",
        )


def memory_suits_method(config: RunConfig) -> Iterator[Problem]:
    """A memory only for methods that use one, and always for methods that cannot do without."""
    size, replay = config.protocol.memory_size, config.strategy.declared_needs().replay
    if replay == "none" and size > 0:
        yield problem_of(
            config,
            "protocol.memory_size",
            f"strategy={config.strategy_name} uses no memory of past samples; set it to 0",
        )
    if replay == "required" and size == 0:
        yield problem_of(
            config,
            "protocol.memory_size",
            f"strategy={config.strategy_name} needs a memory of past samples; set protocol.memory_size and "
            "protocol.replay_batch, for example 500 and 32",
        )


def memory_and_replay_go_together(config: RunConfig) -> Iterator[Problem]:
    """Either both are 0 or neither."""
    size, batch = config.protocol.memory_size, config.protocol.replay_batch
    if size > 0 and batch == 0:
        yield problem_of(
            config,
            "protocol.replay_batch",
            f"protocol.memory_size={size} would never be read; set protocol.replay_batch above 0",
        )
    if batch > 0 and size == 0:
        yield problem_of(
            config, "protocol.replay_batch", "there is no memory to draw from; set protocol.memory_size above 0"
        )


def memory_needs_the_planned_order(config: RunConfig) -> Iterator[Problem]:
    """A memory remembers places in the stream."""
    if config.protocol.memory_size > 0 and config.protocol.shuffle:
        yield problem_of(
            config,
            "protocol.shuffle",
            f"protocol.memory_size={config.protocol.memory_size} remembers places in the stream; set it to false",
        )


def momentum_is_of_sgd(config: RunConfig) -> Iterator[Problem]:
    """No key is accepted and ignored."""
    if config.protocol.momentum > 0 and config.protocol.optimizer != "sgd":
        yield problem_of(
            config,
            "protocol.momentum",
            f"protocol.optimizer={config.protocol.optimizer} has no such setting; use sgd, or set it to 0",
        )


def blocks_exist(config: RunConfig) -> Iterator[Problem]:
    """Blocks named by a method lie within the backbone, where its depth is known beforehand."""
    record = find_record(config.backbone.timm_name)
    depth = config.backbone.depth or (record.depth if record else None)
    if depth is None:
        return
    for key in type(config.strategy).model_fields:
        value = getattr(config.strategy, key)
        if key.endswith("_layers") and isinstance(value, tuple) and value and max(value) >= depth:
            yield problem_of(
                config,
                f"strategy.{key}",
                f"backbone={config.backbone.name} has {depth} blocks, counted from 0 to {depth - 1}",
            )
        if key in ("prompt_layers", "query_blocks") and isinstance(value, int) and value > depth:
            yield problem_of(
                config, f"strategy.{key}", f"backbone={config.backbone.name} has {depth} blocks; use at most {depth}"
            )


def weights_are_there(config: RunConfig) -> Iterator[Problem]:
    """Weights of the hub lie in its cache where the user forbade connections."""
    record, hub = find_record(config.backbone.timm_name), Hub()
    if config.backbone.checkpoint != "hub" or record is None or record.hub is None:
        return
    if hub.offline and hub.cached(record.hub) is None:
        yield Problem("backbone.checkpoint", str(hub.absent(record.hub, "HF_HUB_OFFLINE forbids to ask the hub")))


def constants_are_known(config: RunConfig) -> Iterator[Problem]:
    """Images are normalised with constants of a data set only where it has some."""
    if config.backbone.normalisation == "dataset" and _constants(config.dataset_name) is None:
        yield problem_of(
            config,
            "backbone.normalisation",
            f"dataset={config.dataset_name} has no constants of its own; use checkpoint, imagenet or none",
        )


def _constants(dataset: str) -> object:
    """What the module of a data set says of its pixels, without loading any."""
    return getattr(importlib.import_module(f"scenarios.datasets.{dataset}"), "NORMALISATION", None)


def dataset_is_there(config: RunConfig) -> Iterator[Problem]:
    """The data set finds its files, as far as can be seen without opening them."""
    try:
        check_dataset(config.dataset_name, config.dataset)  # type: ignore[arg-type]
    except DataError as error:
        yield Problem("dataset", str(error))


def plan_is_there(config: RunConfig) -> Iterator[Problem]:
    """A saved stream has both its files."""
    path = config.plan_path
    if path is None:
        return
    base = path / "plan.npz" if path.is_dir() else path
    missing = [file for file in (base.with_suffix(".npz"), base.with_suffix(".json")) if not file.is_file()]
    if missing:
        yield problem_of(
            config,
            "scenario.plan",
            f"there is no file {missing[0]}; give a folder with plan.npz and plan.json, such as the folder of a run",
        )


def starting_prompts_are_there(config: RunConfig) -> Iterator[Problem]:
    """A file of prompts that a method starts from exists."""
    path = getattr(config.strategy, "warm_start", "none")
    if path != "none" and not Path(path).is_file():
        yield problem_of(
            config,
            "strategy.warm_start",
            "there is no such file; make one with python -m cl_prompts.strategies.misa_warm_up, or set it to none",
        )


def output_can_be_written(config: RunConfig) -> Iterator[Problem]:
    """The output folder exists or can be made, and takes files."""
    folder = config.output_path
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield problem_of(config, "output", f"{existing} is a file; give a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield problem_of(config, "output", f"no permission to write into {existing.absolute()}; give another folder")


RULES: tuple[Rule, ...] = (
    Rule(published_samplers_return_home, ("scenario.mode", "scenario.allow_home")),
    Rule(boundary_masks_need_sessions, ("protocol.train_mask", "scenario.view")),
    Rule(
        task_mask_needs_disjoint_classes,
        ("protocol.train_mask", "scenario.view", "scenario.disjoint_class_pct", "scenario.blurry_sample_pct"),
    ),
    Rule(required_boundaries_are_visible, ("strategy", "scenario.view")),
    Rule(required_task_ids_exist, ("strategy", "scenario.view")),
    Rule(memory_suits_method, ("strategy", "protocol.memory_size")),
    Rule(memory_and_replay_go_together, ("protocol.memory_size", "protocol.replay_batch")),
    Rule(memory_needs_the_planned_order, ("protocol.memory_size", "protocol.shuffle")),
    Rule(momentum_is_of_sgd, ("protocol.momentum", "protocol.optimizer")),
    *LABEL_RULES,
    Rule(blocks_exist, ("strategy", "backbone.depth", "backbone.timm_name", "backbone.name")),
    Rule(weights_are_there, ("backbone.checkpoint", "backbone.timm_name")),
    Rule(constants_are_known, ("backbone.normalisation", "dataset")),
    Rule(dataset_is_there, ("dataset",)),
    Rule(plan_is_there, ("scenario.plan",)),
    Rule(starting_prompts_are_there, ("strategy",)),
    Rule(output_can_be_written, ("output",)),
)
