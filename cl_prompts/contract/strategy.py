"""`check_strategy`: everything that a strategy promises, one check each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cl_prompts.contract import declared, in_avalanche, learning, needs, prediction, state, streams
from cl_prompts.contract.check import Check, Promise, checks_of
from cl_prompts.contract.subject import Subject

if TYPE_CHECKING:
    from cl_prompts.strategies.base import ContinualStrategy

PROMISES: tuple[Promise[Subject], ...] = (
    *declared.PROMISES,
    *learning.PROMISES,
    *prediction.PROMISES,
    *streams.PROMISES,
    *needs.PROMISES,
    *state.PROMISES,
    *in_avalanche.PROMISES,
)
"""All that can be promised; which of them a strategy makes follows from its needs."""


def check_strategy(strategy: str | type[ContinualStrategy], settings: Mapping[str, Any] | None = None) -> list[Check]:
    """The checks of a strategy on a random backbone of three blocks and toy images; nothing runs yet.

    Checks of one call share their runs: together they take about a second. A class that is not registered is checked
    without what its file promises.

    Args:
        strategy: the word after `strategy=`, of this package or of another, or the class itself.
        settings: values to check it with, such as another variant; what they leave open is its default, made small.

    Raises:
        KeyError: no such method.
        StrategyError: a package announces a method that it does not have.
    """
    subject = Subject(strategy, settings)
    return checks_of(subject, subject.name, PROMISES)
