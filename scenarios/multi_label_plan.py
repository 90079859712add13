"""`MultiLabelPlan`: which image with several labels comes when, and which of its labels are visible then.

Frozen, hashed, saved and measured like `StreamPlan`. Rows that are presented together share their visible columns; such
a run of rows is a block: a whole session of a stream with tasks, or one batch of an online stream. A label that is not
visible is missing, neither positive nor negative. Source: the stream definitions of this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from scenarios import _multi_label_measures
from scenarios._hashed_plan import HashedPlan, require
from scenarios._label_matrix import BoolMatrix, LabelMatrix, hash_label_matrix, known_matrix, label_matrix
from scenarios._plan_measures import ABSENT, BLURRY, DISJOINT
from scenarios.errors import PlanError

__all__ = ["MultiLabelPlan"]

IntegerArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MultiLabelPlan(HashedPlan):
    """A complete, immutable decision about presentation order and label visibility of one multi-label training set.

    Attributes:
        sessions: int64 arrays of data set indices in presentation order, one a session; only where `anchors` is None
            may an index occur in several sessions.
        block_sizes: int64 `(blocks,)`, rows of every block in stream order; no block crosses a session.
        block_columns: bool `(blocks, classes)`, the columns whose labels the rows of a block show.
        targets: uint8 `(samples, classes)`, all labels in data set order, 1 for each that a sample has.
        known: bool `(samples, classes)`, False where a label is neither positive nor negative; None: all are known.
        drawn_kind: int8 `(classes,)`, `DISJOINT` 0 or `BLURRY` 1, as decided before the images were placed.
        drawn_home: int64 `(classes,)`, the session decided for every class.
        anchors: int64 `(samples,)`, the label that decides the home session of a sample (-1: it has no label and is
            never presented); None where sessions follow from the labels alone.
        requested: what the generator was asked for; `mode`, `seed`, `n_sessions` and its own settings.
        provenance: generator and library versions, data set name; not part of the identity of the plan.
        class_names: one name a class, or None; not part of the identity of the plan.
        order: int64, all sessions one after the other.
        session_ends: int64 `(sessions,)`, presentations up to the end of every session.
        sha256: identity of the plan as hexadecimal text; two plans are equal if it is.
        targets_sha256: of `targets` and `known`.

    Raises:
        PlanError: the parts contradict each other.
    """

    FORMAT: ClassVar[int | str] = "multi-label 1"

    sessions: tuple[IntegerArray, ...]
    block_sizes: IntegerArray = field(repr=False)
    block_columns: BoolMatrix = field(repr=False)
    targets: LabelMatrix = field(repr=False)
    drawn_kind: npt.NDArray[np.int8]
    drawn_home: IntegerArray
    requested: Mapping[str, Any]
    known: BoolMatrix | None = field(default=None, repr=False)
    anchors: IntegerArray | None = field(default=None, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    sha256: str = field(init=False)
    targets_sha256: str = field(init=False)
    order: IntegerArray = field(init=False, repr=False)
    session_ends: IntegerArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = np.concatenate([np.empty(0, np.int64), *self.sessions]).astype(np.int64, copy=False)
        ends = np.cumsum([len(session) for session in self.sessions], dtype=np.int64)
        targets = label_matrix(self.targets)
        self._freeze(
            {
                "order": order,
                "session_ends": ends,
                "block_sizes": np.array(self.block_sizes, dtype=np.int64),
                "block_columns": np.array(self.block_columns, dtype=np.bool_, order="C"),
                "targets": targets,
                "known": known_matrix(self.known, targets),
                "drawn_kind": np.array(self.drawn_kind, dtype=np.int8),
                "drawn_home": np.array(self.drawn_home, dtype=np.int64),
                "anchors": None if self.anchors is None else np.array(self.anchors, dtype=np.int64),
            }
        )
        starts = [0, *ends.tolist()]
        object.__setattr__(self, "sessions", tuple(order[a:b] for a, b in pairwise(starts)))
        object.__setattr__(self, "requested", dict(self.requested))
        object.__setattr__(self, "provenance", dict(self.provenance))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))
        self._validate()
        object.__setattr__(self, "targets_sha256", hash_label_matrix(self.targets, self.known))
        object.__setattr__(self, "sha256", self._digest(self._hashed_parts()))

    @property
    def num_classes(self) -> int:
        """Columns of the labels, classes without an image included."""
        return self.targets.shape[1]

    @property
    def num_samples(self) -> int:
        """Samples of the data set, those never presented included."""
        return len(self.targets)

    @property
    def header(self) -> dict[str, Any]:
        """The hashed part beside the arrays: strings and whole numbers, and lists of them; booleans as 0 and 1."""
        return {
            "format": self.FORMAT,
            "num_classes": self.num_classes,
            "num_samples": self.num_samples,
            "targets_sha256": self.targets_sha256,
            "drawn_kind": self.drawn_kind.tolist(),
            "drawn_home": self.drawn_home.tolist(),
            "requested": {
                key: int(value) if isinstance(value, bool) else value for key, value in self.requested.items()
            },
        }

    @property
    def stream_batch(self) -> int | None:
        """Rows of a batch for which visibility was decided, or None where it is the same in a whole session."""
        return self.requested.get("stream_batch")

    @cached_property
    def tasks(self) -> tuple[tuple[int, ...], ...] | None:
        """Sorted classes of every task, or None for a stream without tasks."""
        if self.anchors is not None:
            return None
        homes = range(len(self.sessions))
        return tuple(tuple(np.flatnonzero(self.drawn_home == session).tolist()) for session in homes)

    @cached_property
    def counts(self) -> IntegerArray:
        """Visible positives of every class in every session, int64 `(sessions, classes)`."""
        return np.array(
            [(self.targets[rows] * self.visible(session)).sum(axis=0) for session, rows in enumerate(self.sessions)],
            dtype=np.int64,
        )

    @cached_property
    def session_columns(self) -> BoolMatrix:
        """Columns that a session shows at least once, bool `(sessions, classes)`, also those without a positive."""
        block_ends = np.cumsum(self.block_sizes)
        ends = np.searchsorted(block_ends, self.session_ends, side="right").tolist()
        return np.array([self.block_columns[a:b].any(axis=0) for a, b in pairwise([0, *ends])], dtype=np.bool_)

    @cached_property
    def seen_after(self) -> BoolMatrix:
        """Columns that were visible at least once by the end of every session, bool `(sessions, classes)`."""
        return np.logical_or.accumulate(self.session_columns)

    @cached_property
    def class_kind(self) -> npt.NDArray[np.int8]:
        """`DISJOINT` 0, `BLURRY` 1 or `ABSENT` 2 (no visible positive in the whole stream), int8 `(classes,)`."""
        return np.where(self.counts.any(axis=0), self.drawn_kind, ABSENT).astype(np.int8)

    @cached_property
    def home_session(self) -> IntegerArray:
        """Home session of every class, int64 `(classes,)`, -1 where absent."""
        return np.where(self.class_kind == ABSENT, -1, self.drawn_home)

    @cached_property
    def effective(self) -> dict[str, Any]:
        """Measures of the realised stream: see `scenarios._multi_label_measures`."""
        return _multi_label_measures.effective_measures(self)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for every way in which the stream falls short of what the data set holds."""
        return _multi_label_measures.plan_warnings(self)

    def describe(self) -> list[str]:
        """Lines for a terminal: what was requested, what the stream really is, warnings."""
        return _multi_label_measures.describe_plan(self)

    def visible(self, session: int) -> BoolMatrix:
        """Which labels the rows of a session show, bool `(len(sessions[session]), classes)`.

        Row by row, so that a script with batches of any size reads the visibility of the plan.
        """
        rows = self.sessions[session]
        start = int(self.session_ends[session]) - len(rows)
        block = np.repeat(np.arange(len(self.block_sizes)), self.block_sizes)[start : start + len(rows)]
        columns = self.block_columns[block]
        return columns if self.known is None else columns & self.known[rows]

    def check_targets(self, targets: Any, known: Any = None) -> None:
        """Make sure that the plan was made for a data set with these labels.

        Args:
            targets: 0/1 `(samples, classes)` in data set order.
            known: bool `(samples, classes)`, or None where all labels are known.

        Raises:
            PlanError: other labels: shape, values or order differ.
        """
        given = label_matrix(targets)
        name, remedy = f"plan {self.sha256[:12]}", "use the data set of the plan or generate a new plan"
        if given.shape != self.targets.shape:
            raise PlanError(
                f"{name} was made for (samples, classes) = {self.targets.shape} but the data set has {given.shape}:"
                f" {remedy}"
            )
        if hash_label_matrix(given, known_matrix(known, given)) == self.targets_sha256:
            return
        differing = np.flatnonzero((given != self.targets).any(axis=1))
        if not differing.size:
            raise PlanError(f"{name} was made for the same labels but others of them are known: {remedy}")
        first = int(differing[0])
        raise PlanError(
            f"{name} was made for other targets: sample {first} has labels {np.flatnonzero(given[first]).tolist()}, the"
            f" plan expects {np.flatnonzero(self.targets[first]).tolist()}; {remedy}"
        )

    def saved_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays of `plan.npz`; everything measured is derived again on loading, which needs the targets."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "indices": self.order,
            "offsets": np.concatenate([np.zeros(1, np.int64), self.session_ends]),
            "block_sizes": self.block_sizes,
            "block_columns": self.block_columns,
            "drawn_kind": self.drawn_kind,
            "drawn_home": self.drawn_home,
            "targets": self.targets,
        }
        optional = {"known": self.known, "anchors": self.anchors}
        return arrays | {name: array for name, array in optional.items() if array is not None}

    @classmethod
    def from_saved(cls, arrays: Mapping[str, npt.NDArray[Any]], **described: Any) -> MultiLabelPlan:
        """The plan of the arrays of `plan.npz`, with `requested`, `provenance` and `class_names`."""
        order, offsets = arrays["indices"], arrays["offsets"].tolist()
        names = ("block_sizes", "block_columns", "drawn_kind", "drawn_home", "targets", "known", "anchors")
        parts: dict[str, Any] = {name: arrays[name] for name in names if name in arrays}
        return cls(sessions=tuple(order[a:b] for a, b in pairwise(offsets)), **parts, **described)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and unpickled plans are built anew: arrays come back read-only and the hash is that of the content.
        parts = (self.sessions, self.block_sizes, self.block_columns, self.targets, self.drawn_kind, self.drawn_home)
        return type(self), (*parts, self.requested, self.known, self.anchors, self.provenance, self.class_names)

    def _hashed_parts(self) -> list[npt.NDArray[Any]]:
        anchors = [] if self.anchors is None else [self.anchors]
        return [*self.sessions, self.block_sizes, self.block_columns.astype(np.uint8), *anchors]

    def _validate(self) -> None:
        classes, names = self.num_classes, self.class_names
        require(
            self.drawn_kind.shape == self.drawn_home.shape == (classes,),
            "drawn_kind and drawn_home must hold one value a class",
        )
        require(bool(np.isin(self.drawn_kind, (DISJOINT, BLURRY)).all()), "drawn_kind holds values other than 0, 1")
        require({"mode", "seed", "n_sessions"} <= set(self.requested), "requested must hold mode, seed and n_sessions")
        require(len(self.sessions) == self.requested["n_sessions"], f"{len(self.sessions)} sessions, not n_sessions")
        inside = bool(((self.drawn_home >= 0) & (self.drawn_home < len(self.sessions))).all())
        require(inside, f"home sessions must be 0..{len(self.sessions) - 1}")
        require(names is None or len(names) == classes, f"class_names must hold {classes} names")
        self._validate_order()
        self._validate_blocks()

    def _validate_order(self) -> None:
        inside = self.order.size == 0 or (self.order.min() >= 0 and self.order.max() < self.num_samples)
        require(inside, f"sample indices outside 0..{self.num_samples - 1}")
        for part in self.sessions if self.anchors is None else (self.order,):
            times = np.bincount(part, minlength=self.num_samples)
            require(int(times.max(initial=0)) <= 1, f"sample {int(times.argmax())} is presented twice")
        if self.anchors is not None:
            require(self.anchors.shape == (self.num_samples,), "anchors must hold one class id a sample, or -1")
            anchored = self.anchors >= 0
            chosen = self.targets[np.flatnonzero(anchored), self.anchors[anchored]]
            require(bool(chosen.all()), "an anchor must be a label of its sample")
            presented = np.bincount(self.order, minlength=self.num_samples) == 1
            require(bool((presented == anchored).all()), "exactly the samples with an anchor must be presented")

    def _validate_blocks(self) -> None:
        blocks, ends = len(self.block_sizes), np.cumsum(self.block_sizes)
        require(self.block_columns.shape == (blocks, self.num_classes), "block_columns must be (blocks, classes)")
        require(bool((self.block_sizes > 0).all()), "a block without rows")
        require(bool(np.isin(self.session_ends[self.session_ends > 0], ends).all()), "a block crosses a session")
        require(int(self.block_sizes.sum()) == len(self.order), "block_sizes must add up to the presentations")
        for session, rows in enumerate(self.sessions):
            shown = (self.targets[rows] * self.visible(session)).any(axis=1)
            require(bool(shown.all()), f"session {session} presents samples without a visible label")
