"""Si-Blurry streams: class ids in, `StreamPlan` out.

Part of the classes is disjoint (all their samples in one session), the rest is blurry (part of their samples is spread
over the other sessions). i-Blurry, disjoint and i.i.d. streams are settings of the same generator:

* i-Blurry N/M: `varying=False, disjoint_class_pct=N, blurry_sample_pct=M`
* disjoint: `disjoint_class_pct=100`, with equally many classes a session if `varying=False`
* i.i.d.: `varying=False, disjoint_class_pct=0, blurry_sample_pct=100, allow_home=True`, or a single session

Source: the stochastic i-Blurry setting that came with MVP (Moon et al., "Online class incremental learning on
stochastic blurry task boundary via mask and visual prompt tuning", ICCV 2023). `mode="exact"` is the definition of this
project: the requested ratios hold up to rounding. `mode="official"` and `mode="misa"` repeat the published samplers bit
for bit.
"""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from scenarios._arguments import LARGEST_SEED, checked, whole_number
from scenarios._exact_sampler import exact_sampler
from scenarios._official_sampler import misa_sampler, official_sampler
from scenarios._sampled_stream import SampledStream
from scenarios.errors import PlanError
from scenarios.plan import ABSENT, StreamPlan, StreamPlanWarning, class_ids, hash_targets
from scenarios.settings import Settings

__all__ = ["SiBlurrySettings", "si_blurry_plan"]

GENERATOR_VERSION = "1"
"""Rises whenever the same arguments give another stream in any mode."""


class SiBlurrySettings(Settings):
    """What shapes a Si-Blurry stream, beside the targets and the seed."""

    n_sessions: int = Field(5, ge=1, description="sessions (tasks) of the stream")
    disjoint_class_pct: int = Field(
        50, ge=0, le=100, description="percent of the classes whose samples stay in one session"
    )
    blurry_sample_pct: int = Field(
        10, ge=0, le=100, description="percent of the blurry classes' samples moved to other sessions"
    )
    mode: Literal["exact", "official", "misa"] = Field(
        "exact", description="exact: the ratios hold; official, misa: the published samplers, bit for bit"
    )
    varying: bool = Field(True, description="random session sizes (Si-Blurry); false: equal ones (i-Blurry)")
    allow_empty_sessions: bool = Field(False, description="exact mode: accept sessions without a sample")
    allow_home: bool = Field(False, description="exact mode: moved samples may return to their home session")


Sampler = Callable[[npt.NDArray[np.int64], int, SiBlurrySettings, int], SampledStream]

_SAMPLERS: dict[str, Sampler] = {"exact": exact_sampler, "official": official_sampler, "misa": misa_sampler}


def si_blurry_plan(
    targets: Any,
    *,
    num_classes: int | None = None,
    n_sessions: int = 5,
    disjoint_class_pct: int = 50,
    blurry_sample_pct: int = 10,
    seed: int = 1,
    mode: str = "exact",
    varying: bool = True,
    allow_empty_sessions: bool = False,
    allow_home: bool = False,
    class_names: Sequence[str] | None = None,
    dataset_name: str = "",
) -> StreamPlan:
    """Decide the order of a Si-Blurry stream.

    Args:
        targets: class ids `(samples,)` in data set order: list, numpy array or CPU tensor of whole numbers.
        num_classes: classes of the data set, absent ones included; None: the number of `class_names`, or else the
            largest class id plus one.
        n_sessions: sessions of the stream.
        disjoint_class_pct: percent (0..100) of the classes that belong to a single session.
        blurry_sample_pct: percent (0..100) of the samples of all other classes that are moved to other sessions.
        seed: of the plan alone; no global random state is read or changed.
        mode: `exact` (ratios hold up to rounding), `official` or `misa` (published samplers, which may lose classes and
            samples; see `StreamPlan.warnings`).
        varying: False gives every session as many classes, and spreads the moved samples evenly (i-Blurry).
        allow_empty_sessions: exact mode: accept sessions without a sample. The other modes always do, and warn.
        allow_home: exact mode: a moved sample may fall back into its home session, as in the published sampler; the
            blur is then lower than requested.
        class_names: one name a class, kept with the plan.
        dataset_name: kept with the plan.

    Raises:
        PlanError: an argument out of range, unusable targets, or settings no stream can satisfy.
    """
    settings = checked(
        SiBlurrySettings,
        "Si-Blurry",
        n_sessions=n_sessions,
        disjoint_class_pct=disjoint_class_pct,
        blurry_sample_pct=blurry_sample_pct,
        mode=mode,
        varying=varying,
        allow_empty_sessions=allow_empty_sessions,
        allow_home=allow_home,
    )
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    labels = class_ids(targets)
    names = None if class_names is None else tuple(str(name) for name in class_names)
    classes = _number_of_classes(labels, num_classes, names)

    stream = _SAMPLERS[settings.mode](labels, classes, settings, seed)
    kind, home = _without_absent(stream, labels)
    plan = StreamPlan(
        sessions=stream.sessions,
        class_kind=kind,
        home_session=home,
        targets=labels,
        requested=_requested(settings, seed),
        provenance=_provenance(stream, labels, dataset_name),
        class_names=names,
    )
    if plan.warnings:
        warnings.warn(f"{settings.mode} stream: {'; '.join(plan.warnings)}", StreamPlanWarning, stacklevel=2)
    return plan


def _number_of_classes(labels: npt.NDArray[np.int64], num_classes: int | None, names: tuple[str, ...] | None) -> int:
    known = int(labels.max()) + 1 if names is None else len(names)
    classes = max(known, 1) if num_classes is None else whole_number("num_classes", num_classes, 1, sys.maxsize)
    if names is not None and len(names) != classes:
        raise PlanError(f"class_names has {len(names)} names for num_classes={classes}: give one name a class")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        raise PlanError(
            f"targets: sample {outside[0]} has class id {labels[outside[0]]}, outside 0..{classes - 1}"
            f" ({outside.size} such samples): renumber the classes or raise num_classes"
        )
    return classes


def _without_absent(
    stream: SampledStream, labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """Class roles with every class that has no sample in the stream marked absent, whatever role it was drawn for."""
    present = np.zeros(len(stream.class_kind), dtype=bool)
    for session in stream.sessions:
        present[labels[session]] = True
    kind = np.where(present, stream.class_kind, ABSENT).astype(np.int8)
    return kind, np.where(present, stream.home_session, -1)


def _requested(settings: SiBlurrySettings, seed: int) -> dict[str, Any]:
    requested = settings.model_dump() | {"seed": seed}
    if settings.varying:
        del requested["varying"]  # the Si-Blurry form; only the other one is recorded
    return requested


def _provenance(stream: SampledStream, labels: npt.NDArray[np.int64], dataset_name: str) -> dict[str, Any]:
    return {
        "generator": "scenarios.si_blurry",
        "generator_version": GENERATOR_VERSION,
        "libraries": {"python": platform.python_version(), "numpy": np.__version__} | stream.libraries,
        "dataset": dataset_name,
        "num_samples": len(labels),
        "targets_sha256": hash_targets(labels),
        "pooled_samples": stream.pooled_samples,
    }
