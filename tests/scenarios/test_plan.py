"""`StreamPlan`: identity, measures, files. The measures are checked against loops over single samples."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import struct
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios import _plan_files
from scenarios.errors import PlanError
from scenarios.plan import ABSENT, BLURRY, DISJOINT, StreamPlan, hash_targets
from scenarios.si_blurry import si_blurry_plan

pytestmark = pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning")

REQUESTED = {
    "disjoint_class_pct": 50,
    "blurry_sample_pct": 25,
    "n_sessions": 2,
    "seed": 3,
    "mode": "exact",
    "allow_empty_sessions": False,
    "allow_home": False,
}
# Class 0 is disjoint, class 1 blurry with one of four samples away from home, class 2 has no sample.
PARTS = {
    "sessions": (np.array([5, 0, 2, 1]), np.array([4, 3, 6])),
    "class_kind": np.array([DISJOINT, BLURRY, ABSENT]),
    "home_session": np.array([1, 0, -1]),
    "targets": np.array([1, 1, 1, 0, 0, 1, 0]),
    "requested": REQUESTED,
}


def small_plan(**changes) -> StreamPlan:
    return StreamPlan(**(PARTS | changes))


def away_plan(**changes) -> StreamPlan:
    """The small plan with sample 5 (class 1) moved to session 1."""
    return small_plan(sessions=(np.array([0, 2, 1]), np.array([4, 3, 6, 5])), **changes)


def plans():
    """Plans of every mode over unbalanced classes, with absent ones."""

    @st.composite
    def draw_plan(draw):
        mode = draw(st.sampled_from(["exact", "official", "misa"]))
        exact = mode == "exact"
        classes = draw(st.integers(1, 9))
        targets = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=60))
        return si_blurry_plan(
            targets,
            num_classes=classes,
            n_sessions=draw(st.integers(1, 6)),
            disjoint_class_pct=draw(st.integers(0, 100)),
            blurry_sample_pct=draw(st.integers(0, 100)),
            seed=draw(st.integers(0, 2**64 - 1)),
            mode=mode,
            varying=draw(st.booleans()) if mode != "misa" else True,
            allow_empty_sessions=exact,
            allow_home=exact and draw(st.booleans()),
        )

    return draw_plan()


def test_hash_follows_its_definition():
    """Recomputed from the wording: canonical header, then length and indices of each session as little-endian int64."""
    targets_sha256 = hashlib.sha256(struct.pack("<7q", 1, 1, 1, 0, 0, 1, 0)).hexdigest()
    header = (
        '{"class_kind":[0,1,2],"format":1,"home_session":[1,0,-1],"num_classes":3,"num_samples":7,"requested":'
        '{"allow_empty_sessions":0,"allow_home":0,"blurry_sample_pct":25,"disjoint_class_pct":50,"mode":"exact",'
        f'"n_sessions":2,"seed":3}},"targets_sha256":"{targets_sha256}"}}'
    )
    body = struct.pack("<5q", 4, 5, 0, 2, 1) + struct.pack("<4q", 3, 4, 3, 6)
    plan = small_plan()
    assert plan.targets_sha256 == targets_sha256 == hash_targets([1, 1, 1, 0, 0, 1, 0])
    assert plan.sha256 == hashlib.sha256(header.encode() + body).hexdigest()


@given(plans())
@settings(deadline=None, max_examples=40)
def test_hash_of_generated_plans(plan):
    header = {
        "format": 1,
        "num_classes": plan.num_classes,
        "num_samples": plan.num_samples,
        "targets_sha256": plan.targets_sha256,
        "class_kind": [int(kind) for kind in plan.class_kind],
        "home_session": [int(home) for home in plan.home_session],
        "requested": {key: value if isinstance(value, str) else int(value) for key, value in plan.requested.items()},
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode())
    for session in plan.sessions:
        digest.update(struct.pack("<q", len(session)) + struct.pack(f"<{len(session)}q", *session.tolist()))
    assert plan.sha256 == digest.hexdigest()


def test_hash_ignores_names_and_provenance_and_nothing_else():
    plan = small_plan()
    assert small_plan(class_names=("a", "b", "c"), provenance={"dataset": "mine"}).sha256 == plan.sha256
    others = [
        small_plan(sessions=(np.array([0, 5, 2, 1]), np.array([4, 3, 6]))),
        small_plan(requested=REQUESTED | {"seed": 4}),
        small_plan(requested=REQUESTED | {"varying": False}),
        small_plan(requested=REQUESTED | {"allow_home": True}),
        small_plan(class_kind=np.array([DISJOINT, DISJOINT, ABSENT])),
        small_plan(home_session=np.array([1, 1, -1]), class_kind=np.array([DISJOINT, BLURRY, ABSENT])),
    ]
    assert len({plan.sha256, *(other.sha256 for other in others)}) == 1 + len(others)
    assert plan == small_plan()
    assert hash(plan) == hash(small_plan())
    assert plan != others[0]
    assert plan != "plan"


def test_a_plan_cannot_be_changed():
    sessions = (np.array([5, 0, 2, 1]), np.array([4, 3, 6]))
    targets = PARTS["targets"].copy()
    plan = small_plan(sessions=sessions, targets=targets)
    sessions[0][:] = 0
    targets[:] = 0
    assert plan == small_plan()
    assert plan.order.tolist() == [5, 0, 2, 1, 4, 3, 6]
    for array in (*plan.sessions, plan.order, plan.session_ends, plan.class_kind, plan.home_session, plan.targets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(FrozenInstanceError):
        plan.sha256 = "0"
    for twin in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert twin == plan
        with pytest.raises(ValueError, match="read-only"):
            twin.order[0] = 1


def test_measures_of_a_plan_counted_by_hand():
    plan = away_plan(provenance={"pooled_samples": 2})
    assert plan.counts.tolist() == [[0, 3, 0], [3, 1, 0]]
    assert plan.first_seen.tolist() == [3, 0, 7]
    assert plan.session_ends.tolist() == [3, 7]
    assert plan.effective == {
        "disjoint_ratio": 0.5,
        "disjoint_classes": 1,
        "blurry_classes": 1,
        "blur": 0.25,
        "blur_class_min": 0.25,
        "blur_class_mean": 0.25,
        "blur_class_max": 0.25,
        "pooled_ratio": 0.5,
        "class_coverage": 1.0,
        "sessions_per_blurry_class": 2.0,
        "dropped_classes": 0,
        "dropped_samples": 0,
        "empty_sessions": 0,
        "session_sizes": [3, 4],
    }
    assert plan.warnings == ()


@given(plans())
@settings(deadline=None, max_examples=80)
def test_measures_against_loops_over_single_samples(plan):
    labels = plan.targets.tolist()
    where = {sample: t for t, session in enumerate(plan.sessions) for sample in session.tolist()}
    blurry = [c for c in range(plan.num_classes) if plan.class_kind[c] == BLURRY]
    disjoint = [c for c in range(plan.num_classes) if plan.class_kind[c] == DISJOINT]
    samples = {c: [i for i, label in enumerate(labels) if label == c] for c in range(plan.num_classes)}
    away = {c: [i for i in samples[c] if i in where and where[i] != plan.home_session[c]] for c in blurry}
    shares = [len(away[c]) / len(samples[c]) for c in blurry]
    visited = [len({where[i] for i in samples[c] if i in where}) for c in blurry]
    effective = plan.effective

    assert effective["disjoint_classes"] == len(disjoint)
    assert effective["disjoint_ratio"] == pytest.approx(len(disjoint) / max(1, len(disjoint) + len(blurry)))
    assert effective["blur"] == pytest.approx(
        sum(map(len, away.values())) / max(1, sum(len(samples[c]) for c in blurry))
    )
    assert effective["blur_class_min"] == pytest.approx(min(shares, default=0))
    assert effective["blur_class_max"] == pytest.approx(max(shares, default=0))
    assert effective["blur_class_mean"] == pytest.approx(sum(shares) / max(1, len(shares)))
    assert effective["class_coverage"] == pytest.approx(sum(share > 0 for share in shares) / max(1, len(shares)))
    assert effective["sessions_per_blurry_class"] == pytest.approx(sum(visited) / max(1, len(visited)))
    shown = {labels[i] for i in where}
    assert effective["dropped_classes"] == len(set(labels) - shown)
    assert effective["dropped_samples"] == len(labels) - len(where)
    assert effective["session_sizes"] == [len(session) for session in plan.sessions]
    assert effective["empty_sessions"] == sum(len(session) == 0 for session in plan.sessions)
    stream = [i for session in plan.sessions for i in session.tolist()]
    for c in range(plan.num_classes):
        positions = [position for position, i in enumerate(stream) if labels[i] == c]
        assert plan.first_seen[c] == min(positions, default=len(labels))
        assert plan.counts[:, c].tolist() == [sum(labels[i] == c for i in s.tolist()) for s in plan.sessions]
    json.dumps(effective, allow_nan=False)


def test_description_shows_requested_beside_effective():
    text = "\n".join(away_plan().describe())
    for part in ("exact, seed 3", "7 of 7 samples", "50.0% (requested 50 %)", "25.0% (requested 25 %)", "3 4 samples"):
        assert part in text
    assert "warning" not in text
    lossy = "\n".join(small_plan(requested=REQUESTED | {"mode": "official"}).describe())
    assert "warning   0.0% of the samples of blurry classes are displaced, not 25 %" in lossy
    many = si_blurry_plan(np.arange(40) % 20, n_sessions=20, disjoint_class_pct=100)
    assert "2 to 2 samples, median 2" in "\n".join(many.describe())


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"sessions": (np.array([5, 0, 2, 1]), np.array([4, 3, 5]))}, "presented twice"),
        ({"sessions": (np.array([5, 0, 2, 1]), np.array([4, 3, 7]))}, "outside 0..6"),
        ({"sessions": (np.array([5, 0, 2, 1, 4, 3, 6]), np.array([], dtype=np.int64))}, "empty"),
        ({"sessions": (np.array([5, 0, 2, 1, 4, 3, 6]),)}, "n_sessions"),
        ({"sessions": (np.array([5, 0, 2, 1, 4]), np.array([3, 6]))}, "appear outside their home"),
        ({"class_kind": np.array([DISJOINT, BLURRY, BLURRY])}, "absent"),
        ({"class_kind": np.array([DISJOINT, ABSENT, ABSENT])}, "absent"),
        ({"class_kind": np.array([DISJOINT, 7, ABSENT])}, "0, 1, 2"),
        ({"class_kind": np.array([DISJOINT, BLURRY])}, "one value a class"),
        ({"home_session": np.array([1, 2, -1])}, "home sessions"),
        ({"home_session": np.array([1, 0, 0])}, "home sessions"),
        ({"targets": np.array([1, 1, 1, 0, 0, 1, 3])}, "class ids 0 to 3"),
        ({"requested": {"seed": 1}}, "requested must hold"),
        ({"requested": REQUESTED | {"varying": True}}, "varying"),
        ({"class_names": ("a", "b")}, "3 names"),
    ],
)
def test_contradictions_are_refused(changes, reason):
    with pytest.raises(PlanError, match=reason):
        small_plan(**changes)


@given(plans())
@settings(deadline=None, max_examples=15)
def test_save_and_load_give_the_same_plan(tmp_path_factory, plan):
    folder = plan.save(tmp_path_factory.mktemp("plan") / "new" / "folder")
    for path in (folder, folder / "plan.npz", folder / "plan.json"):
        loaded = StreamPlan.load(path)
        assert loaded == plan
        assert loaded.requested == plan.requested
        assert all(type(loaded.requested[key]) is type(plan.requested[key]) for key in plan.requested)
        assert loaded.effective == plan.effective
        assert loaded.provenance == plan.provenance
        assert loaded.warnings == plan.warnings
        assert all(np.array_equal(a, b) for a, b in zip(loaded.sessions, plan.sessions, strict=True))
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "plan.npz"]


def test_saved_files_can_be_read_without_this_package(tmp_path):
    plan = away_plan(class_names=("cat", "dög", "owl"))
    plan.save(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert content["sha256"] == plan.sha256
    assert content["header"] == plan.header
    assert content["effective"]["blur"] == 0.25
    assert content["class_names"] == ["cat", "dög", "owl"]
    assert StreamPlan.load(tmp_path).class_names == ("cat", "dög", "owl")
    with np.load(tmp_path / "plan.npz", allow_pickle=False) as arrays:
        assert arrays["indices"].tolist() == [0, 2, 1, 4, 3, 6, 5]
        assert arrays["offsets"].tolist() == [0, 3, 7]
        assert arrays["class_kind"].tolist() == [0, 1, 2]
        assert arrays["home_session"].tolist() == [1, 0, -1]


def rewrite_arrays(folder, **changes):
    with np.load(folder / "plan.npz") as arrays:
        content = {name: arrays[name] for name in arrays.files}
    np.savez(folder / "plan.npz", **(content | changes))


def rewrite_header(folder, **changes):
    content = json.loads((folder / "plan.json").read_text())
    content["header"] |= changes
    (folder / "plan.json").write_text(json.dumps(content))


DAMAGE = {
    "order changed": (lambda f: rewrite_arrays(f, indices=np.array([5, 0, 1, 2, 4, 3, 6])), "do not match"),
    "offsets changed": (lambda f: rewrite_arrays(f, offsets=np.array([0, 4, 6])), "do not match|cannot be read"),
    "targets changed": (lambda f: rewrite_arrays(f, targets=np.array([1, 1, 1, 0, 0, 0, 0])), "plan"),
    "home changed": (lambda f: rewrite_arrays(f, home_session=np.array([1, 1, -1])), "do not match"),
    "array with objects": (lambda f: rewrite_arrays(f, indices=np.array([{}], dtype=object)), "cannot be read"),
    "array file cut": (lambda f: (f / "plan.npz").write_bytes((f / "plan.npz").read_bytes()[:80]), "cannot be read"),
    "array file missing": (lambda f: (f / "plan.npz").unlink(), "does not exist"),
    "content missing": (lambda f: (f / "plan.json").unlink(), "does not exist"),
    "content empty": (lambda f: (f / "plan.json").write_text(""), "cannot be read"),
    "header changed": (lambda f: rewrite_header(f, num_samples=8), "do not match"),
    "request changed": (lambda f: rewrite_header(f, requested=REQUESTED | {"seed": 9}), "do not match"),
    "newer format": (lambda f: rewrite_header(f, format=2), "format 2"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_in_one_line(tmp_path, damage):
    apply, reason = DAMAGE[damage]
    small_plan().save(tmp_path)
    apply(tmp_path)
    with pytest.raises(PlanError, match=reason) as refusal:
        StreamPlan.load(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_plan_is_refused(tmp_path):
    with pytest.raises(PlanError, match="does not exist"):
        StreamPlan.load(tmp_path / "nowhere")


@pytest.mark.parametrize("step", ["write", "rename"])
def test_an_interrupted_write_leaves_the_old_plan(tmp_path, monkeypatch, step):
    small_plan().save(tmp_path)

    def fail(*places, **arrays):
        if arrays:
            places[0].write(b"half")
        raise OSError("no space left")

    module, name = {"write": (_plan_files.np, "savez_compressed"), "rename": (os, "replace")}[step]
    monkeypatch.setattr(module, name, fail)
    with pytest.raises(OSError, match="no space left"):
        away_plan().save(tmp_path)
    assert StreamPlan.load(tmp_path) == small_plan()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.npz"]


def test_other_targets_are_refused():
    plan = small_plan()
    plan.check_targets([1, 1, 1, 0, 0, 1, 0])
    with pytest.raises(PlanError, match="7 samples but the data set has 6"):
        plan.check_targets(PARTS["targets"][:6])
    with pytest.raises(PlanError, match="sample 6 has class 2, the plan expects 0"):
        plan.check_targets([1, 1, 1, 0, 0, 1, 2])
