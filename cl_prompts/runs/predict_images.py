"""The work of `mode=predict`: from images to a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cl_prompts.logging.console import print_header, reading_progress
from cl_prompts.runs.failures import SUCCESS
from cl_prompts.runs.files import csv_text, write_text
from cl_prompts.runs.loading import LoadedRun, read_run
from cl_prompts.runs.predict_command import PredictSettings
from cl_prompts.runs.predicted import Predictions, Ranked
from scenarios.multi_label_settings import MultiLabelEvaluationSettings

BETWEEN = ";"
"""Between the labels of an image, as in the lists that `dataset.file_list` reads."""


def predict_images(settings: PredictSettings) -> int:
    """Load the run, predict, and write or print the table; nothing of it where something is wrong.

    Returns:
        Exit code 0.

    Raises:
        UserError: the run cannot be loaded, an image cannot be read, the file cannot be written.
    """
    run = read_run(
        Path(settings.run).expanduser(),
        settings.device,
        settings.weights,
        lambda text: print_header({}, warnings=[text]),
    )
    table = _Table(run, settings)
    images = run.images(settings.images)
    if settings.progress != "none":
        print_header(_header(run, len(images)))
    report = None if settings.progress == "none" else reading_progress(doing="predicting images")
    rows: list[list[str]] = []
    skipped: list[str] = []
    for part in run.predict_batches(images, skip_unreadable=settings.skip_unreadable):
        rows += table.rows(part)
        skipped += part.skipped
        if report is not None:
            report(len(rows) + len(skipped), len(images))
    if skipped:
        more = f" (and {len(skipped) - 1} others)" if len(skipped) > 1 else ""
        print_header({}, warnings=[f"{len(skipped)} of {len(images)} images left out: {skipped[0]}{more}"])
    text = csv_text(table.header, rows)
    if settings.predictions is None:
        print(text, end="")
    else:
        write_text(Path(settings.predictions).expanduser(), text, key="predictions=/path/to/file.csv")
        if settings.progress != "none":
            print_header({"written": f"{settings.predictions}, {len(rows):,} images"})
    return SUCCESS


def _header(run: LoadedRun, images: int) -> dict[str, str | Sequence[str]]:
    seen = int(run.exposed.sum())
    return {
        "run": f"{run.folder}, {run.config.strategy_name} after {run.samples_seen:,} samples",
        "classes": f"{seen} of {len(run.class_names)} seen in the stream; no other is predicted",
        "images": f"{images:,}",
        "device": str(run.strategy.device),
    }


class _Table:
    """What is told of each image."""

    def __init__(self, run: LoadedRun, settings: PredictSettings) -> None:
        self._threshold = settings.threshold
        scenario = run.config.scenario
        if isinstance(scenario, MultiLabelEvaluationSettings) and self._threshold is None:
            self._threshold = scenario.threshold
        self._lists = run.multi_label and settings.top is None
        self._top = settings.top or 1
        self.header = ["path", *self._columns()]

    def _columns(self) -> list[str]:
        if self._lists:
            return ["classes", "probabilities"]
        if self._top == 1:
            return ["class", "probability"]
        return [f"{name}_{place}" for place in range(1, self._top + 1) for name in ("class", "probability")]

    def rows(self, part: Predictions) -> Iterator[list[str]]:
        """A row of text for each image."""
        told = part.above(self._threshold or 0.0) if self._lists else part.top(self._top)
        for name, ranked in zip(part.names, told, strict=True):
            yield [name, *(self._joined(ranked) if self._lists else self._beside(ranked))]

    @staticmethod
    def _joined(ranked: Ranked) -> list[str]:
        return [BETWEEN.join(name for name, _ in ranked), BETWEEN.join(_number(value) for _, value in ranked)]

    def _beside(self, ranked: Ranked) -> list[str]:
        cells = [cell for name, value in ranked for cell in (name, _number(value))]
        return cells + [""] * (2 * self._top - len(cells))


def _number(probability: float) -> str:
    return f"{probability:.6f}"
