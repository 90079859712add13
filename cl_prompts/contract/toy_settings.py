"""Settings of any method that fit the contract's backbone of three blocks: its defaults, made small by rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_prompts.strategies.declaration import StrategySettings

DEPTH = 3
"""Blocks of the backbone that strategies are checked on."""

_LIMITS = ((2, 2), (9, 3), (100, 4))
"""Whole numbers up to the first are made at most the second: lengths, pools, and what is chosen from them."""
_WIDTH = 64
"""Larger ones are widths."""


def toy_settings(settings_class: type[StrategySettings], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments of small settings.

    What `given` and the class's own `toy_settings` leave open is the default: blocks within a backbone of `DEPTH`,
    pools and lengths of at most 4, widths of at most 64; everything else, and what is null, as it is.
    """
    said = {**settings_class.toy_settings, **(given or {})}
    return {
        key: small
        for key, field in settings_class.model_fields.items()
        if key not in said and key != "name" and (small := _small(key, field.default)) != field.default
    } | said


def _small(key: str, default: Any) -> Any:
    is_blocks = key.endswith(("_layers", "_blocks"))
    if isinstance(default, tuple) and is_blocks:
        return tuple(block for block in default if block < DEPTH) or (DEPTH - 1,)[: len(default)]
    if not isinstance(default, int) or isinstance(default, bool):
        return default
    if is_blocks:
        return min(default, DEPTH)
    return min(default, next((small for limit, small in _LIMITS if default <= limit), _WIDTH))
