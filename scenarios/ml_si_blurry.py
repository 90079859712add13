"""Multi-label Si-Blurry: a blurry online stream of images with several labels, each image once.

Every image has an anchor, one of its labels at random, and is at home where its anchor is. Images with a disjoint
anchor stay there, part of those with a blurry anchor is moved. A batch shows the labels of the classes that anchor an
image of its session and of this or an earlier batch; all other labels are missing, neither positive nor negative.
Source: the stream definition of this project, after the single-label Si-Blurry setting, without its dropped classes.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from scenarios._arguments import (
    LARGEST_SEED,
    ClassIds,
    checked,
    class_order,
    names_of_classes,
    order_setting,
    whole_number,
)
from scenarios._label_matrix import BoolMatrix, LabelMatrix, label_matrix
from scenarios._plan_measures import BLURRY, DISJOINT
from scenarios.errors import PlanError
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.multi_label_settings import MultiLabelEvaluationSettings
from scenarios.plan import StreamPlanWarning

__all__ = ["MLSiBlurrySettings", "ml_si_blurry_plan"]

GENERATOR_VERSION = "1"
"""Rises whenever the same arguments give another stream."""

IntegerArray = npt.NDArray[np.int64]

_HOME_DRAWS = 1000
_OTHER_ORDERS = "null for a drawn order"


class MLSiBlurrySettings(MultiLabelEvaluationSettings):
    """What shapes a multi-label Si-Blurry stream, beside the labels, the batch size and the seed."""

    n_sessions: int = Field(5, ge=1, description="sessions of the stream")
    disjoint_class_pct: int = Field(
        50, ge=0, le=100, description="percent of the classes whose anchored images stay in one session"
    )
    blurry_sample_pct: int = Field(
        10, ge=0, le=100, description="percent of the images with a blurry anchor that are moved to other sessions"
    )
    cuts: Literal["stochastic", "even"] = Field(
        "stochastic", description="classes of a session: random numbers of them, or equal ones"
    )
    allow_empty_sessions: bool = Field(False, description="accept sessions without an image")
    order: ClassIds | None = Field(
        None, description="class ids in the order in which they become disjoint, then blurry; null: drawn"
    )

    @field_validator("order", mode="before")
    @classmethod
    def _one_order(cls, value: Any) -> tuple[int, ...] | None:
        return None if value is None else order_setting(value, _OTHER_ORDERS)


def ml_si_blurry_plan(
    targets: Any,
    *,
    n_sessions: int = 5,
    disjoint_class_pct: int = 50,
    blurry_sample_pct: int = 10,
    cuts: str = "stochastic",
    allow_empty_sessions: bool = False,
    order: Sequence[int] | None = None,
    stream_batch: int,
    seed: int = 1,
    class_names: Sequence[str] | None = None,
    dataset_name: str = "",
    known: Any = None,
) -> MultiLabelPlan:
    """Decide the order of a multi-label Si-Blurry stream and the visible labels of its batches.

    Args:
        targets: 0/1 `(samples, classes)` in data set order; images without a label are never presented.
        n_sessions: sessions of the stream, at most as many as classes.
        disjoint_class_pct: percent (0..100) of the classes that are disjoint, rounded down; the others are blurry.
        blurry_sample_pct: percent (0..100) of the images with a blurry anchor that are moved to another session,
            rounded down to whole images.
        cuts: `stochastic` or `even` numbers of classes a session.
        allow_empty_sessions: accept sessions without an image.
        order: all class ids, the disjoint ones first; None: drawn.
        stream_batch: images of a batch; the last batch of a session may be shorter. It decides the visible labels.
        seed: of the plan alone; no global random state is read or changed.
        class_names: one name a class, kept with the plan.
        dataset_name: kept with the plan.
        known: bool `(samples, classes)`, False where a label is neither positive nor negative; None: all are known.

    Raises:
        PlanError: an argument out of range, unusable targets, or settings no stream can satisfy.
    """
    settings = checked(
        MLSiBlurrySettings,
        "multi-label Si-Blurry",
        n_sessions=n_sessions,
        disjoint_class_pct=disjoint_class_pct,
        blurry_sample_pct=blurry_sample_pct,
        cuts=cuts,
        allow_empty_sessions=allow_empty_sessions,
        order=order,
    )
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    stream_batch = whole_number("stream_batch", stream_batch, 1, 2**31)
    labels = label_matrix(targets)
    classes = labels.shape[1]
    names = names_of_classes(class_names, classes)
    given = None if settings.order is None else class_order(settings.order, classes, _OTHER_ORDERS)

    # One generator; the order of the draws below is part of the definition.
    draws = np.random.Generator(np.random.PCG64(seed))
    ranked = draws.permutation(classes) if given is None else np.array(given, dtype=np.int64)
    disjoint = classes * settings.disjoint_class_pct // 100
    kind = np.full(classes, BLURRY, dtype=np.int8)
    kind[ranked[:disjoint]] = DISJOINT
    home = np.empty(classes, dtype=np.int64)
    home[ranked] = _homes(disjoint, classes - disjoint, settings, draws)
    anchors = _anchors(labels, draws)
    session = _sessions(anchors, kind, home, settings, draws)
    sessions = []
    for number in range(settings.n_sessions):
        members = np.flatnonzero(session == number)
        sessions.append(members[draws.permutation(len(members))])
    _refuse_empty(sessions, settings)

    sizes, columns = _visible_columns(sessions, anchors, classes, stream_batch)
    plan = MultiLabelPlan(
        sessions=tuple(sessions),
        block_sizes=sizes,
        block_columns=columns,
        targets=labels,
        known=known,
        drawn_kind=kind,
        drawn_home=home,
        anchors=anchors,
        requested={
            "mode": "ml_si_blurry",
            "n_sessions": settings.n_sessions,
            "disjoint_class_pct": settings.disjoint_class_pct,
            "blurry_sample_pct": settings.blurry_sample_pct,
            "cuts": settings.cuts,
            "allow_empty_sessions": settings.allow_empty_sessions,
            "order": "random" if given is None else given,
            "stream_batch": stream_batch,
            "seed": seed,
        },
        provenance={
            "generator": "scenarios.ml_si_blurry",
            "generator_version": GENERATOR_VERSION,
            "libraries": {"python": platform.python_version(), "numpy": np.__version__},
            "dataset": dataset_name,
            "num_samples": len(labels),
        },
        class_names=names,
    )
    if plan.warnings:
        warnings.warn(f"multi-label Si-Blurry stream: {'; '.join(plan.warnings)}", StreamPlanWarning, stacklevel=2)
    return plan


def _homes(disjoint: int, blurry: int, settings: MLSiBlurrySettings, draws: np.random.Generator) -> IntegerArray:
    """Home session of every class in rank order `(disjoint + blurry,)`; every session is the home of some class.

    Raises:
        PlanError: fewer classes than sessions, or no cuts that give every session a class.
    """
    sessions, classes = settings.n_sessions, disjoint + blurry
    if classes < sessions:
        raise PlanError(
            f"n_sessions={sessions}: {classes} classes cannot give every session a class; choose at most {classes}"
        )
    tries = {"stochastic": _HOME_DRAWS, "even": 1}[settings.cuts]
    for _ in range(tries):
        parts = [_part_homes(size, settings, draws) for size in (disjoint, blurry)]
        home = np.concatenate(parts)
        if len(np.unique(home)) == sessions:
            return home
    raise PlanError(
        f"n_sessions={sessions} with cuts={settings.cuts}: {disjoint} disjoint and {blurry} blurry classes leave a"
        f" session without a class ({tries} tries); choose fewer sessions, another disjoint_class_pct"
        " or cuts=stochastic"
    )


def _part_homes(size: int, settings: MLSiBlurrySettings, draws: np.random.Generator) -> IntegerArray:
    """Home session of `size` classes of one kind in rank order: the number of cut points up to their position."""
    sessions = settings.n_sessions
    cuts = {
        "stochastic": lambda: np.sort(draws.integers(0, size + 1, size=sessions - 1)),
        "even": lambda: size * np.arange(1, sessions) // sessions,
    }[settings.cuts]()
    return np.searchsorted(cuts, np.arange(size), side="right").astype(np.int64)


def _anchors(labels: LabelMatrix, draws: np.random.Generator) -> IntegerArray:
    """One label of every image, uniformly at random, int64 `(samples,)`; -1 without a label.

    Raises:
        PlanError: no image has a label.
    """
    number = labels.sum(axis=1, dtype=np.int64)
    if not number.any():
        raise PlanError("targets: no image has a label, so nothing can be presented; use a data set with labels")
    chosen = np.floor(draws.random(len(labels)) * number).astype(np.int64)
    # The class at which the running count of an image's labels first exceeds the chosen rank.
    anchors = np.argmax(np.cumsum(labels, axis=1, dtype=np.int64) > chosen[:, None], axis=1)
    return np.where(number > 0, anchors, -1)


def _sessions(
    anchors: IntegerArray,
    kind: npt.NDArray[np.int8],
    home: IntegerArray,
    settings: MLSiBlurrySettings,
    draws: np.random.Generator,
) -> IntegerArray:
    """Session of every image `(samples,)`, -1 without an anchor; moved images are uniform over the other sessions."""
    labelled = anchors >= 0
    session = np.where(labelled, home[anchors], -1)
    eligible = np.flatnonzero(labelled & (kind[anchors] == BLURRY))
    share = settings.blurry_sample_pct if settings.n_sessions > 1 else 0
    quota = len(eligible) * share // 100
    moved = np.sort(draws.permutation(eligible)[:quota])
    if quota:
        other = draws.integers(0, settings.n_sessions - 1, size=quota)
        session[moved] = other + (other >= session[moved])
    return session


def _refuse_empty(sessions: Sequence[IntegerArray], settings: MLSiBlurrySettings) -> None:
    empty = [number for number, rows in enumerate(sessions) if not len(rows)]
    if empty and not settings.allow_empty_sessions:
        raise PlanError(
            f"n_sessions={settings.n_sessions}: sessions {empty} have no image; choose fewer sessions, another seed or"
            " allow_empty_sessions=true"
        )


def _visible_columns(
    sessions: Sequence[IntegerArray], anchors: IntegerArray, classes: int, batch: int
) -> tuple[IntegerArray, BoolMatrix]:
    """Size `(batches,)` and visible columns `(batches, classes)` of all batches in stream order.

    Visible are the anchors of the session that have anchored an image of this or an earlier batch of the stream.
    """
    exposed = np.zeros(classes, dtype=np.bool_)
    sizes, columns = [], []
    for rows in sessions:
        vocabulary = np.zeros(classes, dtype=np.bool_)
        vocabulary[anchors[rows]] = True
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            exposed[anchors[part]] = True
            sizes.append(len(part))
            columns.append(vocabulary & exposed)
    return np.array(sizes, dtype=np.int64), np.array(columns, dtype=np.bool_).reshape(-1, classes)
