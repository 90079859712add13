"""`AnytimeEvaluation`: accuracy along the stream, every K samples, at session ends and at the end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import MetricValue

from cl_prompts.errors import MetricError
from cl_prompts.evaluation import EvaluationResult, Evaluator
from cl_prompts.metrics.records import EvaluationPoint
from cl_prompts.plugins.stream_position import StreamPosition

Listener = Callable[[Any, EvaluationPoint], None]


class AnytimeEvaluation(SupervisedPlugin):
    """Evaluates on the test images of the classes exposed so far, without a trace in the trained weights.

    Under Avalanche's own strategies it takes the experiences for sessions; under any strategy `session_ends` (from
    `StreamPlan.session_ends`) places the session points on the x axis, so that a boundary-free stream has them too.

    Args:
        evaluator: the test set and how to run it.
        every: stream samples between periodic points; 0 evaluates at session ends and at the end alone.
        rule: `exact` (first batch end at or beyond each multiple, x = samples seen) or `official` (strictly beyond,
            at most one a batch, x = the multiple), as in the Si-Blurry code.
        session_ends: samples seen at the end of each session; None takes the end of each experience. They are kept
            where no attribute leads: a strategy that looks through its plugins finds no boundary before it is past.

    Attributes:
        points: periodic points and the final one, in order.
        sessions: one point at the end of each session.

    Raises:
        MetricError: no evaluator, a negative period, an unknown rule, or no session at all.
    """

    def __init__(
        self, evaluator: Evaluator, *, every: int, rule: str = "exact", session_ends: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not callable(evaluator) or not hasattr(evaluator, "num_classes"):
            raise MetricError(
                f"AnytimeEvaluation was given a {type(evaluator).__name__}; pass "
                "Evaluator(test_dataset, num_classes=...) of cl_prompts.evaluation"
            )
        if every < 0:
            raise MetricError(f"AnytimeEvaluation every={every}: give stream samples, or 0 for session ends alone")
        if rule not in RULES:
            raise MetricError(f"AnytimeEvaluation rule {rule!r} is unknown; choose one of {', '.join(RULES)}")
        if session_ends is not None and len(session_ends) == 0:
            raise MetricError("AnytimeEvaluation session_ends is empty; give StreamPlan.session_ends, or None")
        self.evaluator = evaluator
        self.every = every
        self.rule = RULES[rule]
        self._sessions_ended = None if session_ends is None else _counter(session_ends)
        self._is_complete = (lambda seen: False) if session_ends is None else _threshold(int(session_ends[-1]))
        self.points: list[EvaluationPoint] = []
        self.sessions: list[EvaluationPoint] = []
        self._exposed = torch.zeros(evaluator.num_classes, dtype=torch.bool)
        self._position = StreamPosition()
        self._next = every
        self._listeners: list[Listener] = []
        self._latest: tuple[tuple[int, int], EvaluationResult] | None = None

    def subscribe(self, listener: Listener) -> None:
        """Call `listener(strategy, point)` after every evaluation."""
        self._listeners.append(listener)

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start counting an experience; sessions that are empty at the very start have nothing to evaluate."""
        self._position.begin_epoch(strategy)
        self._record_ended_sessions(strategy)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Classes count as exposed from the first batch that holds them."""
        self._position.begin_batch(strategy)
        targets = strategy.mb_y[: self._position.rows]
        # Where the targets are: fetching them would make every step wait for the device.
        self._exposed = self._exposed.to(targets.device).index_fill_(0, targets, True)

    def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Evaluate if a multiple of the period or a session end was reached."""
        self._position.end_batch()
        seen = self._position.samples_seen
        if self.every:
            nominal, self._next = self.rule(seen, self._next, self.every)
            if nominal is not None:
                self._record(strategy, self.points, "periodic", nominal=nominal)
        self._record_ended_sessions(strategy)
        if self._is_complete(seen) and not self._has_final():
            self._record(strategy, self.points, "final")

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Without a plan, an experience is a session, measured after what the plugins before this one did to it."""
        if self._sessions_ended is None:
            self._record(strategy, self.sessions, "session", session=len(self.sessions))

    def finish(self, strategy: Any) -> None:
        """Add the final point of a stream whose length was not known in advance."""
        if not self._has_final():
            self._record(strategy, self.points, "final")

    def _record_ended_sessions(self, strategy: Any) -> None:
        ended = 0 if self._sessions_ended is None else self._sessions_ended(self._position.samples_seen)
        while len(self.sessions) < ended:
            self._record(strategy, self.sessions, "session", session=len(self.sessions))

    def _has_final(self) -> bool:
        return bool(self.points) and self.points[-1].kind == "final"

    def _record(self, strategy: Any, to: list[EvaluationPoint], kind: Any, **place: int) -> None:
        seen = self._position.samples_seen
        state = (seen, _version(strategy.model))
        if self._latest is None or self._latest[0] != state:
            check = getattr(strategy, "stop_if_not_finite", None)
            if check is not None:
                check()
            # One evaluation serves every point that falls on the same state of the model.
            self._latest = (state, self.evaluator(strategy.model, self._exposed))
        result = self._latest[1]
        point = EvaluationPoint.from_confusion(
            result.confusion,
            samples_seen=seen,
            kind=kind,
            loss=result.loss,
            exposed=self._exposed.cpu().numpy().copy(),
            **place,
        )
        to.append(point)
        if not np.isnan(point.accuracy):
            name = f"{'anytime' if kind != 'session' else 'session'}/accuracy"
            strategy.evaluator.publish_metric_value(MetricValue(self, name, point.accuracy, point.nominal))
        for listener in self._listeners:
            listener(strategy, point)


def _version(model: torch.nn.Module) -> int:
    """Rises with every change in place of a parameter or buffer; the number itself means nothing."""
    return sum(tensor._version for tensor in (*model.parameters(), *model.buffers()))


def _counter(ends: Sequence[int]) -> Callable[[int], int]:
    known = sorted(int(end) for end in ends)
    return lambda seen: bisect_right(known, seen)


def _threshold(end: int) -> Callable[[int], bool]:
    return lambda seen: seen >= end


def _exact(seen: int, due: int, every: int) -> tuple[int | None, int]:
    if seen < due:
        return None, due
    return seen, (seen // every + 1) * every


def _official(seen: int, due: int, every: int) -> tuple[int | None, int]:
    return (due, due + every) if seen > due else (None, due)


RULES: dict[str, Callable[[int, int, int], tuple[int | None, int]]] = {"exact": _exact, "official": _official}
"""Rule -> (samples seen, next multiple, period) -> (nominal x of a point or None, next multiple)."""
