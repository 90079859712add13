"""`TensorBoardLog`: curves, histograms and pictures of a run as TensorBoard events; x is samples seen, everywhere."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.core import SupervisedPlugin
from torch.utils.tensorboard import SummaryWriter

from cl_prompts.errors import UserError
from cl_prompts.logging.observer import StrategyObserver
from cl_prompts.logging.pictures import confusion_picture, stream_picture, to_array
from cl_prompts.metrics.anytime import a_auc
from cl_prompts.metrics.records import EvaluationPoint
from cl_prompts.metrics.usage import usage_entropy
from scenarios.plan import StreamPlan


class TensorBoardLog(SupervisedPlugin):
    """Writes what a run measures, under any Avalanche strategy. Draws no random number and touches no weight.

    Give `on_evaluation` to `AnytimeEvaluation.subscribe`; call `close` at the end, or use as a context manager.

    | tag | value |
    |---|---|
    | `loss/<name>` | every part of the loss of the latest update, `total` their sum |
    | `train/running_accuracy` | accuracy on recent training batches |
    | `anytime/accuracy`, `anytime/loss` | on the test samples of the exposed classes |
    | `anytime/a_auc_so_far` | mean of the periodic `anytime/accuracy` so far |
    | `anytime/exposed_classes` | classes seen so far |
    | `session/accuracy` | at the session ends |
    | `prompt_usage/entropy`, `prompt_usage/counts` | how evenly the prompts of a pool are chosen |
    | `optimizer/learning_rate` | of the first parameter group; further groups get a number |
    | `speed/samples_per_second` | of training, evaluations left out |
    | `confusion_matrix`, `stream` | pictures: at session ends; before the start |
    | `config`, `plan` | resolved configuration and description of the stream, as text |

    Args:
        folder: where the event files go; made if missing.
        every_samples: stream samples between two points of the training curves; the last state is always written.
        plan: the stream; None leaves its picture and description out.
        config_text: resolved configuration, YAML text; left out if empty.
        class_names: names for the confusion matrix.
        purge_step: after a resume, samples seen at the checkpoint: points at or beyond are replaced.
        previous: points measured before the resume, for `anytime/a_auc_so_far`.

    Raises:
        UserError: the events cannot be written (no space, no permission), at once or at a later hook.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_samples: int,
        plan: StreamPlan | None = None,
        config_text: str = "",
        class_names: Sequence[str] | None = None,
        purge_step: int | None = None,
        previous: Iterable[EvaluationPoint] = (),
    ) -> None:
        super().__init__()
        if every_samples < 1:
            raise UserError(f"every_samples={every_samples}: must be at least 1")
        self.folder = Path(folder)
        self._every = every_samples
        self._class_names = class_names
        self._observer = StrategyObserver()
        self._next = every_samples
        self._written_at: int | None = None
        self._last_anytime: int | None = None
        self._last_confusion: int | None = None
        self._periodic = [point.accuracy for point in previous if point.kind == "periodic"]
        self._hook = _WriterThreadHook()
        try:
            with self._clear_errors():
                self._writer = SummaryWriter(str(self.folder), purge_step=purge_step)
                if not purge_step:
                    self._write_start(plan, config_text)
        except UserError:
            self._hook.remove()
            raise

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
            return
        # The error that ended the run is the one to report, not what follows from it.
        with suppress(UserError):
            self.close()

    def close(self) -> None:
        """Write what is left and close the file."""
        try:
            with self._clear_errors():
                self._writer.close()
        finally:
            self._hook.remove()

    def on_evaluation(self, strategy: Any, point: EvaluationPoint) -> None:
        """Write an evaluation as it is measured."""
        self._observer.pause()
        with self._clear_errors():
            if point.kind == "session":
                self._scalar("session/accuracy", point.accuracy, point.samples_seen)
                self._write_confusion(point)
            else:
                self._write_anytime(point)
            self._writer.flush()

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start counting an experience."""
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
        """Write the training curves if their period is over."""
        self._observer.after_training_iteration(strategy)
        seen = self._observer.samples_seen
        if seen >= self._next:
            self._next = (seen // self._every + 1) * self._every
            self._write_training(strategy)

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Write the state at the end of the experience, so that no curve stops short."""
        if self._observer.samples_seen > 0 and self._written_at != self._observer.samples_seen:
            self._write_training(strategy)
        with self._clear_errors():
            self._writer.flush()

    def _write_start(self, plan: StreamPlan | None, config_text: str) -> None:
        if config_text:
            self._writer.add_text("config", _as_code(config_text), 0)
        if plan is not None:
            self._writer.add_text("plan", _as_code("\n".join([*plan.describe(), f"sha256 {plan.sha256}"])), 0)
            self._writer.add_image("stream", to_array(stream_picture(plan)), 0, dataformats="HWC")
        self._writer.flush()

    def _write_training(self, strategy: Any) -> None:
        seen = self._written_at = self._observer.samples_seen
        with self._clear_errors():
            for name, value in self._observer.losses(strategy).items():
                self._scalar(f"loss/{name}", value, seen)
            self._scalar("train/running_accuracy", self._observer.running_accuracy(strategy), seen)
            for number, rate in enumerate(self._observer.learning_rates(strategy)):
                self._scalar("optimizer/learning_rate" + (f"_{number}" if number else ""), rate, seen)
            self._scalar("speed/samples_per_second", self._observer.samples_per_second(), seen)
            counts = self._observer.prompt_usage(strategy)
            if counts:
                self._scalar("prompt_usage/entropy", usage_entropy(counts), seen)
                self._write_usage(counts, seen)

    def _write_anytime(self, point: EvaluationPoint) -> None:
        seen = point.samples_seen
        if point.kind == "periodic":
            self._periodic.append(point.accuracy)
        else:
            self._write_confusion(point)
        if self._last_anytime == seen:
            return  # the final state, already written as a periodic point: one point at one x
        self._last_anytime = seen
        self._scalar("anytime/accuracy", point.accuracy, seen)
        self._scalar("anytime/loss", point.loss, seen)
        self._scalar("anytime/a_auc_so_far", a_auc(self._periodic, point.accuracy), seen)
        self._scalar("anytime/exposed_classes", int(point.exposed.sum()), seen)

    def _write_confusion(self, point: EvaluationPoint) -> None:
        if point.count.any() and self._last_confusion != point.samples_seen:
            self._last_confusion = point.samples_seen
            picture = confusion_picture(point.confusion, point.exposed, self._class_names)
            self._writer.add_image("confusion_matrix", to_array(picture), point.samples_seen, dataformats="HWC")

    def _write_usage(self, counts: Sequence[float], seen: int) -> None:
        """One bar a prompt: bucket p holds the number of times that prompt p was chosen."""
        numbers = np.arange(len(counts), dtype=np.float64)
        weights = np.asarray(counts, np.float64)
        self._writer.add_histogram_raw(
            "prompt_usage/counts",
            min=-0.5,
            max=len(counts) - 0.5,
            num=float(weights.sum()),
            sum=float(weights @ numbers),
            sum_squares=float(weights @ numbers**2),
            bucket_limits=(numbers + 0.5).tolist(),
            bucket_counts=weights.tolist(),
            global_step=seen,
        )

    def _scalar(self, tag: str, value: float, seen: int) -> None:
        if not math.isnan(value):
            self._writer.add_scalar(tag, value, seen)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write TensorBoard events to {self.folder} ({error.strerror or error}); free space or fix the "
                "permissions there, or run with tensorboard=false"
            ) from error


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


def _as_code(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
