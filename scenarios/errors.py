"""Errors a user can make, each printed as one clear line."""

from __future__ import annotations

import re

_BREAKING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Line breaks, control characters, changes of the direction of writing, halves of characters."""
_LONGEST = 2000
_END = 400


def as_line(text: str) -> str:
    """Text as one line that every terminal and every file can hold.

    Names of files and values of keys are anybody's: what would break or disguise the line is written out, as `\\n`, and
    of what is too long to be read the middle is left out.
    """
    line = _BREAKING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - _END]} [...] {line[-_END:]}"


class UserError(Exception):
    """What was given, what is allowed, what to do next: one line that ends a run without a traceback."""

    def __str__(self) -> str:
        return as_line(super().__str__())


class PlanError(UserError, ValueError):
    """A stream that cannot be built, or a plan that does not fit its data."""


class DataError(UserError, ValueError):
    """A data set that is missing, damaged or badly laid out."""
