"""What a multi-label stream really is, measured from the finished plan, and the words that report it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios._plan_measures import ABSENT, BLURRY, DISJOINT, ratio, sizes_in_words

if TYPE_CHECKING:
    from scenarios.multi_label_plan import MultiLabelPlan

_LISTED_CLASSES = 8  # more names than these do not fit on a terminal line


def effective_measures(plan: MultiLabelPlan) -> dict[str, Any]:
    """The realised stream in numbers (ratios are fractions of 1, an empty ratio is 0).

    * `presentations`, `distinct_samples`: an image with labels of several tasks is presented in each of them.
    * `dropped_samples`: in the data set but never presented, because they have no label.
    * `missing_label_rate`: 1 - visible positives / positives, over presentations.
    * `labels_per_sample`: mean number of labels of a distinct presented image.
    * `disjoint_classes`, `blurry_classes`, `absent_classes`: counts by `class_kind`.
    * `empty_sessions`, `session_sizes`, `seen_classes` (after each session).
    * with anchors, also those of `blur_measures`.
    """
    sizes = np.diff(plan.session_ends, prepend=0)
    distinct = np.unique(plan.order)
    positives = int(plan.targets[plan.order].sum(dtype=np.int64))
    measures = {
        "presentations": len(plan.order),
        "distinct_samples": len(distinct),
        "dropped_samples": plan.num_samples - len(distinct),
        "missing_label_rate": 1 - ratio(plan.counts.sum(), positives) if positives else 0.0,
        "labels_per_sample": ratio(plan.targets[distinct].sum(dtype=np.int64), len(distinct)),
        "disjoint_classes": int((plan.class_kind == DISJOINT).sum()),
        "blurry_classes": int((plan.class_kind == BLURRY).sum()),
        "absent_classes": int((plan.class_kind == ABSENT).sum()),
        "empty_sessions": int((sizes == 0).sum()),
        "session_sizes": sizes.tolist(),
        "seen_classes": plan.seen_after.sum(axis=1).tolist(),
    }
    return measures if plan.anchors is None else measures | blur_measures(plan)


def blur_measures(plan: MultiLabelPlan) -> dict[str, float]:
    """How far labels stray from the home sessions of their classes (fractions of 1).

    * `anchor_blur`: images served away from the home session of their anchor / images with a blurry anchor.
    * `presence_blur_disjoint`, `presence_blur_blurry`: 1 - positives served in the home session of their class / all
      served positives, averaged over the disjoint or the blurry classes that have one. Large without any moved image,
      because images carry labels of other classes along.
    * `visible_blur_disjoint`, `visible_blur_blurry`: the same over visible positives.
    """
    assert plan.anchors is not None
    session_of = np.repeat(np.arange(len(plan.sessions)), np.diff(plan.session_ends, prepend=0))
    anchors = plan.anchors[plan.order]
    eligible = plan.drawn_kind[anchors] == BLURRY
    moved = session_of[eligible] != plan.drawn_home[anchors[eligible]]
    present = np.array([plan.targets[rows].sum(axis=0, dtype=np.int64) for rows in plan.sessions])
    measures = {"anchor_blur": float(moved.mean()) if moved.size else 0.0}
    for name, counts in (("presence_blur", present), ("visible_blur", plan.counts)):
        total = counts.sum(axis=0)
        at_home = counts[plan.drawn_home, np.arange(plan.num_classes)]
        for kind, kind_name in ((DISJOINT, "disjoint"), (BLURRY, "blurry")):
            chosen = (plan.drawn_kind == kind) & (total > 0)
            strayed = 1 - at_home[chosen] / total[chosen]
            measures[f"{name}_{kind_name}"] = float(strayed.mean()) if strayed.size else 0.0
    return measures


def plan_warnings(plan: MultiLabelPlan) -> tuple[str, ...]:
    """One sentence for every way in which the stream leaves out what the data set holds."""
    effective = plan.effective
    found: list[str] = []
    if effective["dropped_samples"]:
        found.append(
            f"{effective['dropped_samples']} of {plan.num_samples} samples have no label and are never presented"
        )
    absent = np.flatnonzero(plan.class_kind == ABSENT).tolist()
    if absent:
        found.append(f"{len(absent)} of {plan.num_classes} classes have no visible label: {_in_words(plan, absent)}")
    if effective["empty_sessions"]:
        found.append(f"{effective['empty_sessions']} of {len(plan.sessions)} sessions are empty")
    return tuple(found)


def describe_plan(plan: MultiLabelPlan) -> list[str]:
    """Terse lines for a terminal: what was requested, what the stream really is, and every warning."""
    effective, requested = plan.effective, plan.requested
    kinds = _task_lines if plan.anchors is None else _blur_lines
    return [
        f"stream    {requested['mode']}, seed {requested['seed']}: {effective['presentations']} presentations of"
        f" {effective['distinct_samples']} distinct samples ({plan.num_samples} in the data set),"
        f" {len(plan.sessions)} sessions, sha256 {plan.sha256[:12]}",
        *kinds(plan),
        f"labels    {effective['labels_per_sample']:.2f} a sample,"
        f" {effective['missing_label_rate']:.1%} of the presented ones are hidden",
        f"dropped   {effective['absent_classes']} classes, {effective['dropped_samples']} samples",
        f"sessions  {sizes_in_words(effective['session_sizes'])}; {effective['empty_sessions']} empty",
        *(f"warning   {text}" for text in plan.warnings),
    ]


def _task_lines(plan: MultiLabelPlan) -> list[str]:
    sizes = np.diff(plan.effective["seen_classes"], prepend=0).tolist()
    order = plan.requested["order"]
    name = order if isinstance(order, str) else "given"
    return [f"classes   tasks of {' '.join(map(str, sizes))} classes, {name} order"]


def _blur_lines(plan: MultiLabelPlan) -> list[str]:
    effective, requested = plan.effective, plan.requested
    return [
        f"classes   {effective['disjoint_classes']} disjoint (requested {requested['disjoint_class_pct']} %),"
        f" {effective['blurry_classes']} blurry, {effective['absent_classes']} absent",
        f"blur      anchor {effective['anchor_blur']:.1%} (requested {requested['blurry_sample_pct']} %); visible"
        f" {effective['visible_blur_disjoint']:.1%} disjoint, {effective['visible_blur_blurry']:.1%} blurry",
        f"presence  {effective['presence_blur_disjoint']:.1%} disjoint, {effective['presence_blur_blurry']:.1%} blurry"
        " of the labels are served away from home",
        "          (large even where no image is moved: labels occur together, which blurs by itself)",
    ]


def _in_words(plan: MultiLabelPlan, classes: list[int]) -> str:
    names = [str(one) if plan.class_names is None else plan.class_names[one] for one in classes]
    more = len(names) - _LISTED_CLASSES
    return ", ".join(names[:_LISTED_CLASSES]) + (f" and {more} more" if more > 0 else "")
