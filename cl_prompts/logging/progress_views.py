"""Ways of showing progress: a bar, plain lines, nothing."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cl_prompts.logging.console import clock_time, percent
from cl_prompts.logging.observer import RunningScore

SHOWN_LOSSES = 4
RUNNING_WORDS = {"running_accuracy": "running accuracy", "running_f1": "running F1"}


@dataclass(frozen=True)
class ProgressState:
    """One moment of a run, as it is shown."""

    samples: int
    total: int | None
    speed: float | None
    left: float | None
    elapsed: float
    running: RunningScore
    losses: Mapping[str, float]
    evaluated: str
    """Words for the evaluations so far, as `ScoreHistory.words` gives them; empty before the first."""

    def measurements(self) -> str:
        """Scores and losses in one line."""
        parts = [f"{RUNNING_WORDS[self.running.name]} {percent(self.running.value)}"]
        if self.evaluated:
            parts.append(self.evaluated)
        if self.losses:
            # The sum first; diagnostics beyond the first few are for TensorBoard.
            names = sorted(self.losses, key=lambda name: name != "total")[:SHOWN_LOSSES]
            parts.append("loss " + ", ".join(f"{name} {self.losses[name]:.3g}" for name in names))
        return " | ".join(parts)

    def position(self) -> str:
        """Samples, speed and time in one line."""
        total = f" of {self.total:,} samples ({100 * self.samples // self.total} %)" if self.total else " samples"
        parts = [f"{self.samples:,}{total}"]
        if self.speed is not None:
            parts.append(f"{self.speed:,.{0 if self.speed >= 10 else 1}f} samples/s")
        parts.append(f"{clock_time(self.left)} left" if self.left else f"in {clock_time(self.elapsed)}")
        return " | ".join(parts)

    def line(self) -> str:
        """Everything in one line."""
        return f"{self.position()} | {self.measurements()}"


class View(Protocol):
    """A way of showing progress."""

    def wants(self, samples: int, now: float) -> bool:
        """Whether to show this moment; False costs nothing, True reads from the device."""

    def show(self, state: ProgressState, now: float) -> None:
        """Show this moment."""

    def note(self, line: str) -> None:
        """Show a line that stays."""

    def finish(self, state: ProgressState) -> None:
        """Show the last moment of the stream, which stays."""

    def stop(self) -> None:
        """Leave the terminal as it was."""


class Bar:
    """A progress bar with a line of measurements below it, drawn in place."""

    SECONDS = 0.5

    def __init__(self, console: Console, total: int | None) -> None:
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[position]}", style="cyan"),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total, position="")
        self._console = console
        self._measurements = Text("", overflow="ellipsis", no_wrap=True)
        self._live: Live | None = None
        self._restore: weakref.finalize | None = None
        self._next = 0.0

    def wants(self, samples: int, now: float) -> bool:
        """Twice a second."""
        return now >= self._next

    def show(self, state: ProgressState, now: float) -> None:
        """Draw the bar and the measurements."""
        self._next = now + self.SECONDS
        self._progress.update(self._task, completed=state.samples, position=state.position())
        self._measurements.plain = state.measurements()
        if self._live is None:
            self._live = Live(
                Group(self._progress, self._measurements),
                console=self._console,
                transient=True,
                # Prints of others appear above the bar; a redirected standard output keeps its own.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
            # Shows the cursor again at exit, whatever ended the run.
            self._restore = weakref.finalize(self, self._live.stop)

    def note(self, line: str) -> None:
        """Print the line above the bar."""
        print_line(self._console, line)

    def finish(self, state: ProgressState) -> None:
        """Replace the bar by one plain line."""
        self.stop()
        print_line(self._console, state.line())

    def stop(self) -> None:
        """Remove the bar."""
        if self._live is None:
            return
        assert self._restore is not None
        self._restore()
        self._live = None


class Lines:
    """Plain lines for log files: few in a short run, one a minute in a long one."""

    SHORTEST, LONGEST, SHARE = 2.0, 60.0, 0.1

    def __init__(self, console: Console, total: int | None) -> None:
        self._console = console
        self._total = total
        self._last_time: float | None = None
        self._last_samples = 0

    def wants(self, samples: int, now: float) -> bool:
        """After a tenth of the stream or a minute, but never twice in two seconds."""
        if self._last_time is None:
            self._last_time = now
            return False
        waited = now - self._last_time
        advanced = self._total is not None and samples - self._last_samples >= self.SHARE * self._total
        return waited >= self.LONGEST or (waited >= self.SHORTEST and advanced)

    def show(self, state: ProgressState, now: float) -> None:
        """Print one line."""
        self._last_time, self._last_samples = now, state.samples
        print_line(self._console, state.line())

    def note(self, line: str) -> None:
        """Print the line."""
        print_line(self._console, line)

    def finish(self, state: ProgressState) -> None:
        """Print one more line."""
        print_line(self._console, state.line())

    def stop(self) -> None:
        """Nothing is left to tidy."""


class Silent:
    """Shows nothing."""

    def __init__(self, console: Console, total: int | None) -> None:
        pass

    def wants(self, samples: int, now: float) -> bool:
        """Never."""
        return False

    def show(self, state: ProgressState, now: float) -> None:
        """Nothing to show."""

    def note(self, line: str) -> None:
        """Nothing to show."""

    def finish(self, state: ProgressState) -> None:
        """Nothing to show."""

    def stop(self) -> None:
        """Nothing is left to tidy."""


def print_line(console: Console, line: str) -> None:
    """Print one line as it is; it is never broken."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


VIEWS: dict[str, Callable[[Console, int | None], View]] = {"bar": Bar, "plain": Lines, "none": Silent}
"""Word in a configuration -> view."""
