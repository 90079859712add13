"""What summaries and tables of either kind of evaluation share: which point is the last one, rows, their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cl_prompts.errors import MetricError
from cl_prompts.metrics.records import EvaluationPoint, MultiLabelPoint

P = TypeVar("P", bound=EvaluationPoint | MultiLabelPoint)

Cell = str | int | float
"""A cell of a table; NaN stands for "not measured"."""


@dataclass(frozen=True)
class StreamPoints(Generic[P]):
    """The evaluations of a run, finished or not, by what they are for."""

    anytime: list[P]
    """Periodic points and the final one, in the order of the stream."""
    ends: list[P]
    """The point at the end of each session, in order."""
    complete: bool
    """Whether every planned session has ended."""

    @classmethod
    def of(
        cls, kind: type[P], points: Iterable[P], sessions: Iterable[P], sessions_planned: int | None = None
    ) -> StreamPoints[P]:
        """Sort evaluations.

        Args:
            kind: class that every point must have.
            points: the periodic points and, at the end of the stream, the final one, in order; points of kind
                `session` among them are skipped.
            sessions: the point at the end of each session, in order.
            sessions_planned: sessions of the whole stream; None takes those measured for all.

        Raises:
            MetricError: a point of the other kind.
        """
        anytime = [point for point in points if point.kind != "session"]
        ends = list(sessions)
        for point in (*anytime, *ends):
            if not isinstance(point, kind):
                raise MetricError(
                    f"{type(point).__name__} (measures {type(point).score_name}) where {kind.__name__} (measures "
                    f"{kind.score_name}) is expected; use SingleLabelTables for one label a sample and "
                    "MultiLabelTables for several"
                )
        return cls(anytime, ends, sessions_planned is None or len(ends) >= sessions_planned)

    @property
    def periodic(self) -> list[P]:
        """The points every K samples."""
        return [point for point in self.anytime if point.kind == "periodic"]

    @property
    def final(self) -> P | None:
        """The point after the last sample; None before it."""
        return next((point for point in reversed(self.anytime) if point.kind == "final"), None)

    @property
    def last(self) -> P | None:
        """The state after the last planned session; of a stream without session ends, the final point.

        None of an interrupted run: its earlier session is no last one, its easier task would pass for a better result.
        """
        if not self.complete:
            return None
        return self.ends[-1] if self.ends else self.final

    @property
    def exposed_classes(self) -> int:
        """Classes exposed at the latest point; 0 before there is one."""
        latest = max([*self.anytime, *self.ends], key=lambda point: point.samples_seen, default=None)
        return int(latest.exposed.sum()) if latest else 0

    def in_order(self) -> list[P]:
        """Each point once, by place in the stream."""
        unique = {id(point): point for point in (*self.anytime, *self.ends)}.values()
        return sorted(unique, key=lambda point: (point.samples_seen, _ORDER_OF_KINDS[point.kind]))


_ORDER_OF_KINDS = {"periodic": 0, "session": 1, "final": 2}


def place_cells(point: EvaluationPoint | MultiLabelPoint) -> dict[str, Cell]:
    """The first cells of a row of `curves.csv`: the place in the stream; no session ended is an empty text."""
    return {
        "samples_seen": point.samples_seen,
        "nominal": point.nominal,
        "kind": point.kind,
        "session": "" if point.session is None else point.session,
    }


def class_table(
    sessions: Sequence[P],
    values: Callable[[P], npt.NDArray[np.float64]],
    class_names: Sequence[str] | None = None,
) -> tuple[list[str], list[list[Any]]]:
    """One value of each class (column) at the end of each session (row).

    Args:
        sessions: the point at the end of each session, in order.
        values: the float64 `(C,)` of a point.
        class_names: names of the columns; numbers if None.

    Returns:
        Header `session, samples_seen, <class>...` and the rows.
    """
    number = len(sessions[0].exposed) if sessions else 0
    names = [str(name) for name in class_names] if class_names is not None else [str(k) for k in range(number)]
    rows: list[list[Any]] = [
        ["" if point.session is None else point.session, point.samples_seen, *values(point).tolist()]
        for point in sessions
    ]
    return ["session", "samples_seen", *names], rows
