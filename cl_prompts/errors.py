"""Errors a user can make, in one place; `UserError` is shared with `scenarios`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scenarios.errors import DataError, PlanError, UserError

__all__ = ["BackboneError", "DataError", "MetricError", "NotFiniteError", "PlanError", "StrategyError", "UserError"]


class BackboneError(UserError, ValueError):
    """A backbone that cannot be built: unsupported architecture, missing or misfitting weights."""


class StrategyError(UserError, ValueError):
    """A method that cannot run as asked: impossible switches, or used outside what it declares."""


class NotFiniteError(StrategyError):
    """A loss, logits or weights that are NaN or infinite.

    Args:
        message: the one line.
        details: what was computed on, JSON-safe: samples of the batch, place in the stream, named losses.
    """

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})


class MetricError(UserError, ValueError):
    """A metric given targets it is not defined for."""
