"""Pictures as pure functions: arrays in, a Matplotlib figure out. Sets no backend and opens no window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cl_prompts.logging.axis_marks import DPI, WRITTEN_CELLS, are_long, class_ticks, names_of, width, write_cells
from cl_prompts.metrics.accuracy import class_accuracy, total_accuracy
from scenarios.plan import ABSENT, BLURRY, StreamPlan

if TYPE_CHECKING:
    from cl_prompts.metrics.records import Point
    from scenarios.multi_label_plan import MultiLabelPlan


def stream_picture(plan: StreamPlan | MultiLabelPlan) -> Figure:
    """Samples of every class in every session; for several labels an image, its visible positive labels.

    Columns are the classes in the order of their home sessions, the disjoint ones first and the blurry ones after a
    gap; rows are the sessions in the order of the stream. Colour is the number of samples on a square-root scale, so
    that the few displaced samples of a blurry class stay visible; white is none. An image with several labels counts
    in several columns, and it may be presented in several sessions: a row is named with the images it presents.
    """
    kind, home = np.asarray(plan.class_kind), np.asarray(plan.home_session)
    order = np.lexsort((np.arange(len(kind)), home, kind))
    order = order[kind[order] != ABSENT]
    counts = plan.counts[:, order]
    sessions, classes = counts.shape
    disjoint = int(np.sum(kind[order] != BLURRY))

    names, families = names_of(plan.class_names, order)
    height = 1.9 + 0.36 * sessions + (0.9 if are_long(names) else 0)
    figure = Figure(figsize=(width(classes), height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    top = max(1, int(counts.max(initial=0)))
    image = axes.imshow(
        np.ma.masked_equal(counts, 0), cmap="viridis_r", norm=PowerNorm(0.5, vmin=0, vmax=top), aspect="auto"
    )
    if classes <= WRITTEN_CELLS:
        write_cells(axes, counts, counts > 0.4 * top, skip=counts == 0)
    sizes = [len(session) for session in plan.sessions]
    axes.set_yticks(range(sessions), [f"session {row}  ({size:,})" for row, size in enumerate(sizes)])
    class_ticks(axes.xaxis, names, families)
    axes.set_xlabel("class, by home session")
    for start, number, word in ((0, disjoint, "disjoint"), (disjoint, classes - disjoint, "blurry")):
        if number:
            place = (start + number / 2 - 0.5, 1.02)
            above = axes.annotate(f"{number} {word}", place, xycoords=("data", "axes fraction"), fontsize="small")
            above.set(ha="center", va="bottom")
    if 0 < disjoint < classes:
        axes.axvline(disjoint - 0.5, color="black", linewidth=1.5)
    several = plan.targets.ndim == 2
    figure.suptitle(f"stream: {_presented(plan, several)}, {classes} classes, {sessions} sessions", fontsize="medium")
    figure.colorbar(image, ax=axes, label="visible positive labels" if several else "samples", fraction=0.05, pad=0.02)
    return figure


def confusion_picture(
    confusion: npt.NDArray[np.int64], exposed: npt.NDArray[np.bool_], class_names: Sequence[str] | None = None
) -> Figure:
    """Where the test samples of each exposed class went, as shares of the class (rows sum to 1).

    Colours on a square-root scale, so that rare confusions show among many classes; numbers in percent.

    Args:
        confusion: int64 `(C, C)`, row = true class, column = prediction.
        exposed: bool `(C,)`, classes shown; predictions outside them appear in a last column "other".
        class_names: names of all C classes; numbers if None.
    """
    shown = np.flatnonzero(exposed)
    inside = confusion[np.ix_(shown, shown)]
    outside = confusion[shown].sum(axis=1) - inside.sum(axis=1)
    names, families = names_of(class_names, shown)
    columns = list(names)
    if outside.any():
        inside = np.column_stack([inside, outside])
        columns.append("other")
    count = confusion[shown].sum(axis=1)
    shares = class_accuracy(inside, np.broadcast_to(count[:, None], inside.shape))

    side = width(len(shown), smallest=4.5, largest=9.0)
    figure = Figure(figsize=(side + 1.0, side), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), aspect="auto")
    if len(columns) <= WRITTEN_CELLS:
        percents = np.rint(100 * np.nan_to_num(shares)).astype(np.int64)
        write_cells(axes, percents, shares > 0.3, skip=percents == 0)
    class_ticks(axes.xaxis, columns, families)
    class_ticks(axes.yaxis, names, families)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    accuracy = total_accuracy(np.diagonal(confusion), confusion.sum(axis=1))
    axes.set_title(f"accuracy {100 * accuracy:.1f} % on {len(shown)} exposed classes", fontsize="medium")
    bar = figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.05, pad=0.02)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def curve_picture(points: Sequence[Point], sessions: Sequence[Point]) -> Figure:
    """Accuracy or mAP on the exposed classes over the samples seen, with session ends and number of exposed classes.

    Arguments as in `cl_prompts.metrics.summarise`.
    """
    figure = Figure(figsize=(7.0, 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    anytime = [point for point in points if point.kind != "session"]
    _plot(axes, anytime, "o-", markersize=3, color="tab:blue", label="anytime")
    # Session ends alone are a curve; between periodic points they are marks on one.
    joined = "" if any(point.kind == "periodic" for point in points) else "-"
    _plot(axes, sessions, "D" + joined, markersize=6, color="tab:red", label="session end")
    for point in sessions:
        axes.axvline(point.samples_seen, color="tab:red", linewidth=0.6, alpha=0.5)
    axes.set_xlabel("stream samples seen")
    score = next((point.score_name for point in (*points, *sessions)), "accuracy")
    axes.set_ylabel(f"{score} on exposed classes")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    classes = axes.twinx()
    everything = sorted([*anytime, *sessions], key=lambda point: point.samples_seen)
    classes.step(
        [point.samples_seen for point in everything],
        [int(point.exposed.sum()) for point in everything],
        where="post",
        color="tab:gray",
        linewidth=1,
    )
    classes.set_ylabel("exposed classes", color="tab:gray")
    classes.set_ylim(bottom=0)
    axes.legend(loc="lower right", frameon=False)
    return figure


def to_array(figure: Figure) -> npt.NDArray[np.uint8]:
    """Render a figure: uint8 `(height, width, 3)`, red, green, blue."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _plot(axes: Axes, points: Sequence[Point], style: str, **options: Any) -> None:
    axes.plot([point.samples_seen for point in points], [point.score for point in points], style, **options)


def _presented(plan: StreamPlan | MultiLabelPlan, several: bool) -> str:
    presented = len(plan.order)
    if not several:
        return f"{presented:,} samples"
    images = len(np.unique(plan.order))
    if images == presented:
        return f"{images:,} images with several labels"
    return f"{presented:,} presentations of {images:,} images with several labels"
