"""`StreamPlan`: which sample comes when. Decided before training, frozen, hashed, saved, measured.

Everything downstream takes a plan, never a sampler. Source: the stream definition of this project; the hash covers what
decides the stream (sample order, class roles, what was requested, the targets) and nothing that differs between two
installations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from scenarios import _plan_measures
from scenarios._hashed_plan import HashedPlan
from scenarios._hashed_plan import require as _require
from scenarios._plan_measures import ABSENT, BLURRY, DISJOINT
from scenarios.errors import PlanError

__all__ = [
    "ABSENT",
    "BLURRY",
    "DISJOINT",
    "StreamPlan",
    "StreamPlanWarning",
    "class_ids",
    "hash_targets",
]

IntegerArray = npt.NDArray[np.int64]

_REQUESTED = {
    "disjoint_class_pct",
    "blurry_sample_pct",
    "n_sessions",
    "seed",
    "mode",
    "allow_empty_sessions",
    "allow_home",
}


class StreamPlanWarning(UserWarning):
    """The stream that was generated falls short of the one that was requested."""


def hash_targets(targets: Any) -> str:
    """sha256 of class ids as one little-endian int64 vector, as hexadecimal text.

    Args:
        targets: class ids `(samples,)`: list, numpy array or CPU tensor of whole numbers.

    Raises:
        PlanError: not a vector of whole numbers.
    """
    return hashlib.sha256(np.ascontiguousarray(class_ids(targets), dtype="<i8").data).hexdigest()


def class_ids(targets: Any) -> IntegerArray:
    """Targets as an int64 vector `(samples,)`, refusing everything but a non-empty vector of whole numbers.

    Raises:
        PlanError: empty, not one-dimensional, or not of an integer type.
    """
    try:
        array = np.asarray(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PlanError(f"targets cannot be read as a vector ({error}): give one class id a sample") from error
    if array.size == 0:
        raise PlanError("targets are empty: a stream needs at least one sample")
    if array.ndim != 1:
        raise PlanError(f"targets have shape {array.shape}: give one class id a sample, shape (samples,)")
    if array.dtype.kind not in "iu":
        raise PlanError(f"targets have type {array.dtype}: class ids must be whole numbers")
    return array.astype(np.int64)


@dataclass(frozen=True, eq=False)
class StreamPlan(HashedPlan):
    """A complete, immutable decision about the order in which the samples of one training set are presented.

    Attributes:
        sessions: int64 arrays of data set indices in presentation order, one a session; together they hold no index
            twice.
        class_kind: int8 `(classes,)`; `DISJOINT` 0 (all its samples belong to one session), `BLURRY` 1 (part of them
            may appear elsewhere), `ABSENT` 2 (no sample in the plan).
        home_session: int64 `(classes,)`, -1 where absent.
        targets: int64 `(samples,)`, class ids in data set order.
        requested: what the generator was asked for: `disjoint_class_pct`, `blurry_sample_pct`, `n_sessions`, `seed`,
            `mode`, `allow_empty_sessions`, `allow_home`, and `varying` only where it is False.
        provenance: generator and library versions, data set name; not part of the identity of the plan.
        class_names: one name a class, or None; not part of the identity of the plan.
        sha256: identity of the plan as hexadecimal text; two plans are equal if it is.

    Raises:
        PlanError: the parts contradict each other.
    """

    FORMAT: ClassVar[int | str] = 1

    sessions: tuple[IntegerArray, ...]
    class_kind: npt.NDArray[np.int8]
    home_session: IntegerArray
    targets: IntegerArray = field(repr=False)
    requested: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    sha256: str = field(init=False)
    targets_sha256: str = field(init=False)
    order: IntegerArray = field(init=False, repr=False)
    session_ends: IntegerArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = np.concatenate([np.empty(0, np.int64), *self.sessions]).astype(np.int64, copy=False)
        ends = np.cumsum([len(session) for session in self.sessions], dtype=np.int64)
        self._freeze(
            {
                "order": order,
                "session_ends": ends,
                "class_kind": np.array(self.class_kind, dtype=np.int8),
                "home_session": np.array(self.home_session, dtype=np.int64),
                "targets": class_ids(self.targets),
            }
        )
        starts = [0, *ends.tolist()]
        object.__setattr__(self, "sessions", tuple(order[a:b] for a, b in pairwise(starts)))
        object.__setattr__(self, "requested", dict(self.requested))
        object.__setattr__(self, "provenance", dict(self.provenance))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(self.class_names))
        self._validate()
        object.__setattr__(self, "targets_sha256", hash_targets(self.targets))
        object.__setattr__(self, "sha256", self._digest(self.sessions))

    @property
    def num_classes(self) -> int:
        """Classes of the data set, absent ones included."""
        return len(self.class_kind)

    @property
    def num_samples(self) -> int:
        """Samples of the data set, dropped ones included; `len(plan.order)` are presented."""
        return len(self.targets)

    @property
    def header(self) -> dict[str, Any]:
        """The hashed part beside the sample order: strings and whole numbers only, booleans as 0 and 1."""
        return {
            "format": self.FORMAT,
            "num_classes": self.num_classes,
            "num_samples": self.num_samples,
            "targets_sha256": self.targets_sha256,
            "class_kind": self.class_kind.tolist(),
            "home_session": self.home_session.tolist(),
            "requested": {
                key: value if isinstance(value, str) else int(value) for key, value in self.requested.items()
            },
        }

    @cached_property
    def counts(self) -> IntegerArray:
        """Samples of every class in every session, int64 `(sessions, classes)`."""
        return _plan_measures.class_counts(self)

    @property
    def session_columns(self) -> npt.NDArray[np.bool_]:
        """Classes that a session shows, bool `(sessions, classes)`."""
        return np.asarray(self.counts > 0)

    @property
    def tasks(self) -> None:
        """None: a stream without task boundaries of its own."""

    @cached_property
    def first_seen(self) -> IntegerArray:
        """Stream position of the first sample of every class, int64 `(classes,)`; `num_samples` if there is none."""
        return _plan_measures.first_positions(self)

    @cached_property
    def effective(self) -> dict[str, Any]:
        """Measures of the realised stream: see `scenarios._plan_measures.effective_measures`."""
        return _plan_measures.effective_measures(self)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for every way in which the stream falls short of what was requested."""
        return _plan_measures.plan_warnings(self)

    def describe(self) -> list[str]:
        """Lines for a terminal: requested against effective, coverage, drops, session sizes, warnings."""
        return _plan_measures.describe_plan(self)

    def check_targets(self, targets: Any) -> None:
        """Make sure that the plan was made for a data set with these class ids.

        Args:
            targets: class ids `(samples,)` in data set order.

        Raises:
            PlanError: other targets: number, values or order differ.
        """
        given = class_ids(targets)
        if len(given) != self.num_samples:
            raise PlanError(
                f"plan {self.sha256[:12]} was made for {self.num_samples} samples but the data set has {len(given)}:"
                " use the data set of the plan or generate a new plan"
            )
        if hash_targets(given) != self.targets_sha256:
            first = int(np.flatnonzero(given != self.targets)[0])
            raise PlanError(
                f"plan {self.sha256[:12]} was made for other targets: sample {first} has class {given[first]}, the plan"
                f" expects {self.targets[first]}; use the data set of the plan or generate a new plan"
            )

    def saved_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays of `plan.npz`; everything measured is derived again on loading, which needs the targets."""
        return {
            "indices": self.order,
            "offsets": np.concatenate([np.zeros(1, np.int64), self.session_ends]),
            "class_kind": self.class_kind,
            "home_session": self.home_session,
            "targets": self.targets.astype(np.min_scalar_type(self.num_classes)),
        }

    @classmethod
    def from_saved(cls, arrays: Mapping[str, npt.NDArray[Any]], **described: Any) -> StreamPlan:
        """The plan of the arrays of `plan.npz`, with `requested`, `provenance` and `class_names`."""
        order, offsets = arrays["indices"], arrays["offsets"].tolist()
        return cls(
            sessions=tuple(order[a:b] for a, b in pairwise(offsets)),
            class_kind=arrays["class_kind"],
            home_session=arrays["home_session"],
            targets=arrays["targets"],
            **described,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and unpickled plans are built anew: arrays come back read-only and the hash is that of the content.
        parts = (self.sessions, self.class_kind, self.home_session, self.targets)
        return type(self), (*parts, self.requested, self.provenance, self.class_names)

    def _validate(self) -> None:
        _require(
            self.num_classes > 0 and self.home_session.shape == self.class_kind.shape,
            "class_kind and home_session must hold one value a class",
        )
        low, high = int(self.targets.min()), int(self.targets.max())
        _require(low >= 0 and high < self.num_classes, f"class ids {low} to {high} with {self.num_classes} classes")
        _require(set(self.requested) - {"varying"} == _REQUESTED, f"requested must hold {sorted(_REQUESTED)}")
        _require(self.requested.get("varying", False) is False, "varying is recorded only where it is False")
        _require(len(self.sessions) == self.requested["n_sessions"], f"{len(self.sessions)} sessions, not n_sessions")
        names = self.class_names
        _require(names is None or len(names) == self.num_classes, f"class_names must hold {self.num_classes} names")
        self._validate_order()
        self._validate_classes()

    def _validate_order(self) -> None:
        inside = self.order.size == 0 or (self.order.min() >= 0 and self.order.max() < self.num_samples)
        _require(inside, f"sample indices outside 0..{self.num_samples - 1}")
        times = np.bincount(self.order, minlength=self.num_samples)
        _require(int(times.max(initial=0)) <= 1, f"sample {int(times.argmax())} is presented twice")
        empty = np.flatnonzero(np.diff(self.session_ends, prepend=0) == 0)
        allowed = self.requested["allow_empty_sessions"] or self.requested["mode"] != "exact"
        _require(allowed or empty.size == 0, f"sessions {empty.tolist()} are empty; set allow_empty_sessions to accept")

    def _validate_classes(self) -> None:
        kind, home, sessions = self.class_kind, self.home_session, len(self.sessions)
        _require(bool(np.isin(kind, (DISJOINT, BLURRY, ABSENT)).all()), "class_kind holds values other than 0, 1, 2")
        shown = self.counts.sum(axis=0) > 0
        _require(bool(((kind != ABSENT) == shown).all()), "absent must mean: no sample in the plan")
        in_range = np.where(shown, (home >= 0) & (home < sessions), home == -1)
        _require(bool(in_range.all()), f"home sessions must be 0..{sessions - 1}, and -1 for absent classes")
        strayed = (kind == DISJOINT) & (_plan_measures.displaced_samples(self) > 0)
        _require(not strayed.any(), f"disjoint classes {np.flatnonzero(strayed).tolist()} appear outside their home")
