"""`EventFile`: TensorBoard events in one folder; x is samples seen, and what goes wrong is one line."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from cl_prompts.errors import UserError
from cl_prompts.logging.pictures import to_array


class EventFile:
    """Writes scalars, pictures, texts, bars and precision-recall curves. Draws no random number.

    Args:
        folder: where the event files go; made if missing.
        purge_step: after a resume, samples seen at the checkpoint: points at or beyond are replaced.

    Raises:
        UserError: the events cannot be written (no space, no permission), at once or at a later call.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder = folder
        self._hook = _WriterThreadHook()
        try:
            with self._clear_errors():
                _make_room_at_the_end(folder)
                self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except UserError:
            self._hook.remove()
            raise

    def scalar(self, tag: str, value: float, seen: int) -> None:
        """Add a point to a curve; NaN is left out."""
        if not math.isnan(value):
            with self._clear_errors():
                self._writer.add_scalar(tag, value, seen)

    def picture(self, tag: str, figure: Figure, seen: int) -> None:
        """Add a picture."""
        with self._clear_errors():
            self._writer.add_image(tag, to_array(figure), seen, dataformats="HWC")

    def code(self, tag: str, text: str) -> None:
        """Add a text that is shown as it is, at the start of the stream."""
        with self._clear_errors():
            self._writer.add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def bars(self, tag: str, heights: Sequence[float], seen: int) -> None:
        """Add a histogram with one bar a number: bucket p has the height of number p."""
        numbers = np.arange(len(heights), dtype=np.float64)
        weights = np.asarray(heights, np.float64)
        with self._clear_errors():
            self._writer.add_histogram_raw(
                tag,
                min=-0.5,
                max=len(heights) - 0.5,
                num=float(weights.sum()),
                sum=float(weights @ numbers),
                sum_squares=float(weights @ numbers**2),
                bucket_limits=(numbers + 0.5).tolist(),
                bucket_counts=weights.tolist(),
                global_step=seen,
            )

    def precision_recall(
        self, tag: str, positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], seen: int
    ) -> None:
        """Add a precision-recall curve of labels `(n,)` and scores `(n,)` in 0..1; one without a positive is left out.

        TensorBoard keeps the curve at 127 thresholds that are evenly spaced from 0 to 1.
        """
        if positive.any():
            with self._clear_errors():
                self._writer.add_pr_curve(tag, positive, scores, seen)

    def flush(self) -> None:
        """Write to the disk what has been added."""
        with self._clear_errors():
            self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        try:
            with self._clear_errors():
                self._writer.close()
        finally:
            self._hook.remove()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write TensorBoard events to {self.folder} ({error.strerror or error}); free space or fix the "
                "permissions there, or run with tensorboard=false"
            ) from error


_PREFIX = "events.out.tfevents."


def _make_room_at_the_end(folder: Path) -> None:
    """Let a new file be the last one: they are read in the order of their names, which begin with the time in seconds.

    Where the clock was set back, or two files are of one second, those of before get an earlier time.
    """
    now = int(time.time())
    files = sorted(folder.glob(f"{_PREFIX}*"))
    if not files or files[-1].name < f"{_PREFIX}{now:010d}":
        return
    for age, path in zip(range(len(files), 0, -1), files, strict=True):
        rest = path.name.removeprefix(_PREFIX).partition(".")[2]
        path.rename(path.with_name(f"{_PREFIX}{now - age:010d}.{rest}"))


class _WriterThreadHook:
    """Keeps quiet the thread that writes the events: its error reaches us at the next write, as one line.

    Every other thread keeps the hook that was in place.
    """

    def __init__(self) -> None:
        self._previous = threading.excepthook
        threading.excepthook = self._ours = self._handle

    def remove(self) -> None:
        """Put the former hook back, unless someone has placed another one since."""
        if threading.excepthook is self._ours:
            threading.excepthook = self._previous

    def _handle(self, arguments: Any) -> None:
        is_writer = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (is_writer and isinstance(arguments.exc_value, OSError)):
            self._previous(arguments)
