"""Errors a user can make, each printed as one clear line."""

from __future__ import annotations


class UserError(Exception):
    """What was given, what is allowed, what to do next: one line that ends a run without a traceback."""


class PlanError(UserError, ValueError):
    """A stream that cannot be built, or a plan that does not fit its data."""


class DataError(UserError, ValueError):
    """A data set that is missing, damaged or badly laid out."""
