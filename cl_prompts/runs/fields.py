"""Words about a config key for help and error lines: what is allowed, the default, how a value is written."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from scenarios.settings import Settings


@dataclass(frozen=True)
class FieldText:
    """One key of a schema in words."""

    key: str
    allowed: str
    default: str
    description: str
    choices: tuple[str, ...]


@cache
def field_texts(schema: type[Settings]) -> dict[str, FieldText]:
    """Every key of a settings class, in the order of declaration."""
    properties = schema.model_json_schema().get("properties", {})
    required = {key for key, field in schema.model_fields.items() if field.is_required()}
    return {
        key: FieldText(
            key=key,
            allowed=allowed_text(text),
            default="" if key in required else value_text(text.get("default")),
            description=text.get("description", ""),
            choices=_choices(text),
        )
        for key, text in properties.items()
    }


def allowed_text(schema: Mapping[str, Any]) -> str:
    """The values a JSON schema allows, such as `a whole number of at least 1, or null`."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "anyOf" in schema:
        alternatives = [allowed_text(option) for option in schema["anyOf"]]
        return ", or ".join(alternatives)
    if "enum" in schema:
        return _listed([value_text(value) for value in schema["enum"]])
    if "const" in schema:
        return value_text(schema["const"])
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])} values, each {allowed_text(schema['prefixItems'][0])}"
    if schema.get("type") == "array":
        return f"a list, each {allowed_text(schema.get('items', {}))}"
    kind = _KINDS.get(schema.get("type", ""), "a value")
    return " ".join([kind, *_bounds(schema)])


_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "object": "a group of keys",
    "null": "null",
}
_LARGEST_SHOWN = 2**53


def _choices(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The words a key may take, where there is a list of them."""
    options = [schema, *schema.get("anyOf", ())]
    return tuple(word for option in options for word in option.get("enum", ()) if isinstance(word, str))


def _bounds(schema: Mapping[str, Any]) -> list[str]:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return [f"from {_number(low)} to {_number(high)}"]
    words = []
    if low is not None:
        words.append(f"of at least {_number(low)}")
    if above is not None:
        words.append(f"greater than {_number(above)}")
    if high is not None:
        words.append(f"{'and ' if words else ''}at most {_number(high)}")
    if below is not None:
        words.append(f"{'and ' if words else ''}{_below(below)}")
    return words


def _below(limit: float) -> str:
    if limit > _LARGEST_SHOWN and math.log2(limit).is_integer():
        return f"below 2^{math.log2(limit):.0f}"
    return f"less than {_number(limit)}"


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < _LARGEST_SHOWN else str(value)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def value_text(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(value_text(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{value_text(item)}' for key, item in value.items())}}}"
    return str(value)


def close_match(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate that `word` most likely meant; None if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def similarity(word: str, candidate: str) -> float:
    """0 (nothing in common) to 1 (equal)."""
    return difflib.SequenceMatcher(None, word.lower(), candidate.lower()).ratio()
