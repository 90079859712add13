"""What every fuzzed target shares: inputs are counted, timed and watched, and an error must be one clear line."""

from __future__ import annotations

import gc
import re
import resource
import signal
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cl_prompts.errors import UserError

SECONDS = 20
"""Wall time that one input may take; a hundred times what the slowest takes on a free machine."""
ROOM = 4 << 30
"""Address space in bytes that inputs may ask for beyond what is in use: more is refused as on a small machine."""
CHUNK = 400
"""Inputs of one search: hypothesis remembers those of a search, and memory is compared between searches."""
GROWTH = 24 << 20
"""Bytes that the process may have grown by from a third of the inputs of a target to their end."""
LONGEST = 4000
"""Characters of an error that is still one line to read."""

_TYPES = re.compile(r"\b(?:Traceback|[A-Z][A-Za-z]*(?:Error|Exception))\b")
_BREAKING = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that no line holds: control characters, halves of characters, separators."""


@dataclass(frozen=True)
class Target:
    """One door through which foreign data come in.

    Attributes:
        name: in words.
        inputs: strategy of what comes in.
        opened: folder -> context whose value takes one input; it works, or raises a `UserError`, or returns True where
            errors are values, too, and were looked at.
        names: what an error has to name, one of them; of an input.
        share: inputs out of a thousand of a whole run.
        found: makes inputs that broke it once, always tried.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    opened: Callable[[Path], AbstractContextManager[Callable[[Any], Any]]]
    names: Callable[[Any], Collection[str]]
    share: int
    found: Callable[[], tuple[Any, ...]] = tuple


@dataclass
class Tally:
    """What came of the inputs of a target.

    Attributes:
        inputs: how many.
        refused: how many of them ended in an error of ours.
        seconds: of all.
        slowest: of one.
        memory: resident bytes after each search.
        peak: largest resident bytes of the process by now.
    """

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    memory: tuple[int, ...] = ()
    peak: int = 0

    @property
    def growth(self) -> int:
        """Bytes from the first third of the searches to the last."""
        return self.memory[-1] - self.memory[len(self.memory) // 3] if self.memory else 0


class Hang(BaseException):
    """An input that takes too long; no handler of errors takes it for one."""


class Violation(AssertionError):
    """Something else than a result or one clear line."""


def explore(target: Target, folder: Path, count: int, first_seed: int) -> Tally:
    """Give a target so many inputs, and all that broke it once.

    Raises:
        Violation: anything but a result or a clear error came of one, or memory grows.
    """
    tally = Tally()
    with target.opened(folder) as attempt, _bounded_memory():
        for value in target.found():
            _judge(target, attempt, value, tally)
        search = first_seed
        while tally.inputs < count:
            before = tally.inputs
            _search(target, attempt, tally, min(CHUNK, count - before), search)
            search += 1
            tally.memory += (_resident(),)
            if tally.inputs == before:
                break  # there are no others
    tally.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    if tally.growth > GROWTH:
        raise Violation(f"{target.name}: memory grows: {[size >> 20 for size in tally.memory]} MB")
    return tally


def _search(target: Target, attempt: Callable[[Any], Any], tally: Tally, count: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def one(value: Any) -> None:
        _judge(target, attempt, value, tally)

    one()


def _judge(target: Target, attempt: Callable[[Any], Any], value: Any, tally: Tally) -> None:
    started = time.perf_counter()
    tally.inputs += 1
    try:
        with _time_limit():
            tally.refused += bool(attempt(value))
    except UserError as error:
        tally.refused += 1
        assert_clear(str(error), target.names(value))
    except Hang:
        raise Violation(f"{target.name}: {SECONDS} s and no end") from None
    except Violation:
        raise
    except Exception as error:
        place = "".join(traceback.format_tb(error.__traceback__)[-3:])
        raise Violation(f"{target.name}: {type(error).__name__}: {str(error)[:300]}\n{place}") from error
    finally:
        spent = time.perf_counter() - started
        tally.seconds += spent
        tally.slowest = max(tally.slowest, spent)


def assert_clear(text: str, names: Collection[str]) -> None:
    """One line that names what is wrong and speaks of no type of Python.

    Raises:
        Violation: it is not.
    """
    shown = repr(text[:600])
    if not text.strip() or text.splitlines() != [text] or any(unicodedata.category(one) in _BREAKING for one in text):
        raise Violation(f"not one line: {shown}")
    if len(text) > LONGEST:
        raise Violation(f"{len(text)} characters: {shown}")
    if _TYPES.search(text):
        raise Violation(f"speaks of a type of Python: {shown}")
    if names and not any(name in text for name in names):
        raise Violation(f"names none of {sorted(names)[:5]}: {shown}")


@contextmanager
def _time_limit() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*arguments: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Refuse absurd allocations at once, whatever the machine would do about them."""
    sizes = _pages()
    if sizes is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = sizes[0] + ROOM
    if before[1] != resource.RLIM_INFINITY:
        limit = min(limit, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _resident() -> int:
    """Resident bytes of this process; its largest ever where the system does not tell."""
    gc.collect()
    sizes = _pages()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if sizes is None else sizes[1]


def _pages() -> tuple[int, int] | None:
    """Virtual and resident bytes; None where the system does not tell."""
    with suppress(OSError, ValueError):
        virtual, resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[:2]
        return int(virtual) * resource.getpagesize(), int(resident) * resource.getpagesize()
    return None
