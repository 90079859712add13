"""`AnytimeEvaluation`: how good a learner is along the stream, every K samples, at session ends and at the end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from cl_prompts.errors import MetricError
from cl_prompts.evaluation import Evaluator, MultiLabelEvaluator
from cl_prompts.labels import label_kind
from cl_prompts.metrics.record_state import point_from_state, point_state
from cl_prompts.metrics.records import EvaluationPoint, MultiLabelPoint
from cl_prompts.plugins.stream_position import StreamPosition

Point = EvaluationPoint | MultiLabelPoint
Listener = Callable[[Any, Any], None]
"""Called with (strategy, point)."""


class AnytimeEvaluation(SupervisedPlugin):
    """Evaluates on the test images of the classes exposed so far, without a trace in the trained weights.

    Under Avalanche's own strategies it takes the experiences for sessions; under any strategy `session_ends` (from
    `StreamPlan.session_ends`) places the session points on the x axis, so that a boundary-free stream has them too.

    Args:
        evaluator: the test set and how to run it, of one label an image or of several.
        every: stream samples between periodic points; 0 evaluates at session ends and at the end alone.
        rule: `exact` (first batch end at or beyond each multiple, x = samples seen) or `official` (strictly beyond,
            at most one a batch, x = the multiple), as in the Si-Blurry code.
        session_ends: samples seen at the end of each session; None takes the end of each experience. They are kept
            where no attribute leads: a strategy that looks through its plugins finds no boundary before it is past.
        deferred: measure all session ends after the last one, in one pass over the test set. Only for learners that
            grow by finished parts (`Method.parts`), whose earlier states can be put together again, equal up to the
            rounding of larger matrix products.

    Attributes:
        points: periodic points and the final one, in order.
        sessions: one point at the end of each session.

    Raises:
        MetricError: no evaluator, a negative period, an unknown rule, or no session at all; deferred with periodic
            points, for a learner without parts, or for one whose finished parts changed.
    """

    def __init__(
        self,
        evaluator: Evaluator | MultiLabelEvaluator,
        *,
        every: int,
        rule: str = "exact",
        session_ends: Sequence[int] | None = None,
        deferred: bool = False,
    ) -> None:
        super().__init__()
        if not callable(evaluator) or not hasattr(evaluator, "point"):
            raise MetricError(
                f"AnytimeEvaluation was given a {type(evaluator).__name__}; pass "
                "Evaluator(test_dataset, num_classes=...) of cl_prompts.evaluation, or its MultiLabelEvaluator"
            )
        if every < 0:
            raise MetricError(f"AnytimeEvaluation every={every}: give stream samples, or 0 for session ends alone")
        if rule not in RULES:
            raise MetricError(f"AnytimeEvaluation rule {rule!r} is unknown; choose one of {', '.join(RULES)}")
        if session_ends is not None and len(session_ends) == 0:
            raise MetricError("AnytimeEvaluation session_ends is empty; give StreamPlan.session_ends, or None")
        if deferred and (every or session_ends is None):
            raise MetricError(
                "AnytimeEvaluation deferred=True measures session ends alone: give every=0 and session_ends"
            )
        self.evaluator: Any = evaluator
        self.every = every
        self.rule = RULES[rule]
        self._sessions_ended = None if session_ends is None else _counter(session_ends)
        self._is_complete = (lambda seen: False) if session_ends is None else _threshold(int(session_ends[-1]))
        self.points: list[Point] = []
        self.sessions: list[Point] = []
        self._exposed = torch.zeros(evaluator.num_classes, dtype=torch.bool)
        self._position = StreamPosition()
        self._next = every
        self._listeners: list[Listener] = []
        self._latest: tuple[tuple[int, int], Any] | None = None
        self._deferred = FinishedParts() if deferred else None

    def subscribe(self, listener: Listener) -> None:
        """Call `listener(strategy, point)` after every evaluation."""
        self._listeners.append(listener)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores: all points so far and when the next one is due."""
        return {
            "points": [point_state(point) for point in self.points],
            "sessions": [point_state(point) for point in self.sessions],
            "exposed": self._exposed,
            "position": self._position.state_dict(),
            "next": self._next,
            "deferred": None if self._deferred is None else self._deferred.state_dict(),
            "evaluator": self.evaluator.logits.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken.

        Raises:
            MetricError: an evaluation in it cannot be read.
        """
        self.points = [point_from_state(point) for point in state["points"]]
        self.sessions = [point_from_state(point) for point in state["sessions"]]
        self._exposed, self._next, self._latest = state["exposed"], state["next"], None
        self._position.load_state_dict(state["position"])
        if self._deferred is not None:
            self._deferred.load_state_dict(state["deferred"])
        self.evaluator.logits.load_state_dict(state["evaluator"])

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Start counting an experience; sessions that are empty at the very start have nothing to evaluate."""
        self._position.begin_epoch(strategy)
        self._record_ended_sessions(strategy)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Classes count as exposed from the first batch that holds them."""
        self._position.begin_batch(strategy)
        targets = strategy.mb_y[: self._position.rows]
        # Where the targets are: fetching them would make every step wait for the device.
        self._exposed = self._exposed.to(targets.device) | label_kind(targets).shown(targets, len(self._exposed))

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
        if self._deferred is not None:
            self._defer(strategy, self._deferred, ended)
            return
        while len(self.sessions) < ended:
            self._record(strategy, self.sessions, "session", session=len(self.sessions))

    def _defer(self, strategy: Any, deferred: FinishedParts, ended: int) -> None:
        """Note the state at a session end; after the last, measure all of them from the outputs of finished parts."""
        while len(deferred.ends) < ended:
            deferred.note(strategy.model, self._position.samples_seen, self._exposed.clone())
        if not self._is_complete(self._position.samples_seen) or self.sessions:
            return
        for session, (seen, exposed, parts) in enumerate(deferred.ends):
            result = self.evaluator(strategy.model, exposed, parts)
            self._add(strategy, self.sessions, result, exposed, samples_seen=seen, kind="session", session=session)

    def _has_final(self) -> bool:
        return bool(self.points) and self.points[-1].kind == "final"

    def _record(self, strategy: Any, to: list[Point], kind: Any, **place: int) -> None:
        seen = self._position.samples_seen
        state = (seen, _version(strategy.model))
        if self._latest is None or self._latest[0] != state:
            check = getattr(strategy, "stop_if_not_finite", None)
            if check is not None:
                check()
            # One evaluation serves every point that falls on the same state of the model.
            self._latest = (state, self.evaluator(strategy.model, self._exposed))
        self._add(strategy, to, self._latest[1], self._exposed, samples_seen=seen, kind=kind, **place)

    def _add(self, strategy: Any, to: list[Point], result: Any, exposed: Tensor, **place: Any) -> None:
        point = self.evaluator.point(result, exposed=exposed.cpu().numpy().copy(), **place)
        to.append(point)
        if not np.isnan(point.score):
            name = f"{'anytime' if point.kind != 'session' else 'session'}/{point.score_name}"
            strategy.evaluator.publish_metric_value(MetricValue(self, name, point.score, point.nominal))
        for listener in self._listeners:
            listener(strategy, point)


class FinishedParts:
    """Session ends that are measured later, and the check that nothing they rest on has changed since."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, Tensor, int]] = []
        self._finished: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores."""
        return {
            "ends": [[seen, exposed, parts] for seen, exposed, parts in self.ends],
            "finished": list(self._finished),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        self.ends = [(seen, exposed, parts) for seen, exposed, parts in state["ends"]]
        self._finished = list(state["finished"])

    def note(self, model: torch.nn.Module, seen: int, exposed: Tensor) -> None:
        """A session has ended at `seen` samples with these classes exposed.

        Raises:
            MetricError: a learner without parts, or a part that is no longer what it was when its session ended.
        """
        self._finished = self._states(model)
        self.ends.append((seen, exposed, len(self._finished)))

    def _states(self, model: torch.nn.Module) -> list[str]:
        parts = getattr(model, "parts", lambda: None)()
        if parts is None:
            raise MetricError(
                f"AnytimeEvaluation deferred=True: {type(model).__name__} does not grow by finished parts, so its "
                "earlier states cannot be measured later; set deferred=False (protocol.session_evaluation=live)"
            )
        found = [repr(part) for part in parts]
        changed = [number for number, state in enumerate(self._finished) if found[number] != state]
        if changed:
            raise MetricError(
                f"AnytimeEvaluation deferred=True: part {changed[0]} of {type(model).__name__} learned on after its "
                "session, so its state then is lost; set deferred=False (protocol.session_evaluation=live)"
            )
        return found


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
