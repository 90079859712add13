"""Every key a configuration can have, and the one that a misspelt key most likely meant."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from cl_prompts.runs.fields import close_match, field_texts, similarity
from cl_prompts.runs.schema import GROUPS, RunSettings, group_schema, known_names

_LEAF_CUTOFF = 0.8
_SYNONYMS = {
    "batch_size": "did you mean protocol.stream_batch?",
    "learning_rate": "did you mean protocol.lr?",
    "epochs": "did you mean protocol.epochs?",
    "n_tasks": "did you mean scenario.n_sessions?",
    "model": "did you mean backbone?",
    "input_norm": "did you mean backbone.normalisation?",
    "gpu": "did you mean device? such as device=cuda",
}
"""Usual words for what has another name here -> the advice."""


@cache
def top_keys() -> tuple[str, ...]:
    """Keys outside the groups."""
    return tuple(field_texts(RunSettings))


@cache
def owners(group: str) -> dict[str, tuple[str, ...]]:
    """Keys of a group over all its schemas -> the names that have each; an empty name where there is one schema."""
    found: dict[str, list[str]] = {}
    for name in known_names(group) or ("",):
        for key in field_texts(group_schema(group, name)):
            found.setdefault(key, []).append(name)
    return {key: tuple(names) for key, names in found.items()}


def unknown_key_text(key: str, names: Mapping[str, str]) -> str:
    """Why dotted `key` is refused and what was probably meant.

    Args:
        key: as typed, such as `strategy.pool_sise`.
        names: group -> chosen name, such as `{"strategy": "mvp"}`.
    """
    group, _, leaf = key.partition(".")
    synonym = _SYNONYMS.get(key.rpartition(".")[2])
    if synonym and not (group in GROUPS and leaf in owners(group)):
        return f"unknown key; {synonym}"
    if group not in GROUPS or not leaf:
        return f"unknown key{_meant(_closest_anywhere(key, names))}"
    name = names.get(group, "")
    others = [other for other in owners(group).get(leaf, ()) if other]
    if others:
        return f"{group}={name} has no such key; {_plural(group, others)}"
    own = _own(group, names)
    close = close_match(leaf, own)
    if close:
        return f"unknown key{_meant(f'{group}.{close}')}"
    elsewhere = _closest_leaf(leaf, names, cutoff=_LEAF_CUTOFF)
    if elsewhere:
        return f"unknown key{_meant(elsewhere)}"
    return f"unknown key; {group}={name} has {', '.join(own)}"


def _plural(group: str, names: list[str]) -> str:
    return f"{', '.join(f'{group}={name}' for name in names)} {'has' if len(names) == 1 else 'have'} it"


def _meant(key: str | None) -> str:
    return f"; did you mean {key}?" if key else "; see --help for all keys"


def _closest_anywhere(key: str, names: Mapping[str, str]) -> str | None:
    """Best of: a top-level key or group, a full dotted key, the last part of a dotted key."""
    top = close_match(key, [*top_keys(), *GROUPS, "experiment"])
    leaf = _closest_leaf(key.rpartition(".")[2], names, cutoff=_LEAF_CUTOFF)
    dotted = close_match(key, [f"{group}.{own}" for group in GROUPS for own in _own(group, names)], cutoff=0.75)
    options = [
        (similarity(key, top), top) if top else None,
        (similarity(key, dotted), dotted) if dotted else None,
        (similarity(key.rpartition(".")[2], leaf.partition(".")[2]), leaf) if leaf else None,
    ]
    return max((option for option in options if option), key=lambda option: option[0], default=(0.0, None))[1]


def _closest_leaf(leaf: str, names: Mapping[str, str], cutoff: float) -> str | None:
    best = max(
        ((similarity(leaf, own), f"{group}.{own}") for group in GROUPS for own in _own(group, names)),
        key=lambda option: option[0],
    )
    return best[1] if best[0] >= cutoff else None


def _own(group: str, names: Mapping[str, str]) -> list[str]:
    """Keys of the chosen schema without `name`, which is set by the choice."""
    known = group in names and (not known_names(group) or names[group] in known_names(group))
    schema = group_schema(group, names[group]) if known else None
    keys = field_texts(schema) if schema else owners(group)
    return [key for key in keys if key != "name"]
