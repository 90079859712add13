"""What a stream really is, measured from the finished plan: ratios, coverage, drops, and the words that report them.

Nothing here reads a setting and repeats it: a generator that promises 10 % blur and delivers 4 % is reported as 4 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scenarios.plan import StreamPlan

DISJOINT, BLURRY, ABSENT = 0, 1, 2
"""Values of `StreamPlan.class_kind`."""

_LISTED_SESSIONS = 12  # more sizes than these do not fit on a terminal line


def class_counts(plan: StreamPlan) -> npt.NDArray[np.int64]:
    """Samples of every class in every session, int64 `(sessions, classes)`."""
    sizes = np.diff(plan.session_ends, prepend=0)
    session = np.repeat(np.arange(len(sizes)), sizes)
    cell = session * plan.num_classes + plan.targets[plan.order]
    counts = np.bincount(cell, minlength=len(sizes) * plan.num_classes)
    return counts.reshape(len(sizes), plan.num_classes)


def first_positions(plan: StreamPlan) -> npt.NDArray[np.int64]:
    """Stream position of the first sample of every class, int64 `(classes,)`; `num_samples` where none comes."""
    first = np.full(plan.num_classes, plan.num_samples, dtype=np.int64)
    backwards = np.arange(len(plan.order) - 1, -1, -1)
    first[plan.targets[plan.order[backwards]]] = backwards  # the last assignment, the earliest position, stays
    return first


def displaced_samples(plan: StreamPlan) -> npt.NDArray[np.int64]:
    """Samples of every class that appear outside its home session, int64 `(classes,)`."""
    shown = plan.counts.sum(axis=0)
    present = np.flatnonzero(plan.class_kind != ABSENT)
    displaced = np.zeros(plan.num_classes, dtype=np.int64)
    displaced[present] = shown[present] - plan.counts[plan.home_session[present], present]
    return displaced


def effective_measures(plan: StreamPlan) -> dict[str, Any]:
    """The realised stream in numbers (ratios are fractions of 1, an empty ratio is 0).

    * `disjoint_ratio`: disjoint classes / classes present in the plan; `disjoint_classes`, `blurry_classes`: counts.
    * `blur`: blurry-class samples outside their home session / samples of blurry classes in the data set, lost ones
      included; `blur_class_min`, `blur_class_mean`, `blur_class_max`: the same within single blurry classes.
    * `pooled_ratio`: samples the generator took from their home for redistribution / samples of blurry classes;
      None if the generator did not tell.
    * `class_coverage`: blurry classes with at least one displaced sample / blurry classes.
    * `sessions_per_blurry_class`: mean number of sessions in which a blurry class appears.
    * `dropped_classes`, `dropped_samples`: in the data set but not in the plan.
    * `empty_sessions`, `session_sizes`.
    """
    sizes = np.bincount(plan.targets, minlength=plan.num_classes)
    blurry = np.flatnonzero(plan.class_kind == BLURRY)
    disjoint_classes = int((plan.class_kind == DISJOINT).sum())
    blurry_samples = int(sizes[blurry].sum())
    displaced = displaced_samples(plan)[blurry]
    share = displaced / sizes[blurry]
    session_sizes = np.diff(plan.session_ends, prepend=0)
    pooled = plan.provenance.get("pooled_samples")
    if not isinstance(pooled, int) or not 0 <= pooled <= len(plan.targets):  # the hash of a plan does not cover it
        pooled = None
    return {
        "disjoint_ratio": ratio(disjoint_classes, disjoint_classes + blurry.size),
        "disjoint_classes": disjoint_classes,
        "blurry_classes": int(blurry.size),
        "blur": ratio(displaced.sum(), blurry_samples),
        "blur_class_min": float(share.min(initial=1.0)) if blurry.size else 0.0,
        "blur_class_mean": float(share.mean()) if blurry.size else 0.0,
        "blur_class_max": float(share.max(initial=0.0)),
        "pooled_ratio": None if pooled is None else ratio(pooled, blurry_samples),
        "class_coverage": ratio((displaced > 0).sum(), blurry.size),
        "sessions_per_blurry_class": ratio((plan.counts[:, blurry] > 0).sum(), blurry.size),
        "dropped_classes": int(((sizes > 0) & (plan.class_kind == ABSENT)).sum()),
        "dropped_samples": plan.num_samples - len(plan.order),
        "empty_sessions": int((session_sizes == 0).sum()),
        "session_sizes": session_sizes.tolist(),
    }


def plan_warnings(plan: StreamPlan) -> tuple[str, ...]:
    """One sentence for every way in which the measured stream falls short of the requested one."""
    effective, requested = plan.effective, plan.requested
    found: list[str] = []
    if effective["dropped_classes"]:
        found.append(
            f"{effective['dropped_classes']} of {(np.bincount(plan.targets) > 0).sum()} classes never appear"
            " (class counts are rounded down to multiples of n_sessions)"
        )
    if effective["dropped_samples"]:
        found.append(f"{effective['dropped_samples']} of {plan.num_samples} samples never appear")
    if effective["empty_sessions"]:
        found.append(f"{effective['empty_sessions']} of {len(plan.sessions)} sessions are empty")
    present = effective["disjoint_classes"] + effective["blurry_classes"]
    if _differs(effective["disjoint_ratio"], requested["disjoint_class_pct"], present):
        found.append(
            f"{effective['disjoint_ratio']:.1%} of the classes are disjoint, not {requested['disjoint_class_pct']} %"
        )
    # One session has no elsewhere, and allow_home asks for less blur: neither is a shortfall.
    if len(plan.sessions) > 1 and not (requested["mode"] == "exact" and requested["allow_home"]):
        found += _blur_warnings(plan)
    return tuple(found)


def _blur_warnings(plan: StreamPlan) -> list[str]:
    effective, blurry_pct = plan.effective, plan.requested["blurry_sample_pct"]
    sizes = np.bincount(plan.targets, minlength=plan.num_classes)
    blurry = plan.class_kind == BLURRY
    found = []
    if _differs(effective["blur"], blurry_pct, int(sizes[blurry].sum())):
        found.append(f"{effective['blur']:.1%} of the samples of blurry classes are displaced, not {blurry_pct} %")
    unblurred = int((blurry & (blurry_pct * sizes >= 100) & (displaced_samples(plan) == 0)).sum())
    if unblurred:
        found.append(f"{unblurred} of {blurry.sum()} blurry classes have no sample outside their home session")
    return found


def describe_plan(plan: StreamPlan) -> list[str]:
    """Terse lines for a terminal: what was requested, what the stream really is, and every warning."""
    requested, effective = plan.requested, plan.effective
    absent = int((plan.class_kind == ABSENT).sum())
    varying = "" if requested.get("varying", True) else ", equal sessions"
    return [
        f"stream    {requested['mode']}{varying}, seed {requested['seed']}: {len(plan.order)} of {plan.num_samples}"
        f" samples, {len(plan.sessions)} sessions, sha256 {plan.sha256[:12]}",
        f"classes   disjoint {effective['disjoint_ratio']:.1%} (requested {requested['disjoint_class_pct']} %):"
        f" {effective['disjoint_classes']} disjoint, {effective['blurry_classes']} blurry, {absent} absent",
        f"blur      {effective['blur']:.1%} (requested {requested['blurry_sample_pct']} %), in a class"
        f" {effective['blur_class_min']:.1%} to {effective['blur_class_max']:.1%}",
        f"coverage  {effective['class_coverage']:.1%} of the blurry classes leave home,"
        f" {effective['sessions_per_blurry_class']:.2f} sessions each",
        f"dropped   {effective['dropped_classes']} classes, {effective['dropped_samples']} samples",
        f"sessions  {sizes_in_words(effective['session_sizes'])}; {effective['empty_sessions']} empty",
        *(f"warning   {text}" for text in plan.warnings),
    ]


def sizes_in_words(sizes: list[int]) -> str:
    """Session sizes for a terminal line: each of them, or their range where there are many."""
    if len(sizes) <= _LISTED_SESSIONS:
        return " ".join(map(str, sizes)) + " samples"
    return f"{min(sizes)} to {max(sizes)} samples, median {int(np.median(sizes))}"


def ratio(part: float, whole: float) -> float:
    """`part / whole`, 0 where there is no whole."""
    return float(part / whole) if whole else 0.0


def _differs(ratio: float, requested_pct: int, whole: int) -> bool:
    """Whether `ratio` is further from the percentage than rounding to one of `whole` parts explains."""
    return bool(whole) and abs(ratio - requested_pct / 100) > 1 / (2 * whole) + 1e-9
