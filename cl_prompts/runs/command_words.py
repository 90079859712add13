"""Words `key=value` of command lines that compose no configuration, checked against one settings class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from cl_prompts.runs.fields import close_match
from cl_prompts.runs.validation import key_line
from scenarios.settings import Settings


@dataclass(frozen=True)
class CommandWords:
    """What words say.

    Attributes:
        values: every key that could be read, with its value.
        right: those whose value is allowed.
        problems: one line for everything that is wrong.
    """

    values: Mapping[str, Any]
    right: Mapping[str, Any]
    problems: list[str]


def read_command_words(
    words: Sequence[str], settings: type[Settings], *, text_keys: Collection[str], command: str, example: str
) -> CommandWords:
    """Read and check all words, and say everything that is wrong with them at once.

    Args:
        words: of the command line.
        settings: the keys that there are.
        text_keys: keys whose value is what was typed.
        command: such as `mode=predict`, for the line about an unknown key.
        example: such as `images=folder`, for the line about a word without a value.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if not equals:
            problems.append(f"{word}: write key=value, for example {example}")
        elif key not in settings.model_fields:
            close = close_match(key, settings.model_fields)
            meant = f"did you mean {close}?" if close else f"{command} has {', '.join(settings.model_fields)}"
            problems.append(f"{word}: unknown key; {meant}")
        else:
            try:
                values[key] = _text(value) if key in text_keys else _value(key, value)
            except (OmegaConfBaseException, yaml.YAMLError) as error:
                problems.append(f"{word}: cannot be read ({str(error).splitlines()[0]})")
                values.pop(key, None)
    unread = {problem.lstrip("+").partition("=")[0] for problem in problems}
    wrong = _wrong_values(settings, values)
    problems += [line for key, line in wrong.items() if key not in unread]
    return CommandWords(values, {key: value for key, value in values.items() if key not in wrong}, problems)


def _wrong_values(settings: type[Settings], values: Mapping[str, Any]) -> dict[str, str]:
    """Key -> the line about its value."""
    try:
        settings.model_validate(values)
    except ValidationError as error:
        wrong = {str(details["loc"][0]): details for details in error.errors(include_url=False)}
        return {key: key_line(key, key, settings, values, details) for key, details in wrong.items()}
    return {}


def _text(typed: str) -> str | None:
    text = typed.strip("'\"")
    return None if typed in ("", "null") else text


def _value(key: str, typed: str) -> Any:
    values: Mapping[Any, Any] = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={typed}"]))  # type: ignore
    return values[key]
