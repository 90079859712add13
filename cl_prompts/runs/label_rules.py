"""Combinations that cannot run because of how many labels an image has, or because of several passes over a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cl_prompts.runs.problems import Problem, Rule, problem_of
from cl_prompts.runs.schema import MLCILScenario, RunConfig
from cl_prompts.strategies.declaration import Needs, read_settings, strategy_names
from scenarios.datasets import known_num_classes
from scenarios.errors import DataError, PlanError
from scenarios.mlcil import check_task_division, multi_label_plan


def labels_suit_method(config: RunConfig) -> Iterator[Problem]:
    """Images with several labels need a method that can learn from them."""
    if _has_several(config) and not config.strategy.declared_needs().multi_label:
        yield Problem(
            "strategy",
            f"strategy={config.strategy_name}: learns one label an image, dataset={config.dataset_name} has several; "
            f"choose {', '.join(_names_of(lambda needs: needs.multi_label))}, or another data set",
        )


def _names_of(fits: Callable[[Needs], bool]) -> list[str]:
    """Methods whose needs are of a kind."""
    return [name for name in strategy_names() if fits(read_settings(name).needs)]


def _has_several(config: RunConfig) -> bool:
    return bool(getattr(config.dataset, "multi_label", False))


def labels_suit_scenario(config: RunConfig) -> Iterator[Problem]:
    """A stream of several labels an image needs a data set that has them, and the other way round."""
    several, name = config.scenario.multi_label, config.scenario.name
    if several and not _has_several(config):
        yield Problem(
            "dataset",
            f"dataset={config.dataset_name}: has one label an image, scenario={name} needs several; "
            "use dataset=digit_mosaics, voc2007, coco2014, or image_folder with dataset.labels=several",
        )
    if not several and _has_several(config):
        yield Problem(
            "dataset",
            f"dataset={config.dataset_name}: has several labels an image, scenario={name} needs one; "
            "use scenario=mlcil or ml_si_blurry, or another data set",
        )


def tasks_divide_the_classes(config: RunConfig) -> Iterator[Problem]:
    """Base and increment divide the classes, where their number is known before loading."""
    scenario = config.scenario
    if not isinstance(scenario, MLCILScenario) or scenario.plan is not None or not _has_several(config):
        return
    try:
        classes = known_num_classes(config.dataset_name, config.dataset)  # type: ignore[arg-type]
    except DataError:
        return  # the rule about the data set says so
    if classes is None:
        return
    try:
        check_task_division(classes, scenario.base, scenario.increment)
    except PlanError as error:
        yield Problem("scenario.increment", f"scenario.{error}")
        return
    if not isinstance(scenario.order, str):
        try:
            multi_label_plan(classes, scenario.base, scenario.increment, scenario.order)
        except PlanError as error:
            yield Problem("scenario.order", f"scenario.{error}")


def visible_labels_are_the_mask(config: RunConfig) -> Iterator[Problem]:
    """With several labels an image the visible ones alone make the loss, and the classes seen the metrics."""
    for key in ("train_mask", "eval_mask"):
        if config.scenario.multi_label and getattr(config.protocol, key) != "exposed":
            yield problem_of(
                config,
                f"protocol.{key}",
                f"has no effect on scenario={config.scenario.name}, where the visible labels decide; set it to exposed",
            )


def visible_labels_show_sessions(config: RunConfig) -> Iterator[Problem]:
    """With several labels an image no stream hides where a session ends."""
    if config.scenario.multi_label and config.scenario.view == "merged":
        yield problem_of(
            config,
            "scenario.view",
            f"the visible labels of scenario={config.scenario.name} tell where a session ends, nothing can hide it; "
            "use sessions",
        )


def order_can_change(config: RunConfig) -> Iterator[Problem]:
    """Streams without boundaries, and those whose batches decide what is visible, pass once and in order."""
    scenario, protocol = config.scenario, config.protocol
    is_merged = scenario.view == "merged" and not scenario.multi_label
    if not is_merged and not scenario.stays_in_order:
        return
    reason = "scenario.view=merged" if is_merged else f"scenario={scenario.name}"
    if protocol.epochs > 1:
        yield problem_of(config, "protocol.epochs", f"{reason} passes once; set it to 1")
    if protocol.shuffle:
        yield problem_of(config, "protocol.shuffle", f"{reason} has an order that must stay; set it to false")


def sessions_can_be_deferred(config: RunConfig) -> Iterator[Problem]:
    """Periodic points cannot wait for the end."""
    if config.protocol.session_evaluation == "deferred" and config.protocol.eval_every:
        yield problem_of(
            config,
            "protocol.session_evaluation",
            f"only session ends can be measured later; set protocol.eval_every=0 (it is {config.protocol.eval_every}), "
            "or use live",
        )
    elif config.protocol.session_evaluation == "deferred" and not config.strategy.declared_needs().grows_by_parts:
        yield problem_of(
            config,
            "protocol.session_evaluation",
            f"strategy={config.strategy_name} does not grow by finished parts, so earlier sessions cannot be "
            f"measured at the end; use live, or strategy={' or '.join(_names_of(lambda needs: needs.grows_by_parts))}",
        )
    elif config.protocol.session_evaluation == "deferred" and config.scenario.classes_return:
        yield problem_of(
            config,
            "protocol.session_evaluation",
            f"classes of scenario={config.scenario.name} return, so that earlier states are gone at the end; use live",
        )


LABEL_RULES: tuple[Rule, ...] = (
    Rule(tasks_divide_the_classes, ("scenario", "scenario.base", "scenario.increment", "scenario.order", "dataset")),
    Rule(labels_suit_scenario, ("scenario", "dataset")),
    Rule(labels_suit_method, ("strategy", "dataset")),
    Rule(visible_labels_are_the_mask, ("scenario", "protocol.train_mask", "protocol.eval_mask")),
    Rule(visible_labels_show_sessions, ("scenario", "scenario.view")),
    Rule(order_can_change, ("scenario.view", "protocol.epochs", "protocol.shuffle")),
    Rule(sessions_can_be_deferred, ("protocol.session_evaluation", "protocol.eval_every", "scenario", "strategy")),
)
