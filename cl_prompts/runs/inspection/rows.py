"""What an inspection prints below the header of a run, in lines that fit a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cl_prompts.backbones.records import WeightRecord
from cl_prompts.logging.axis_marks import spread
from cl_prompts.logging.console import LABEL_WIDTH, WIDTH, clock_time
from cl_prompts.runs.inspection.estimate import Estimate
from cl_prompts.runs.inspection.measurement import Measurement, Passes
from cl_prompts.runs.inspection.samples import SESSIONS
from cl_prompts.runs.inspection.work import Work
from scenarios.plan import BLURRY
from scenarios.plans import Plan

_LINES = 3
"""Lines that a list of names takes at most; the file has all of them."""


def class_order_rows(plan: Plan, first: Sequence[int]) -> list[str]:
    """The classes in the order they are first shown, a session after the other; blurry ones with a star.

    Args:
        plan: the stream.
        first: samples seen when each class is first shown, as `work.first_shown` counts them for one epoch.
    """
    names = plan.class_names or tuple(map(str, range(plan.num_classes)))
    order, starts = np.argsort(first, kind="stable").tolist(), [0, *plan.session_ends.tolist()]
    lines = []
    for session in spread(len(plan.sessions), SESSIONS):
        new = [label for label in order if starts[session] <= first[label] < starts[session + 1]]
        marked = [names[label] + ("*" if plan.class_kind[label] == BLURRY else "") for label in new]
        lines += listed(marked or ["none"], f"session {session}, {len(new)} new: ")
    if len(plan.sessions) > SESSIONS:
        lines.append(f"{SESSIONS} of {len(plan.sessions)} sessions are shown")
    if BLURRY in plan.class_kind:
        lines.append("* blurry: comes in other sessions as well")
    return labelled("order", lines)


def record_rows(record: WeightRecord | None, unpinned: Sequence[str], known: int) -> dict[str, list[str]]:
    """What is known about the published weights, and the files whose hash is not known yet.

    Args:
        record: of the run's own weights; None where there is none.
        unpinned: tags without a hash.
        known: tags in the table.
    """
    rows = {}
    if record is not None:
        users = f", used by {', '.join(record.used_by)}" if record.used_by else ""
        text = f"{record.about}; licence {record.licence}{users}; {record.page}"
        rows["record"] = labelled("record", wrapped(text))
    if unpinned:
        text = f"{len(unpinned)} of {known} published weight files get their hash when first loaded: "
        rows["unpinned"] = labelled("unpinned", listed(unpinned, text))
    return rows


def parameter_rows(groups: Mapping[str, int]) -> list[str]:
    """Trainable parameters of each group."""
    parts = [f"{name} {count:,}" for name, count in groups.items()] or ["nothing is trained by gradient"]
    return labelled("trained", wrapped("; ".join(parts)))


def cost_rows(work: Work, measured: Measurement, expected: Estimate, stream_batch: int) -> dict[str, list[str]]:
    """Passes of the backbone, time and memory, and how they were found."""
    sizes = [(expected.memory, "memory"), (expected.gpu_memory, "GPU memory")]
    peaks = " and ".join(f"{size / 2**20:,.0f} MiB of {where}" for size, where in sizes if size is not None)
    smaller = f" instead of {stream_batch}" if measured.batch_size < stream_batch else ""
    batches = "batch" if measured.batches == 1 else "batches"
    once = "all test images each" if measured.whole_test_set else f"{work.evaluated_images:,} test images"
    return {
        "passes": labelled("passes", list(_passes(work, measured.passes))),
        "estimate": labelled(
            "estimate",
            [
                f"about {clock_time(expected.seconds)}{f', at least {peaks}' if peaks else ''}",
                f"{clock_time(expected.preparation)} until training starts",
                f"{clock_time(expected.training)} training: {work.updates:,} updates on {work.batches:,} batches",
                f"{clock_time(expected.evaluation)} evaluation: {work.evaluations:,} times, {once}",
            ],
        ),
        "measured": labelled(
            "measured",
            [
                f"{measured.batches} {batches} of {measured.batch_size}{smaller} in {measured.seconds:.1f} s, "
                f"then {measured.test_images} test images;",
                "all counts are taken at that speed; the weights were thrown away",
            ],
        ),
    }


def _passes(work: Work, passes: Passes) -> Iterator[str]:
    """Passes of a stream sample, of a test image, and what they are counted in."""
    rows, each = work.rows / work.samples, passes.forward + passes.backward
    backward = f" + {passes.backward:.2f} backward" if passes.backward else ""
    yield f"a stream sample: {rows:.3g} x ({passes.forward:.2f} forward{backward}) = {rows * each:.1f}"
    once = f"{passes.evaluation_once:.2f} once, " if passes.evaluation_once else ""
    yield f"a test image: {once}{passes.evaluation_each:.2f} at each evaluation"
    yield f"1 = the frozen backbone forward on an image, {passes.gflop:.3g} GFLOP"


def listed(names: Sequence[str], start: str) -> list[str]:
    """Names behind `start`, in a few lines, and how many were left out."""
    for count in range(len(names), 0, -1):
        more = f", and {len(names) - count} more" if count < len(names) else ""
        lines = wrapped(start + ", ".join(names[:count]) + more)
        if len(lines) <= _LINES:
            return lines
    return wrapped(f"{start}{len(names)} names")


def wrapped(text: str) -> list[str]:
    """Lines that fit beside the labels."""
    return textwrap.wrap(text, WIDTH - LABEL_WIDTH, break_long_words=False, break_on_hyphens=False)


def labelled(label: str, lines: Sequence[str]) -> list[str]:
    """Lines below each other, the first with the label before it."""
    return [f"{label if number == 0 else '':<{LABEL_WIDTH}}{line}" for number, line in enumerate(lines)]
