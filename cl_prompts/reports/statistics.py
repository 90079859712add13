"""Means, spreads, and differences of runs that saw equal streams."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

CONFIDENCE = 0.95
"""Of every interval."""

FEW = 5
"""Pairs below which an interval rests on the normal distribution more than on the data."""


@dataclass(frozen=True)
class Spread:
    """A mean over runs.

    Attributes:
        mean: sum x_i / n.
        sd: sqrt(sum (x_i - mean)^2 / (n - 1)); None of a single run.
        n: runs.
    """

    mean: float
    sd: float | None
    n: int


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None without values.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, sd=1.0, n=3)
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Spread(mean, sd, n)


@dataclass(frozen=True)
class Difference:
    """A mean difference to a reference over pairs of runs, with its interval.

    Attributes:
        mean: mean of the differences.
        low: lower end of the 95 % interval; None of a single pair.
        high: upper end.
        pairs: pairs of runs.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int


def paired_difference(values: Mapping[K, float], reference: Mapping[K, float]) -> Difference | None:
    """Mean of value - reference over the keys that both have, with Student's interval; None without such a key.

    d_i = x_i - r_i; mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n). Exact where the differences are normal.

    >>> paired_difference({1: 3.0, 2: 5.0, 3: 9.0}, {1: 2.0, 2: 3.0})
    Difference(mean=1.5, low=-4.853102368087348, high=7.853102368087348, pairs=2)
    """
    found = spread([value - reference[key] for key, value in values.items() if key in reference])
    if found is None:
        return None
    if found.sd is None:
        return Difference(found.mean, None, None, found.n)
    half = student_quantile(found.n - 1) * found.sd / math.sqrt(found.n)
    return Difference(found.mean, found.mean - half, found.mean + half, found.n)


def student_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
