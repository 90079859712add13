"""`Problem` and `Rule`: one line about one key, and a check that finds such lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cl_prompts.runs.fields import value_text
from cl_prompts.runs.schema import RunConfig
from scenarios.errors import as_line


@dataclass(frozen=True)
class Problem:
    """One line about one key.

    Attributes:
        key: dotted name; a group alone where no single key is at fault.
        text: the line, naming key, value, what is allowed and what to do.
    """

    key: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", as_problem(self.text))


def as_problem(text: str) -> str:
    """A problem as one line that every terminal can hold; records of weights, each a line of its own, stay so."""
    return "\n  ".join(as_line(line) for line in text.split("\n  "))


@dataclass(frozen=True)
class Rule:
    """A check and the keys it reads; it is left out where one of them is wrong by itself or not there."""

    check: Callable[[RunConfig], Iterator[Problem]]
    reads: tuple[str, ...]


def problem_of(config: RunConfig, key: str, reason: str) -> Problem:
    """The line `key=value: reason` about a key of a configuration."""
    value = config
    for part in key.split("."):
        value = getattr(value, part)
    return Problem(key, f"{key}={value_text(value)}: {reason}")
