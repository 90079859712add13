"""`ScoreHistory`: the scores of all evaluations so far, their means, and the words for them."""

from __future__ import annotations

from typing import NamedTuple

from cl_prompts.logging.console import percent
from cl_prompts.metrics.anytime import a_auc, a_avg
from cl_prompts.metrics.records import EvaluationPoint, MultiLabelPoint, Point
from cl_prompts.metrics.tables import classes_in_words


class _Words(NamedTuple):
    anytime: str
    so_far: str


WORDS = {
    EvaluationPoint.score_name: _Words("anytime", "A_AUC so far"),
    MultiLabelPoint.score_name: _Words("anytime mAP", "mAP so far"),
}
"""Name of a score -> what it is called on a terminal."""


class ScoreHistory:
    """Takes up evaluations in the order of the stream; of points of all kinds.

    Attributes:
        periodic: scores of the periodic points.
        sessions: scores at the session ends.
        latest: score of the latest periodic or final point; while there is no periodic one, of the latest session end
            too; None before the first.
    """

    def __init__(self) -> None:
        self.periodic: list[float] = []
        self.sessions: list[float] = []
        self.latest: float | None = None
        self._words = WORDS[EvaluationPoint.score_name]
        self._session: int | None = None

    def take(self, point: Point) -> None:
        """Take up one evaluation."""
        self._words = WORDS[point.score_name]
        if point.kind == "session":
            self.sessions.append(point.score)
            self._session = point.session
            if self.periodic:
                return
        elif point.kind == "periodic":
            self.periodic.append(point.score)
        self.latest = point.score

    @property
    def mean(self) -> float:
        """Mean of the periodic scores; the latest score where there are none (`metrics.a_auc`)."""
        return a_auc(self.periodic, float("nan") if self.latest is None else self.latest)

    @property
    def session_mean(self) -> float:
        """Mean of the scores at the session ends; NaN before the first."""
        return a_avg(self.sessions)

    def words(self) -> str:
        """The latest score and a mean for people; empty before the first evaluation."""
        if self.latest is None:
            return ""
        if self.sessions and not self.periodic:
            session = f" (session {self._session})"
            return (
                f"{self._words.anytime} {percent(self.latest)}{session}, mean of sessions {percent(self.session_mean)}"
            )
        return f"{self._words.anytime} {percent(self.latest)}, {self._words.so_far} {percent(self.mean)}"


def session_line(point: Point) -> str:
    """What the end of a session measured, for people."""
    classes = int(point.exposed.sum())
    if isinstance(point, MultiLabelPoint):
        with_positives = int((point.result.positives > 0).sum())
        parts = [f"mAP {percent(point.score)} over {classes_in_words(with_positives, classes)}"]
        for values in point.result.thresholds[:1]:
            parts.append(f"CF1 {percent(values.cf1)}, OF1 {percent(values.of1)} at threshold {values.threshold:g}")
    else:
        parts = [f"{point.score_name} {percent(point.score)} on {classes} class{'es' if classes != 1 else ''}"]
    return f"session {point.session} after {point.samples_seen:,} samples: {', '.join(parts)}"
