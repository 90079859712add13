"""How much a run has to do, counted from its configuration and its stream before anything is trained."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import floor

import numpy as np
import numpy.typing as npt

from cl_prompts.plugins.anytime_evaluation import RULES
from cl_prompts.runs.build import Data
from cl_prompts.runs.schema import RunConfig
from scenarios.mlcil import evaluation_images
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.multi_label_settings import MultiLabelEvaluationSettings
from scenarios.plans import Plan


@dataclass(frozen=True)
class Work:
    """Counts over a whole run.

    Attributes:
        samples: stream samples, each once an epoch.
        batches: stream batches.
        updates: optimizer steps, or fits in closed form.
        rows: images in the batches of all updates, replayed ones included.
        evaluations: evaluations of different states of the model.
        evaluated_images: images in all of them; an image counts each time.
        test_images: images of the test set.
    """

    samples: int
    batches: int
    updates: int
    rows: int
    evaluations: int
    evaluated_images: int
    test_images: int


def planned_work(config: RunConfig, data: Data) -> Work:
    """Count what `execute` will do.

    A shuffled epoch shows its classes in another order than planned, so that a periodic evaluation inside a session may
    find other classes exposed than counted here.
    """
    protocol, plan = config.protocol, data.plan
    sizes = np.array(list(_batch_sizes(config, plan)), dtype=np.int64)
    seen = np.cumsum(sizes)
    per_batch = (
        Fraction(protocol.updates_per_batch).limit_denominator(10**6)
        if config.strategy.declared_needs().gradient
        else 1
    )
    due = np.diff([floor(per_batch * number) for number in range(len(sizes) + 1)])
    replayed = np.minimum(protocol.replay_batch, np.minimum(protocol.memory_size, seen - sizes))
    points = list(_evaluations(config, plan, seen.tolist()))
    return Work(
        samples=int(sizes.sum()),
        batches=len(sizes),
        updates=int(due.sum()),
        rows=int((due * (sizes + replayed)).sum()),
        evaluations=len(points),
        evaluated_images=sum(_images_evaluated(config, data, points)),
        test_images=len(data.test),
    )


def _batch_sizes(config: RunConfig, plan: Plan) -> Iterator[int]:
    """Images of every stream batch, in order; an experience ends with a smaller one."""
    batch = config.protocol.stream_batch
    merged = config.scenario.view == "merged"
    for length in [len(plan.order)] if merged else [len(session) for session in plan.sessions]:
        for _ in range(config.protocol.epochs):
            yield from (min(batch, length - start) for start in range(0, length, batch))


def _evaluations(config: RunConfig, plan: Plan, seen_after_batches: list[int]) -> Iterator[int]:
    """Samples seen at every evaluation, as `AnytimeEvaluation` places them: one serves all points of a batch end."""
    protocol = config.protocol
    ends = (plan.session_ends * protocol.epochs).tolist()
    if protocol.session_evaluation == "deferred":
        yield ends[-1]
        return
    due, ended = protocol.eval_every, bisect_right(ends, 0)
    for seen in seen_after_batches:
        nominal = None
        if protocol.eval_every:
            nominal, due = RULES[protocol.anytime_rule](seen, due, protocol.eval_every)
        before, ended = ended, bisect_right(ends, seen)
        if nominal is not None or ended > before:
            yield seen


def _images_evaluated(config: RunConfig, data: Data, points: list[int]) -> Iterator[int]:
    """Test images of each evaluation."""
    first = first_shown(data.plan, config.protocol.epochs)
    images = cache(lambda exposed: _images_of(config, data, np.frombuffer(exposed, dtype=np.bool_)))
    return (images((first < seen).tobytes()) for seen in points)


def _images_of(config: RunConfig, data: Data, exposed: npt.NDArray[np.bool_]) -> int:
    targets, plan, scenario = data.test.targets, data.plan, config.scenario
    if isinstance(plan, MultiLabelPlan) and isinstance(scenario, MultiLabelEvaluationSettings):
        return int(evaluation_images(targets, exposed, scenario.eval_images, plan.seen_after[-1]).sum())
    return int(exposed[targets].sum())


def first_shown(plan: Plan, epochs: int) -> npt.NDArray[np.int64]:
    """Samples seen when each class is first shown, int64 `(classes,)`; at least `len(plan.order) * epochs` if never.

    Of several labels an image, a class is shown by the first label of it that is visible, be it positive or not.
    """
    ends = plan.session_ends
    first = np.full(plan.num_classes, len(plan.order), dtype=np.int64)
    for session, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
        if start == end:
            continue
        shown = _shown(plan, session)
        # Every epoch passes over a session before the next one begins.
        position = start + shown.argmax(axis=0)
        first = np.where((first == len(plan.order)) & shown.any(axis=0), position, first)
    home = np.searchsorted(ends, first, side="right")
    starts = np.concatenate([[0], ends])
    return first + (epochs - 1) * starts[home]


def _shown(plan: Plan, session: int) -> npt.NDArray[np.bool_]:
    """Which classes each row of a session tells about, bool `(rows, classes)`."""
    if isinstance(plan, MultiLabelPlan):
        return plan.visible(session)
    return plan.targets[plan.sessions[session]][:, None] == np.arange(plan.num_classes)
