"""Errors a user can make, in one place; `UserError` is shared with `scenarios`."""

from __future__ import annotations

from scenarios.errors import DataError, PlanError, UserError

__all__ = ["BackboneError", "DataError", "MetricError", "PlanError", "StrategyError", "UserError"]


class BackboneError(UserError, ValueError):
    """A backbone that cannot be built: unsupported architecture, missing or misfitting weights."""


class StrategyError(UserError, ValueError):
    """A method that cannot run as asked: impossible switches, or used outside what it declares."""


class MetricError(UserError, ValueError):
    """A metric given targets it is not defined for."""
