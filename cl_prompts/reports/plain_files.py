"""Files of a run folder as plain data; whatever somebody left there, one line says what is wrong with it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cl_prompts.errors import UserError

LARGEST_FILE = 64 * 2**20
"""Bytes; no file that a run writes as text comes near."""

T = TypeVar("T")


class Unreadable(UserError):
    """A file that is missing, damaged, or not what its name promises; one line that opens with the name."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file with named values at its top.

    Raises:
        Unreadable: it is none.
    """
    return _mapping(path, _plain_yaml)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with named values at its top.

    Raises:
        Unreadable: it is none.
    """
    return _mapping(path, json.loads)


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file, each row as long as the header.

    Raises:
        Unreadable: it is none, or rows are cut short.
    """
    rows = _parsed(path, lambda text: list(csv.reader(io.StringIO(text, newline=""))))
    if not rows:
        raise Unreadable(f"{path.name}: is empty")
    header, body = rows[0], rows[1:]
    if any(len(row) != len(header) for row in body):
        raise Unreadable(f"{path.name}: has rows of other lengths than its header")
    return header, body


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    content = _parsed(path, parse)
    if not isinstance(content, dict):
        raise Unreadable(f"{path.name}: holds no named values")
    return {str(key): value for key, value in content.items()}


def _parsed(path: Path, parse: Callable[[str], T]) -> T:
    if not path.is_file():
        raise Unreadable(f"{path.name}: is missing")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Unreadable(f"{path.name}: is larger than anything a run writes")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, csv.Error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{path.name}: cannot be read ({reason})") from error


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The fast one where it exists; neither builds anything but plain values."""


DEEPEST_YAML = 50
"""Values within values."""


def _plain_yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        # A few lines of references can stand for gigabytes, and what is nested without end for a broken stack.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("references, & and *, have no place in it")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_YAML:
            raise ValueError(f"more than {DEEPEST_YAML} values within values")
    return yaml.load(text, Loader=_Loader)
