"""Numbers as every table shows them."""

from __future__ import annotations

from cl_prompts.reports.published import Published
from cl_prompts.reports.statistics import Difference, Spread

ABSENT = "-"
"""A cell without a value."""


def percent(found: Spread | None, *, plus_minus: str = " ± ") -> str:
    """A mean of fractions and its sd in percent; the sd is left out of a single run."""
    if found is None:
        return ABSENT
    return f"{100 * found.mean:.1f}" + ("" if found.sd is None else f"{plus_minus}{100 * found.sd:.1f}")


def difference(found: Difference | None, *, minus: str = "-", sep: str = ", ") -> str:
    """A difference of fractions in percentage points with its interval."""
    if found is None:
        return ABSENT
    mean = _signed(100 * found.mean, minus)
    if found.low is None or found.high is None:
        return mean
    return f"{mean} [{_signed(100 * found.low, minus)}{sep}{_signed(100 * found.high, minus)}]"


def published(found: Published, *, plus_minus: str = " ± ") -> str:
    """A published value in percent, as printed, and its spread."""
    return f"{found.value:g}" + ("" if found.spread is None else f"{plus_minus}{found.spread:g}")


def count(found: Spread | None) -> str:
    """A mean of whole numbers, short: 850, 40.3 k, 1.2 M."""
    if found is None:
        return ABSENT
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if found.mean >= size:
            divisor = 1e3 if unit == " k" else size
            return f"{found.mean / divisor:.3g}{unit}"
    return f"{found.mean:,.0f}"


def passes(found: float | None) -> str:
    """Forward passes."""
    return ABSENT if found is None else f"{found:.3g}"


def seconds(found: Spread | None) -> str:
    """A mean time: 12 s, 3:20 min, 2:05 h."""
    if found is None:
        return ABSENT
    whole = round(found.mean)
    if whole < 120:
        return f"{found.mean:.3g} s" if found.mean < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def mebibytes(found: Spread | None) -> str:
    """A mean of bytes in MiB."""
    return ABSENT if found is None else f"{found.mean / 2**20:,.0f} MiB"


def numbered(number: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _signed(value: float, minus: str) -> str:
    text = f"{value:+.1f}"
    return text.replace("-", minus) if float(text) else "0.0"
