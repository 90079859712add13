"""Published values beside ours: what a recipe names, and whether the runs are still the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from cl_prompts.config_folder import config_folder
from cl_prompts.errors import UserError
from cl_prompts.reports.identity import value_text
from cl_prompts.reports.plain_files import Unreadable, read_yaml
from cl_prompts.reports.saved_run import GROUPS, SavedRun

PLACES = frozenset({"root", "download", "cache", "cache_folder", "checkpoint", "plan", "seed"})
"""Keys that say where things lie or which repetition it is: a recipe stays what it is without them."""


@dataclass(frozen=True)
class Published:
    """One value of a paper, as the recipe of the runs names it.

    Attributes:
        metric: name in `summary.json`.
        value: in percent, as printed.
        spread: its spread in percent; None where none is printed.
        seeds: runs behind it; None where it is not said.
        source: paper and table.
        recipe: name of the recipe.
        changes: keys in which the runs are not the recipe, `key=value`; empty if they are.
    """

    metric: str
    value: float
    spread: float | None
    seeds: int | None
    source: str
    recipe: str
    changes: tuple[str, ...]


def published_values(runs: Sequence[SavedRun]) -> list[Published]:
    """What the recipe of these runs says; nothing where they have several recipes or none."""
    recipes = {run.config.get("experiment") for run in runs}
    (recipe,) = recipes if len(recipes) == 1 else (None,)
    entries = runs[0].config.get("published")
    if not isinstance(recipe, str) or not isinstance(entries, list):
        return []
    changes = recipe_changes(recipe, runs[0].config)
    return [found for entry in entries if (found := _value(entry, recipe, changes)) is not None]


def recipe_changes(recipe: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys that the recipe sets, itself or by its choices, and the configuration has at another value: `key=value`."""
    wanted = _recipe_values(recipe)
    if wanted is None:
        return ("a recipe that is not among the configs here",)
    differing = [key for key, value in wanted.items() if _at(config, key) != value]
    # Another choice of a group says it all.
    choices = {key for key in differing if key.endswith(".name")}
    shown = [key for key in differing if key in choices or f"{key.partition('.')[0]}.name" not in choices]
    return tuple(f"{key.removesuffix('.name')}={value_text(_at(config, key))}" for key in shown)


@cache
def _recipe_values(recipe: str) -> dict[str, Any] | None:
    """Dotted key -> value as the recipe composes; None where there is no such recipe."""
    try:
        folder = config_folder()
        content = read_yaml(folder / "experiment" / f"{recipe}.yaml")
        wanted: dict[str, Any] = {}
        for choice in content.get("defaults", []):
            for key, name in choice.items() if isinstance(choice, dict) else ():
                group = key.removeprefix("override").strip(" /")
                if group in GROUPS:
                    wanted |= _dotted(group, read_yaml(folder / group / f"{name}.yaml"))
        for group in GROUPS:
            wanted |= _dotted(group, content.get(group) or {})
    except (Unreadable, UserError):
        return None
    return wanted


def _dotted(group: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}.{key}": value for key, value in record.items() if key not in PLACES and key != "defaults"}


def _at(config: Mapping[str, Any], key: str) -> Any:
    group, _, leaf = key.partition(".")
    record = config.get(group)
    return record.get(leaf) if isinstance(record, Mapping) else None


def _value(entry: Any, recipe: str, changes: tuple[str, ...]) -> Published | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("value"), int | float):
        return None
    spread, seeds = entry.get("spread"), entry.get("seeds")
    return Published(
        metric=str(entry.get("metric")),
        value=float(entry["value"]),
        spread=float(spread) if isinstance(spread, int | float) else None,
        seeds=seeds if isinstance(seeds, int) else None,
        source=", ".join(str(entry[key]) for key in ("paper", "table") if entry.get(key)),
        recipe=recipe,
        changes=changes,
    )
