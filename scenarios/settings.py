"""`Settings`: the typed, strict, frozen record every config group is checked against."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Settings(BaseModel):
    """Base of all typed settings: unknown keys, wrong types and values out of range are refused.

    Imports neither torch nor Avalanche, so that a configuration is checked in well under a second. Lists (all that
    YAML has) are accepted where a field is declared with one of the tuple types below; nothing else is converted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


LayerIndices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_tuple)]
"""Block numbers counted from 0, such as `[0, 1]`."""

ChannelValues = Annotated[tuple[float, float, float], BeforeValidator(_as_tuple)]
"""One number for each of red, green and blue."""
