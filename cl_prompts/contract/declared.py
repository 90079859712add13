"""What a strategy promises about its file: settings that check themselves, a config that matches, a named source."""

from __future__ import annotations

import importlib
import re
from typing import Any

import yaml
from pydantic import ValidationError

from cl_prompts.config_folder import config_folder
from cl_prompts.contract.check import Promise, require, require_refusal
from cl_prompts.contract.subject import Subject
from cl_prompts.strategies.declaration import describe_strategy, read_settings, strategy_file

_SOURCE = re.compile(r"arXiv|\b(19|20)\d\d\b|Source:")
"""How a docstring names where a method comes from: a number of arXiv, a year, or a line that says so."""


def settings_survive_yaml(subject: Subject) -> None:
    """Settings written as YAML and read again are the same."""
    settings = subject.settings_class(**subject.values)
    written = yaml.safe_dump(settings.model_dump(mode="json"))
    require(subject.settings_class(**yaml.safe_load(written)) == settings, "settings read from YAML differ")


def an_unknown_key_is_refused(subject: Subject) -> None:
    """A misspelt key of the settings is refused."""
    try:
        subject.settings_class(**{**subject.values, "no_such_key": 1})
    except ValidationError:
        return
    raise AssertionError("settings accept a key that they do not have")


def settings_of_another_method_are_refused(subject: Subject) -> None:
    """A strategy given settings of another class, or a bare dictionary, refuses them in one line."""
    from cl_prompts.contract.toys import CLASSES
    from cl_prompts.errors import StrategyError

    def build() -> Any:
        return subject.strategy_class(
            backbone=subject.backbone,
            num_classes=CLASSES,
            settings=dict(subject.values),  # type: ignore[arg-type]
        )

    require_refusal(build, StrategyError, "a dictionary of settings")


def every_setting_is_described(subject: Subject) -> None:
    """Every key has a default and a description, and the defaults fit one another."""
    for key, field in subject.settings_class.model_fields.items():
        require(not field.is_required(), f"{key} has no default")
        require(bool(field.description), f"{key} has no description")
    subject.settings_class()


def settings_are_read_without_torch(subject: Subject) -> None:
    """The class statement of the settings alone gives the class that the imported file has."""
    read = read_settings(subject.name)
    imported = subject.strategy_class.method_class.settings_class
    require(read.__name__ == imported.__name__, f"{read.__name__} is read, {imported.__name__} is used")
    require(read.model_json_schema() == imported.model_json_schema(), "the read and the used settings differ")
    require(read.needs == imported.needs, "the read and the used needs differ")


def the_file_names_its_source(subject: Subject) -> None:
    """The docstring of the file begins with one line about the method and names its source."""
    import ast

    text = ast.get_docstring(ast.parse(strategy_file(subject.name).read_text(encoding="utf-8"))) or ""
    require(len(describe_strategy(subject.name)) > 10, "the file has no docstring that says what it is")
    require(bool(_SOURCE.search(text)), "the docstring names no source: an arXiv number, a year, or `Source: ...`")


def the_config_file_matches_the_settings(subject: Subject) -> None:
    """The config file has every key with its default and one comment each, in the order of the settings."""
    path = config_folder() / "strategy" / f"{subject.name}.yaml"
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    schema = read_settings(subject.name)
    require(values.pop("name", None) == subject.name, f"{path}: name is not {subject.name}")
    require(list(values) == list(schema.model_fields), f"{path}: keys are {list(values)}, not those of the settings")
    differing = [key for key, value in schema(**values).model_dump().items() if value != schema().model_dump()[key]]
    require(not differing, f"{path}: {', '.join(differing)} are not the defaults of the settings")
    lines = text.splitlines()
    require(lines[0].startswith("# "), f"{path}: the first line is no summary")
    for key in values:
        line = next(line for line in lines if line.startswith(f"{key}:"))
        _, _, comment = line.partition("#")
        require(bool(comment.strip()), f"{path}: {key} has no comment")


def the_strategy_is_its_method_alone(subject: Subject) -> None:
    """The strategy class adds `method_class` and nothing else, and its parts are named alike."""
    own = {key for key in vars(subject.strategy_class) if not key.startswith("__")}
    more = own - {"method_class", "_abc_impl", "_is_protocol"}
    require(not more, f"{subject.strategy_class.__name__} defines {', '.join(sorted(more))}; write it into the method")
    require(
        subject.strategy_class.method_class.settings_class.__name__.endswith("Settings"), "settings are named *Settings"
    )
    module = importlib.import_module(subject.strategy_class.__module__)
    for part in (subject.strategy_class, subject.strategy_class.method_class):
        require(getattr(module, part.__name__, None) is part, f"{part.__name__} is not in {module.__name__}")
        require(bool(part.__doc__), f"{part.__name__} has no docstring")


def _is_named(subject: Subject) -> bool:
    return isinstance(subject.strategy, str)


def _has_config_file(subject: Subject) -> bool:
    return _is_named(subject) and (config_folder() / "strategy" / f"{subject.name}.yaml").is_file()


PROMISES: tuple[Promise[Subject], ...] = (
    Promise(settings_survive_yaml),
    Promise(an_unknown_key_is_refused),
    Promise(settings_of_another_method_are_refused),
    Promise(every_setting_is_described),
    Promise(settings_are_read_without_torch, _is_named),
    Promise(the_file_names_its_source, _is_named),
    Promise(the_config_file_matches_the_settings, _has_config_file),
    Promise(the_strategy_is_its_method_alone, _is_named),
)
