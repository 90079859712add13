"""`ObserverPlugin`: what everything that watches a training loop has in common: its hooks. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from avalanche.core import SupervisedPlugin

from cl_prompts.logging.observer import StrategyObserver


class ObserverPlugin(SupervisedPlugin):
    """Keeps a `StrategyObserver` up to date under any Avalanche strategy.

    Give `on_evaluation` to `AnytimeEvaluation.subscribe`. Whoever overrides a hook calls the one here first.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        super().__init__()
        self._observer = StrategyObserver(clock)

    def on_evaluation(self, strategy: Any, point: Any) -> None:
        """The time of an evaluation does not count as training."""
        self._observer.pause()

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start counting a pass over an experience."""
        self._observer.before_training_epoch(strategy)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count the stream rows of the batch."""
        self._observer.before_training_iteration(strategy)

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Training time goes on."""
        self._observer.tick()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Training time goes on."""
        self._observer.tick()

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """A batch is done."""
        self._observer.after_training_iteration(strategy)
