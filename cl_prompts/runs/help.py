"""`--help`: every choice with one line, the keys outside the groups, and the keys of choices that were named."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cl_prompts import __version__
from cl_prompts.runs.compose import Composer
from cl_prompts.runs.fields import FieldText, field_texts, value_text
from cl_prompts.runs.overrides import CHOICE_GROUPS
from cl_prompts.runs.schema import GROUPS, RunSettings, group_schema, schema_name
from cl_prompts.strategies.declaration import describe_strategy
from scenarios.settings import Settings

_GROUP_LINES = {
    "scenario": "which sample comes when",
    "dataset": "the images",
    "backbone": "the frozen Vision Transformer",
    "strategy": "the method",
    "protocol": "batches, updates, augmentation, optimizer, masks, evaluation",
    "experiment": "recipes that set several of the above; none by default",
}
_OPTIONS = {
    "-m": "start one run for each combination of values with commas",
    "--config-dir DIR": "folder of your own configs, such as DIR/strategy/mine.yaml",
    "--cfg job": "print the configuration as composed (mode=config: as checked)",
    "--info": "say where every setting comes from",
    "--hydra-help": "options of Hydra, which reads the configs",
}
_INDENT = "  "


def help_text(composer: Composer, choices: Mapping[str, str], commands: Mapping[str, str]) -> str:
    """The whole help page as plain text.

    Args:
        composer: the configs.
        choices: groups whose keys are to be listed -> the choice.
        commands: words of command lines about a saved run -> what they do.
    """
    program = program_name()
    composition = composer.compose(choices)
    parts = [
        [f"cl-prompts {__version__}: continual learning with prompts on frozen Vision Transformers"],
        [f"Usage: {program} [key=value ...] [-m] [options]"],
        _examples(program),
        ["Saved runs", *_columns(commands)],
        *(_group(composer, group, composition.choices.get(group)) for group in CHOICE_GROUPS),
    ]
    plain = OmegaConf.to_container(composition.config, resolve=False)
    assert isinstance(plain, dict)
    values: dict[Any, Any] = plain
    parts.append(["Keys outside the groups", *_keys(field_texts(RunSettings), values)])
    for group in GROUPS:
        if group in choices:
            record = values[group]
            fields = dict(field_texts(group_schema(group, value_text(schema_name(group, record)))))
            fields.pop("name", None)
            parts.append([f"Keys of {group}={choices[group]}, set as {group}.KEY=VALUE", *_keys(fields, record)])
    parts.append(["Options", *_columns(_OPTIONS)])
    parts.append([f"Keys of a choice, with ranges: {program} strategy=mvp --help"])
    return "\n\n".join("\n".join(part) for part in parts)


def command_help_text(usage: str, description: str, settings: type[Settings] | None) -> str:
    """The help page of a command line about a saved run; `settings` are its keys, None: those of the run."""
    parts = [[f"Usage: {program_name()} {usage} [key=value ...]"], [f"{_INDENT}{description}"]]
    if settings is not None:
        parts.append(["Keys", *_keys(field_texts(settings), {})])
    return "\n\n".join("\n".join(part) for part in parts)


def program_name() -> str:
    """How this program was called: `python run.py` or `cl-prompts`."""
    called = Path(sys.argv[0]).name
    return f"python {called}" if called.endswith(".py") else called or "cl-prompts"


def summary(composer: Composer, group: str, choice: str) -> str:
    """First comment line of a choice's config, the package line of Hydra aside; of a foreign method its docstring's."""
    path = composer.choice_file(group, choice)
    if path is None and group == "strategy":
        return describe_strategy(choice)
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    comments = (line.lstrip("#").strip() for line in lines if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@")), "")


def _examples(program: str) -> list[str]:
    return [
        "Examples",
        f"{_INDENT}{program} scenario=si_blurry strategy=mvp",
        f"{_INDENT}{program} -m strategy=mvp,single_prompt,ncm seed=1,2,3",
        f"{_INDENT}{program} strategy=mvp strategy.variant=paper scenario.n_sessions=10 protocol.train_mask=batch",
    ]


def _group(composer: Composer, group: str, default: str | None) -> list[str]:
    texts = {
        f"{choice}{' *' if choice == default else ''}": summary(composer, group, choice)
        for choice in composer.choices(group)
    }
    return [f"{group}=...   {_GROUP_LINES[group]}{' (* in use)' if default else ''}", *_columns(texts)]


def _keys(fields: Mapping[str, FieldText], values: Mapping[str, Any]) -> list[str]:
    """Two lines a key: name, value and range; below it the description."""
    name_width = max(map(len, fields))
    shown = {key: value_text(values.get(key, fields[key].default)) for key in fields}
    value_width = min(max(map(len, shown.values())), 20)
    lines = []
    for key, text in fields.items():
        start = f"{_INDENT}{key:<{name_width}}  {shown[key]:<{value_width}}  "
        lines += _wrapped(text.allowed, start, " " * len(start))
        indent = _INDENT * 3
        lines += _wrapped(text.description, indent, indent) if text.description else []
    return lines


def _columns(texts: Mapping[str, str]) -> list[str]:
    width = max(map(len, texts), default=0)
    indent = f"{_INDENT}{' ' * width}  "
    return [line for word, text in texts.items() for line in _wrapped(text, f"{_INDENT}{word:<{width}}  ", indent)]


def _wrapped(text: str, first: str, others: str) -> list[str]:
    width = min(max(shutil.get_terminal_size().columns, 80), 100)
    wrapped = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return wrapped or [first.rstrip()]
