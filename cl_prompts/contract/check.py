"""`Check`: one promise that can be tested; `Promise`: the same before it is known of whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Check:
    """One promise of one subject.

    Attributes:
        id: unique among the checks of a subject.
        description: what is promised, one sentence.
        run: raises an AssertionError with one line if the promise is broken.
        slow: takes seconds; a quick look leaves it out.
    """

    id: str
    description: str
    run: Callable[[], None]
    slow: bool = False


def _always(subject: Any) -> bool:
    return True


@dataclass(frozen=True)
class Promise(Generic[Subject]):
    """A function of a subject that returns if a promise is kept.

    Attributes:
        test: its name is the id of the check, the first line of its docstring the description.
        applies: whether such a subject makes this promise.
        slow: see `Check`.
    """

    test: Callable[[Subject], None]
    applies: Callable[[Subject], bool] = _always
    slow: bool = False


def checks_of(subject: Subject, name: str, promises: Iterable[Promise[Subject]]) -> list[Check]:
    """The checks of everything that a subject promises; `name` begins the line about a broken one."""
    return [
        Check(
            promise.test.__name__,
            (promise.test.__doc__ or "").splitlines()[0],
            partial(_run, promise.test, subject, name),
            promise.slow,
        )
        for promise in promises
        if promise.applies(subject)
    ]


def require(kept: bool, message: str) -> None:
    """Raise an AssertionError; unlike `assert` with every switch of the interpreter."""
    if not kept:
        raise AssertionError(message)


def require_refusal(act: Callable[[], Any], refusals: type[Exception], what: str) -> None:
    """Raise an AssertionError unless `act` raises one of `refusals` with a single line."""
    try:
        act()
    except refusals as error:
        require("\n" not in str(error), f"{what} is refused in several lines: {_one_line(error)}")
        return
    raise AssertionError(f"{what} is accepted")


def _run(test: Callable[[Subject], None], subject: Subject, name: str) -> None:
    try:
        test(subject)
    except AssertionError as error:
        raise AssertionError(f"{name}, {test.__name__}: {_one_line(error)}") from error
    except Exception as error:  # whatever foreign code raises, its promise is broken
        raise AssertionError(f"{name}, {test.__name__}: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
