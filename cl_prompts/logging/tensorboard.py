"""`TensorBoardLog`: curves, histograms and pictures of a run as TensorBoard events; x is samples seen, everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_prompts.errors import UserError
from cl_prompts.logging.event_file import EventFile
from cl_prompts.logging.image_choice import PicturedImages
from cl_prompts.logging.lane_attention import LaneAttentionEvents
from cl_prompts.logging.multi_label_events import MultiLabelEvents
from cl_prompts.logging.observer_plugin import ObserverPlugin
from cl_prompts.logging.pictures import stream_picture
from cl_prompts.logging.single_label_events import SingleLabelEvents
from cl_prompts.metrics.records import EvaluationPoint, MultiLabelPoint, Point
from cl_prompts.metrics.usage import usage_entropy

if TYPE_CHECKING:
    from cl_prompts.evaluation import EvaluatedLogits
    from scenarios.multi_label_plan import MultiLabelPlan
    from scenarios.plan import StreamPlan


class TensorBoardLog(ObserverPlugin):
    """Writes what a run measures, under any Avalanche strategy. Draws no random number and touches no weight.

    Give `on_evaluation` to `AnytimeEvaluation.subscribe`; call `close` at the end, or use as a context manager.

    | tag | value |
    |---|---|
    | `loss/<name>` | every part of the loss of the latest update, `total` their sum |
    | `train/running_accuracy`, `train/running_f1` | on recent training batches, of one label or of several |
    | `prompt_usage/entropy`, `prompt_usage/counts` | how evenly the prompts of a pool are chosen |
    | `optimizer/learning_rate` | of the first parameter group; further groups get a number |
    | `speed/samples_per_second` | of training, evaluations left out |
    | `lane_attention` | picture at session ends: what each lane of the model looks at |
    | `stream` | picture before the start |
    | `config`, `plan` | resolved configuration and description of the stream, as text |

    Evaluations with one label an image, on the test samples of the exposed classes:

    | tag | value |
    |---|---|
    | `anytime/accuracy`, `anytime/loss` | every so many samples, and at the end |
    | `anytime/a_auc_so_far` | mean of the periodic `anytime/accuracy` so far |
    | `anytime/exposed_classes` | classes seen so far |
    | `session/accuracy`, `confusion_matrix` | at the session ends |

    Evaluations with several labels an image, on the columns of the classes seen so far:

    | tag | value |
    |---|---|
    | `session/mAP`, `session/CF1@<threshold>`, `session/OF1@<threshold>` | at the session ends |
    | `session/map_so_far` | mean of `session/mAP` so far |
    | `session/loss`, `session/exposed_classes` | at the session ends; seen is also a class with negative labels alone |
    | `session_class_AP/<name>`, `class_average_precision` | average precision of a class; picture of all |
    | `precision_recall/<name>`, `precision_recall/all_columns` | of some classes; of all labels together |
    | `calibration`, `session/calibration_error` | how often labels of a given probability are positive |
    | `anytime/...` | mAP, CF1, OF1, loss and exposed classes between session ends, if they are measured there |
    | `anytime/map_so_far` | mean of the periodic `anytime/mAP` so far |

    Args:
        folder: where the event files go; made if missing.
        every_samples: stream samples between two points of the training curves; the last state is always written.
        plan: the stream; None leaves its picture and description out.
        config_text: resolved configuration, YAML text; left out if empty.
        class_names: names of the classes; numbers if None.
        resumed_at: after a resume, samples seen at the checkpoint: points beyond are replaced.
        previous: points measured before the resume, for means and the picture of all session ends.
        evaluated: gives the logits of the latest evaluation with several labels an image, for precision-recall curves
            and calibration; None leaves these out.
        pictured: images for `lane_attention`; None leaves it out.

    Raises:
        UserError: the events cannot be written (no space, no permission), at once or at a later hook.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_samples: int,
        plan: StreamPlan | MultiLabelPlan | None = None,
        config_text: str = "",
        class_names: Sequence[str] | None = None,
        resumed_at: int | None = None,
        previous: Iterable[Point] = (),
        evaluated: Callable[[], EvaluatedLogits | None] | None = None,
        pictured: PicturedImages | None = None,
    ) -> None:
        super().__init__()
        if every_samples < 1:
            raise UserError(f"every_samples={every_samples}: must be at least 1")
        self.folder = Path(folder)
        self._every = every_samples
        self._next = ((resumed_at or 0) // every_samples + 1) * every_samples
        self._written_at = resumed_at
        self._file = EventFile(self.folder, None if resumed_at is None else resumed_at + 1)
        self._events: dict[type, Any] = {
            EvaluationPoint: SingleLabelEvents(self._file, class_names),
            MultiLabelPoint: MultiLabelEvents(self._file, class_names, evaluated),
        }
        self._attention = None if pictured is None else LaneAttentionEvents(self._file, pictured, class_names)
        for point in previous:
            self._events[type(point)].remember(point)
        try:
            if resumed_at is None:
                self._write_start(plan, config_text)
        except UserError:
            with suppress(UserError):
                self._file.close()
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
        self._file.close()

    def on_evaluation(self, strategy: Any, point: Point) -> None:
        """Write an evaluation as it is measured; neither it nor its pictures count as training time."""
        self._events[type(point)].write(point)
        if self._attention is not None and point.kind == "session":
            self._attention.write(strategy.model, point.samples_seen)
        self._file.flush()
        super().on_evaluation(strategy, point)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Write the training curves if their period is over."""
        super().after_training_iteration(strategy)
        seen = self._observer.samples_seen
        if seen >= self._next or _is_last_batch(strategy):
            self._next = (seen // self._every + 1) * self._every
            self._write_training(strategy)

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Under a strategy of others, write the state at the end of the experience, so that no curve stops short."""
        if self._observer.samples_seen > 0 and self._written_at != self._observer.samples_seen:
            self._write_training(strategy)
        self._file.flush()

    def _write_start(self, plan: StreamPlan | MultiLabelPlan | None, config_text: str) -> None:
        if config_text:
            self._file.code("config", config_text)
        if plan is not None:
            self._file.code("plan", "\n".join([*plan.describe(), f"sha256 {plan.sha256}"]))
            self._file.picture("stream", stream_picture(plan), 0)
        self._file.flush()

    def _write_training(self, strategy: Any) -> None:
        seen = self._written_at = self._observer.samples_seen
        for name, value in self._observer.losses(strategy).items():
            self._file.scalar(f"loss/{name}", value, seen)
        running = self._observer.running_score(strategy)
        self._file.scalar(f"train/{running.name}", running.value, seen)
        for number, rate in enumerate(self._observer.learning_rates(strategy)):
            self._file.scalar("optimizer/learning_rate" + (f"_{number}" if number else ""), rate, seen)
        self._file.scalar("speed/samples_per_second", self._observer.samples_per_second(), seen)
        counts = self._observer.prompt_usage(strategy)
        if counts:
            self._file.scalar("prompt_usage/entropy", usage_entropy(counts), seen)
            self._file.bars("prompt_usage/counts", counts, seen)


def _is_last_batch(strategy: Any) -> bool:
    """The batch is the last of its experience, as far as the strategy tells.

    What is written then belongs to the batch: a checkpoint at its end must not leave open whether it was written.
    """
    place = getattr(strategy, "place", None)
    if place is None:
        return False
    return place.epoch == strategy.train_epochs - 1 and place.position == len(strategy.adapted_dataset)
