"""What the command line asks for: every job it starts, each checked before anything heavy is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cl_prompts.backbones.records import record_lines, same_model
from cl_prompts.runs.compose import Composer, Composition, CompositionError, has_key, with_values
from cl_prompts.runs.fields import close_match, value_text
from cl_prompts.runs.overrides import CHOICE_GROUPS, Words, read_words, size_problems, split_jobs, sweep_problems
from cl_prompts.runs.problems import Problem, as_problem
from cl_prompts.runs.schema import GROUPS, RunConfig, group_schema, schema_name
from cl_prompts.runs.validation import check_config
from scenarios.ml_si_blurry import MLSiBlurrySettings
from scenarios.mlcil import MLCILSettings
from scenarios.multi_label_settings import MultiLabelEvaluationSettings
from scenarios.si_blurry import SiBlurrySettings


@dataclass(frozen=True)
class Request:
    """A checked command line.

    Attributes:
        configs: one for each job, in the order they start; empty if there are problems.
        problems: one line each; empty if everything can start.
        multirun: whether it is a sweep.
        hydra_words: the words to hand to Hydra; None if it could not compose them.
    """

    configs: tuple[RunConfig, ...]
    problems: tuple[str, ...]
    multirun: bool
    hydra_words: tuple[str, ...] | None


def read_request(composer: Composer, words: Iterable[str], *, multirun: bool) -> Request:
    """Compose and check every job that `words` ask for."""
    read = read_words(words, composer.loader)
    hydra_problems = _hydra_problems(composer, read.hydra)
    hydra_lines = () if hydra_problems else _lines(read.hydra)
    hydra_config = _common_hydra_config(composer, read, hydra_lines)
    multirun = multirun or hydra_config.mode == RunMode.MULTIRUN
    unreadable = [*read.problems, *hydra_problems, *([] if multirun else sweep_problems(read))]
    parameters = _sweeper_parameters(hydra_config) if multirun else {}
    unreadable += size_problems(read, parameters, composer.loader)
    jobs = split_jobs(read, parameters, composer.loader)
    unread = frozenset(read.unread)
    checked = [check_job(composer, job, hydra_lines, unread) for job in jobs]
    problems = [*unreadable, *(problem for job in checked for problem in job.problems)]
    configs = [job.config for job in checked if job.config is not None]
    if not problems:
        problems += _same_folders(configs)
    composable = not unreadable and all(job.composable for job in checked)
    added = frozenset().union(*(job.added for job in checked))
    return Request(
        configs=() if problems else tuple(configs),
        problems=tuple(dict.fromkeys(map(as_problem, problems))),
        multirun=multirun,
        hydra_words=tuple(_hydra_words(composer, read, added)) if composable else None,
    )


@dataclass(frozen=True)
class CheckedJob:
    """One job: its configuration, or why there is none.

    Attributes:
        config: None if there are problems.
        problems: one line each.
        composable: the config files fit together, whatever the check says about keys and values.
        added: keys set by words that the config files do not have.
    """

    config: RunConfig | None
    problems: list[str]
    composable: bool
    added: frozenset[str] = frozenset()


def check_job(
    composer: Composer, job: Words, hydra_lines: tuple[str, ...] = (), unread: frozenset[str] = frozenset()
) -> CheckedJob:
    """Compose and check one job; `unread` are keys and groups whose words cannot be read."""
    choices, unknown, problems = resolve_choices(composer, job.choices)
    guessed = {
        group for group in job.choices if group in unknown or value_text(job.choices[group].value()) != choices[group]
    }
    composable = not problems
    unsure = unknown | unread.intersection(CHOICE_GROUPS)
    values = {key: value for key, value in job.values.items() if key.partition(".")[0] not in unsure}
    problems += [
        f"{key}={override.get_value_string()}: set by the choice of {key.partition('.')[0]}; write {key[:-5]}=..."
        for key, override in values.items()
        if key in _NAME_KEYS
    ]
    values = {key: override for key, override in values.items() if key not in _NAME_KEYS}
    try:
        composition = composer.compose(choices, hydra_lines)
        raw = with_values(composition.config, values)
    except CompositionError as error:
        return CheckedJob(None, [*problems, str(error)], composable=False)
    raw["experiment"] = composition.choices["experiment"] or raw.get("experiment")
    doubtful = unread | guessed
    if "experiment" in doubtful:
        doubtful |= set(GROUPS)  # a recipe sets any of them
    origins = _origins(composer, composition, values)
    config, found = check_config(raw, origins, frozenset(doubtful))
    misfits = _recipe_misfits(composer, composition, choices, raw, found, origins)
    if misfits:
        problems += misfits.values()
        _, found = check_config(raw, origins, frozenset(doubtful | misfits.keys()))
    problems += _decided_by_plan(raw, values)
    unsaid = unsure | misfits.keys()
    problems += [problem.text for problem in found if problem.key.partition(".")[0] not in unsaid]
    added = frozenset(key for key in values if not has_key(composition.config, key))
    return CheckedJob(None if problems else config, problems, composable, added)


def resolve_choices(
    composer: Composer, words: Mapping[str, Override]
) -> tuple[dict[str, str], frozenset[str], list[str]]:
    """Check words `group=choice`.

    Returns:
        The choices to compose, a misspelt one replaced by what it most likely meant so that the rest can be checked as
        well; the groups for which nothing is close; one line for each wrong choice.
    """
    choices: dict[str, str] = {}
    unsure: set[str] = set()
    problems: list[str] = []
    for group, override in words.items():
        choice, available = value_text(override.value()), composer.choices(group)
        if choice in available:
            choices[group] = choice
            continue
        close = close_match(choice, available)
        if close:
            choices[group] = close
        else:
            unsure.add(group)
        problems.append(_choice_problem(composer, group, choice, available, close))
    return choices, frozenset(unsure), problems


_NAME_KEYS = frozenset(f"{group}.name" for group in CHOICE_GROUPS)


def _choice_problem(composer: Composer, group: str, choice: str, available: list[str], close: str | None) -> str:
    elsewhere = [other for other in CHOICE_GROUPS if other != group and choice in composer.choices(other)]
    if elsewhere:
        hint = f"{choice} is a choice of {elsewhere[0]}, write {elsewhere[0]}={choice}; "
    else:
        hint = f"did you mean {close}? " if close else ""
    line = f"{group}={choice}: {hint}choose one of {', '.join(available)}"
    if group == "backbone" and (tags := same_model(choice)):
        # A model of timm is asked for as in other code, where the name does not say which weights it means.
        return "\n".join([f"{line}; and set backbone.timm_name to one of", *record_lines(tags)])
    return line


def _hydra_problems(composer: Composer, words: list[Override]) -> list[str]:
    """One line for each word that Hydra itself would refuse."""
    if not words or _composes(composer, _lines(words)):
        return []
    problems = []
    accepted: tuple[str, ...] = ()
    for override in sorted(words, key=lambda word: "/" not in word.key_or_group):
        line = override.input_line or ""
        if _composes(composer, (*accepted, line)):
            accepted += (line,)
            continue
        available = composer.choices(override.key_or_group) if "/" in override.key_or_group else []
        known = f"choose one of {', '.join(available)}; others are plugins that pip installs" if available else ""
        problems.append(f"{line}: {known or 'Hydra has no such setting; see --hydra-help'}")
    return problems


def _composes(composer: Composer, lines: tuple[str, ...]) -> bool:
    try:
        composer.compose({}, lines)
    except CompositionError:
        return False
    return True


def _lines(words: Iterable[Override]) -> tuple[str, ...]:
    return tuple(override.input_line or "" for override in words)


def _hydra_words(composer: Composer, words: Words, added: frozenset[str]) -> list[str]:
    """The words to hand to Hydra for a checked run; `++` where a key is not in the files."""
    settings = [f"{group}={override.get_value_string()}" for group, override in words.choices.items()]
    for key, override in words.values.items():
        settings.append(f"{'++' if key in added else ''}{key}={override.get_value_string()}")
    return [*composer.silent_words, *settings, *_lines(words.hydra)]


def _common_hydra_config(composer: Composer, words: Words, hydra_lines: tuple[str, ...]) -> DictConfig:
    """Hydra's part of the composition with the choices that all jobs share: it may ask for a sweep."""
    shared = {group: override for group, override in words.choices.items() if not override.is_sweep_override()}
    choices, _, _ = resolve_choices(composer, shared)
    try:
        return composer.compose(choices, hydra_lines).hydra
    except CompositionError:
        return composer.defaults.hydra


def _sweeper_parameters(hydra_config: DictConfig) -> dict[str, str]:
    """Sweeps that config files ask for: `hydra.sweeper.params`."""
    parameters = OmegaConf.select(hydra_config, "sweeper.params")
    return {} if parameters is None else {str(key): str(value) for key, value in parameters.items()}


def _origins(composer: Composer, composition: Composition, typed: Mapping[str, Any]) -> dict[str, str]:
    """Keys that the experiment file sets and the command line does not -> a note that says so."""
    name = composition.choices["experiment"]
    path = composer.choice_file("experiment", name) if name else None
    if path is None:
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return {}
    keys = [key for key, value in content.items() if not isinstance(value, dict)]
    keys += [f"{group}.{key}" for group, record in content.items() if isinstance(record, dict) for key in record]
    return {key: f" (set by experiment={name})" for key in keys if key not in typed}


def _recipe_misfits(
    composer: Composer,
    composition: Composition,
    choices: Mapping[str, str],
    raw: Mapping[str, Any],
    found: Sequence[Problem],
    origins: Mapping[str, str],
) -> dict[str, str]:
    """Groups for which the command line chooses what the experiment is not made for -> one line about each.

    Such a choice is a mistake only if keys that the experiment sets do not exist there.
    """
    name = choices.get("experiment")
    foreign = {
        problem.key.partition(".")[0] for problem in found if problem.key in origins and _is_foreign(problem.key, raw)
    }
    misfits = {}
    for group in sorted(foreign & choices.keys()):
        meant = composer.compose({"experiment": name}).choices[group] if name else None
        if meant is not None and meant != composition.choices[group]:
            misfits[group] = (
                f"experiment={name} is a recipe for {group}={meant}; leave out {group}={choices[group]}, "
                "or the experiment"
            )
    return misfits


def _is_foreign(key: str, raw: Mapping[str, Any]) -> bool:
    """Whether the choice made for the group of `key` has no such key."""
    group, _, leaf = key.partition(".")
    name = schema_name(group, raw[group]) if group in GROUPS else None
    return name is not None and leaf not in group_schema(group, value_text(name)).model_fields


def _decided_by_plan(raw: Mapping[str, Any], typed: Mapping[str, Override]) -> list[str]:
    """One line for each typed key of the stream's making beside a saved stream, which would ignore it."""
    scenario = raw.get("scenario")
    if not isinstance(scenario, Mapping) or scenario.get("plan") is None:
        return []
    return [
        f"{key}={override.get_value_string()}: the saved stream decides it; leave it out"
        for key, override in typed.items()
        if key in _STREAM_KEYS and override.value() is not None
    ]


_STREAM_KEYS = frozenset(
    f"scenario.{key}"
    for key in (
        *SiBlurrySettings.model_fields,
        *(MLCILSettings.model_fields.keys() | MLSiBlurrySettings.model_fields.keys())
        - MultiLabelEvaluationSettings.model_fields.keys(),
        "seed",
    )
)


def _same_folders(configs: list[RunConfig]) -> list[str]:
    """Jobs of a sweep that would write into one folder."""
    counts = Counter((config.output, config.name) for config in configs if config.name is not None)
    return [
        f"name={name}: {count} runs of this sweep would share one folder; set name=null, or build it from what "
        "differs, such as 'name=${strategy.name}_${seed}'"
        for (_, name), count in counts.items()
        if count > 1
    ]
