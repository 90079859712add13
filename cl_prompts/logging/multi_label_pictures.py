"""Pictures of evaluations with several labels an image, as pure functions: arrays in, a Matplotlib figure out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from cl_prompts.logging.axis_marks import DPI, WRITTEN_CELLS, are_long, class_ticks, names_of, width, write_cells
from cl_prompts.logging.console import percent
from cl_prompts.metrics.calibration import CalibrationReport
from cl_prompts.metrics.ranking import mean_average_precision

COUNT_TICKS = 4
"""Numbers that fit beside the low axis of counts."""


def class_precision_picture(
    average_precision: npt.NDArray[np.float64],
    exposed: npt.NDArray[np.bool_],
    class_names: Sequence[str] | None = None,
    sessions: Sequence[int | None] | None = None,
) -> Figure:
    """Average precision of every class after every session: a column keeps its colour downwards where nothing is lost.

    Columns are the classes by the session that first exposed them, then by class id; rows are the sessions. White is a
    class that was not exposed yet, a dash one without a positive test image. Numbers in percent.

    Args:
        average_precision: float `(sessions, C)`; NaN where it is not defined.
        exposed: bool `(sessions, C)`, classes seen by the end of each session.
        class_names: names of all C classes; numbers if None.
        sessions: number of each row; 0, 1, ... if None.
    """
    ever = np.flatnonzero(exposed.any(axis=0))
    order = ever[np.lexsort((ever, exposed[:, ever].argmax(axis=0)))]
    values = np.where(exposed, average_precision, np.nan)[:, order]
    rows, columns = values.shape
    names, families = names_of(class_names, order)
    figure = Figure(
        figsize=(width(columns), 1.9 + 0.36 * rows + (0.9 if are_long(names) else 0)), dpi=DPI, layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(values), cmap="viridis_r", vmin=0, vmax=1, aspect="auto")
    if columns <= WRITTEN_CELLS:
        percents = np.rint(100 * np.nan_to_num(values)).astype(np.int64)
        write_cells(axes, percents, values > 0.5, skip=np.isnan(values))
    for row, column in np.argwhere(exposed[:, order] & np.isnan(values)):
        axes.text(column, row, "-", ha="center", va="center", fontsize="small")
    means = [percent(mean_average_precision(row)) for row in values]
    numbers = range(rows) if sessions is None else sessions
    labels = [f"session {number}  (mAP {mean})" for number, mean in zip(numbers, means, strict=True)]
    axes.set_yticks(range(rows), labels)
    class_ticks(axes.xaxis, names, families)
    axes.set_xlabel("class, by the session that first exposed it, then by class id")
    axes.set_title(f"average precision of {columns} classes", fontsize="medium")
    bar = figure.colorbar(image, ax=axes, label="average precision", fraction=0.05, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def calibration_picture(report: CalibrationReport) -> Figure:
    """How often labels with a predicted probability are positive, and below how many labels there are of each.

    The diagonal is a model whose probabilities are right; a bar below it predicts too much. Labels are counted on a
    logarithmic scale, since most are predicted improbable.
    """
    figure = Figure(figsize=(5.6, 5.0), dpi=DPI, layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    lefts = np.arange(report.bins) / report.bins
    filled = report.count > 0
    bars = {"width": 1 / report.bins, "align": "edge", "edgecolor": "white"}
    axes.bar(lefts[filled], report.positive_share[filled], color="tab:blue", **bars)
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="probabilities are right")
    axes.plot(
        report.mean_probability[filled], report.positive_share[filled], "o", color="tab:red", label="mean of the bin"
    )
    below.bar(lefts[filled], report.count[filled], color="tab:gray", **bars)
    below.set_yscale("log")
    # From one label on, so that a power of ten is in view whatever the counts are.
    decades = int(np.ceil(np.log10(max(2, report.count.max(initial=0)))))
    below.set_ylim(1 / 2, 1.5 * 10**decades)
    below.yaxis.set_major_locator(LogLocator(numticks=COUNT_TICKS))
    below.yaxis.set_major_formatter(FuncFormatter(lambda count, place: f"{count:,.0f}"))
    below.yaxis.set_minor_locator(NullLocator())
    below.set_ylabel("labels")
    below.set_xlabel("predicted probability")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of positive labels")
    for axis in (axes.yaxis, below.xaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left", frameon=False)
    error = f"expected calibration error {percent(report.ece)} in {report.bins} bins"
    axes.set_title(f"{error}, {int(report.count.sum()):,} labels", fontsize="medium")
    return figure
