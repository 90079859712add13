"""`TerminalProgress`: how far a run is, as a bar on a terminal and as plain lines in a log file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from rich.console import Console

from cl_prompts.errors import UserError
from cl_prompts.logging.observer_plugin import ObserverPlugin
from cl_prompts.logging.progress_views import VIEWS, ProgressState
from cl_prompts.logging.scores import ScoreHistory, session_line
from cl_prompts.metrics.records import MultiLabelPoint, Point


class TerminalProgress(ObserverPlugin):
    """Shows samples/s, running and anytime scores, losses and time left, under any Avalanche strategy.

    Reads from the device only when something is shown: about twice a second on a bar; in plain lines at most one every
    two seconds, and then only after a tenth of the stream or a minute. A session end gets a line of its own where
    images have several labels, and where nothing is evaluated between session ends. Give `on_evaluation` to
    `AnytimeEvaluation.subscribe`. Use as a context manager, or call `close`, to keep the terminal tidy after an error.

    Args:
        total_samples: samples of the whole stream; None if unknown (no time left, then).
        console: where to; the error stream if None.
        mode: `bar`, `plain`, `none`, or `auto`: a bar on a terminal and plain lines elsewhere.
        previous: points measured before a resume.
        clock: seconds.

    Raises:
        UserError: an unknown mode.
    """

    def __init__(
        self,
        total_samples: int | None = None,
        *,
        console: Console | None = None,
        mode: str = "auto",
        previous: Iterable[Point] = (),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(clock)
        if mode not in ("auto", *VIEWS):
            raise UserError(f"progress={mode!r}: must be one of auto, {', '.join(VIEWS)}")
        console = console or Console(stderr=True, force_terminal=True if mode == "bar" else None)
        if mode == "auto":
            mode = "bar" if console.is_terminal and not console.is_dumb_terminal else "plain"
        self.total_samples = total_samples
        self._view = VIEWS[mode](console, total_samples)
        self._clock = clock
        self._start: float | None = None
        self._start_samples = 0
        self._speed: float | None = None
        self._scores = ScoreHistory()
        self._complete = False
        for point in previous:
            self._scores.take(point)

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing; harmless if nothing is drawn."""
        self._view.stop()

    def on_evaluation(self, strategy: Any, point: Point) -> None:
        """Take up a new score; the time of the evaluation does not count as training."""
        super().on_evaluation(strategy, point)
        self._scores.take(point)
        if point.kind == "session" and (isinstance(point, MultiLabelPoint) or not self._scores.periodic):
            self._view.note(session_line(point))

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        super().before_training_epoch(strategy)
        if self._start is None:
            self._start = self._clock()
            self._start_samples = self._observer.samples_seen

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Show this moment if it is time to."""
        super().after_training_iteration(strategy)
        now = self._clock()
        if self._view.wants(self._observer.samples_seen, now):
            self._view.show(self._state(strategy, now), now)

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Between experiences the terminal belongs to others; the last moment of the stream is always shown."""
        self._view.stop()
        seen = self._observer.samples_seen
        if self.total_samples is not None and seen >= self.total_samples and not self._complete:
            self._complete = True
            self._view.finish(self._state(strategy, self._clock()))

    def _state(self, strategy: Any, now: float) -> ProgressState:
        seen = self._observer.samples_seen
        speed = self._observer.samples_per_second()
        self._speed = self._speed if math.isnan(speed) else speed
        elapsed = now - (self._start or now)
        done = seen - self._start_samples
        left = None
        if self.total_samples is not None and done > 0:
            # From the whole elapsed time, so that evaluations still to come are paid for.
            left = elapsed / done * max(0, self.total_samples - seen)
        return ProgressState(
            samples=seen,
            total=self.total_samples,
            speed=self._speed,
            left=left,
            elapsed=elapsed,
            running=self._observer.running_score(strategy),
            losses=self._observer.losses(strategy),
            evaluated=self._scores.words(),
        )
