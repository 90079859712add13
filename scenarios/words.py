"""Settings of small programs, written `key=value` on the command line."""

from __future__ import annotations

from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from scenarios.settings import Settings

S = TypeVar("S", bound=Settings)


def settings_of_words(words: list[str], schema: type[S], command: str, error: type[Exception]) -> S:
    """Settings from words `key=value`.

    Args:
        words: of the command line.
        schema: what keys there are.
        command: how the program is called, for errors.
        error: class of what is raised.

    Raises:
        error: a word that is none, an unknown key, a wrong value; all problems, one line each.
    """
    strange = [word for word in words if "=" not in word]
    if strange:
        raise error(f"{strange[0]}: settings are written key=value; every key: {command} --help")
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    except (OmegaConfBaseException, YAMLError) as reason:
        raise error(f"{' '.join(words)}: cannot be read ({str(reason).splitlines()[0]})") from reason
    try:
        return schema(**given)
    except ValidationError as problems:
        raise error("\n".join(_problem(one, schema) for one in problems.errors())) from None


def _problem(details: Any, schema: type[Settings]) -> str:
    key = ".".join(map(str, details["loc"]))
    reason = details["msg"].removeprefix("Value error, ")
    known = ", ".join(schema.model_fields)
    return {
        "missing": f"{key}: missing; set {key}=",
        "extra_forbidden": f"{key}: no such key; choose among {known}",
    }.get(details["type"], f"{key}={details['input']}: {reason}" if key else reason)


def help_of(schema: type[Settings], command: str) -> str:
    """Every key with its default and meaning."""
    lines = [f"usage: {command} key=value ...", ""]
    for key, field in schema.model_fields.items():
        default = "(must be set)" if field.is_required() else field.default
        shown = "null" if default is None else default
        lines.append(f"  {key + '=' + str(shown):34s}{field.description}")
    return "\n".join(lines)
