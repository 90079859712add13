"""`MultiLabelPlan`: identity, contradictions, files."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import struct
import subprocess
import sys
from dataclasses import FrozenInstanceError
from itertools import chain

import numpy as np
import pytest

from scenarios.errors import PlanError
from scenarios.ml_si_blurry import ml_si_blurry_plan
from scenarios.mlcil import mlcil_plan
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.plan import StreamPlan
from scenarios.plans import load_plan
from scenarios.si_blurry import si_blurry_plan

pytestmark = pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning")

# Two sessions, two blocks in the first; sample 2 has no label.
PARTS = {
    "sessions": (np.array([3, 0, 1]), np.array([4])),
    "block_sizes": np.array([2, 1, 1]),
    "block_columns": np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=bool),
    "targets": np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1]], dtype=np.uint8),
    "drawn_kind": np.array([0, 1, 0]),
    "drawn_home": np.array([0, 0, 1]),
    "anchors": np.array([0, 1, -1, 0, 2]),
    "requested": {"mode": "ml_si_blurry", "seed": 3, "n_sessions": 2, "stream_batch": 2, "disjoint_class_pct": 66}
    | {"blurry_sample_pct": 0},
}
LABELS = (np.random.default_rng(3).random((60, 6)) < 0.3).astype(np.uint8)
LABELS[~LABELS.any(axis=1), 5] = 1


def small_plan(**changes) -> MultiLabelPlan:
    return MultiLabelPlan(**(PARTS | changes))


def plans():
    known = np.ones_like(LABELS, dtype=bool)
    known[LABELS == 0] = np.random.default_rng(4).random(int((LABELS == 0).sum())) < 0.8
    return {
        "small": small_plan(),
        "mlcil": mlcil_plan(LABELS, order=[5, 4, 3, 2, 1, 0], class_names=tuple("fedcba")),
        "known": mlcil_plan(LABELS, known=known),
        "blurry": ml_si_blurry_plan(LABELS, n_sessions=3, stream_batch=4, class_names=[f"é{i}" for i in range(6)]),
        "blurry known": ml_si_blurry_plan(LABELS, n_sessions=3, stream_batch=4, known=known),
    }


PLANS = plans()


def test_hash_follows_its_definition():
    """Recomputed from the wording: canonical header, then length and bytes of every part."""
    rows = [[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1]]
    targets_sha256 = hashlib.sha256(struct.pack("<2q", 5, 3) + bytes(chain(*rows))).hexdigest()
    header = {
        "drawn_home": [0, 0, 1],
        "drawn_kind": [0, 1, 0],
        "format": "multi-label 1",
        "num_classes": 3,
        "num_samples": 5,
        "requested": PARTS["requested"],
        "targets_sha256": targets_sha256,
    }
    content = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    for part in ([3, 0, 1], [4], [2, 1, 1]):
        content += struct.pack("<q", len(part)) + struct.pack(f"<{len(part)}q", *part)
    content += struct.pack("<q", 3) + bytes([1, 0, 0, 1, 1, 0, 0, 1, 1])
    content += struct.pack("<q", 5) + struct.pack("<5q", 0, 1, -1, 0, 2)
    plan = small_plan()
    assert plan.targets_sha256 == targets_sha256
    assert plan.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"sessions": (np.array([0, 3, 1]), np.array([4]))},
        {"block_columns": np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=bool)},
        {"block_sizes": np.array([1, 2, 1]), "block_columns": np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=bool)},
        {"drawn_kind": np.array([1, 1, 0])},
        {"drawn_home": np.array([0, 1, 1])},
        {"anchors": np.array([1, 1, -1, 0, 2])},
        {"requested": PARTS["requested"] | {"seed": 4}},
        {"known": np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]], dtype=bool)},
    ],
)
def test_everything_that_decides_the_stream_is_part_of_the_identity(changes):
    assert small_plan(**changes) != small_plan()


def test_names_and_provenance_are_not_part_of_the_identity():
    assert small_plan(class_names=("a", "b", "c"), provenance={"dataset": "x"}) == small_plan()
    assert hash(small_plan()) == hash(small_plan(class_names=("a", "b", "c")))
    assert small_plan() != si_blurry_plan([0, 1, 2, 3], n_sessions=2)
    assert small_plan() != "plan"


def test_a_plan_cannot_be_changed():
    parts = copy.deepcopy(PARTS)
    plan = MultiLabelPlan(**parts)
    before = plan.sha256
    for name in ("targets", "block_columns", "drawn_home", "anchors"):
        parts[name][:] = 0
        with pytest.raises(ValueError, match="read-only"):
            getattr(plan, name)[:] = 0
    with pytest.raises(FrozenInstanceError):
        plan.sessions = ()
    assert MultiLabelPlan(**PARTS).sha256 == before == copy.deepcopy(plan).sha256


@pytest.mark.parametrize("name", PLANS)
def test_copies_are_equal(name):
    plan = PLANS[name]
    for twin in (pickle.loads(pickle.dumps(plan)), copy.copy(plan), copy.deepcopy(plan)):
        assert twin == plan
        assert twin.class_names == plan.class_names
        assert not twin.targets.flags.writeable


def test_visible_rows_follow_the_blocks():
    plan = small_plan()
    assert plan.visible(0).tolist() == [[True, False, False], [True, False, False], [True, True, False]]
    assert plan.visible(1).tolist() == [[False, True, True]]
    assert plan.session_columns.tolist() == [[True, True, False], [False, True, True]]
    assert plan.seen_after.tolist() == [[True, True, False], [True, True, True]]
    assert plan.counts.tolist() == [[2, 1, 0], [0, 1, 1]]
    assert (plan.stream_batch, plan.tasks) == (2, None)


CONTRADICTIONS = {
    "sample twice": ({"sessions": (np.array([3, 0, 1]), np.array([3]))}, "presented twice"),
    "sample twice in a task": (
        {"sessions": (np.array([3, 3, 1]), np.array([4])), "anchors": None},
        "sample 3 is presented twice",
    ),
    "outside": ({"sessions": (np.array([3, 0, 1]), np.array([5]))}, "outside 0..4"),
    "unanchored sample": ({"sessions": (np.array([3, 0, 2]), np.array([4]))}, "samples with an anchor"),
    "anchor no label": ({"anchors": np.array([2, 1, -1, 0, 2])}, "an anchor must be a label"),
    "number of anchors": ({"anchors": np.array([0, 1, -1])}, "anchors must hold"),
    "block across sessions": ({"block_sizes": np.array([2, 2])} | {"block_columns": np.ones((2, 3), bool)}, "crosses"),
    "empty block": ({"block_sizes": np.array([3, 0, 1])}, "block without rows"),
    "rows without block": ({"block_sizes": np.array([2, 1])} | {"block_columns": np.ones((2, 3), bool)}, "block"),
    "columns": ({"block_columns": np.ones((3, 2), bool)}, "block_columns must be"),
    "nothing visible": ({"block_columns": np.zeros((3, 3), bool)}, "without a visible label"),
    "sessions": ({"requested": PARTS["requested"] | {"n_sessions": 3}}, "n_sessions"),
    "requested": ({"requested": {"mode": "mlcil"}}, "requested must hold"),
    "home": ({"drawn_home": np.array([0, 0, 2])}, "home sessions"),
    "kind": ({"drawn_kind": np.array([0, 1, 2])}, "other than 0, 1"),
    "kinds": ({"drawn_kind": np.array([0, 1])}, "one value a class"),
    "names": ({"class_names": ("a",)}, "3 names"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused(case):
    changes, reason = CONTRADICTIONS[case]
    with pytest.raises(PlanError, match=reason) as refusal:
        small_plan(**changes)
    assert "\n" not in str(refusal.value)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_save_and_load_give_the_same_plan(tmp_path, name):
    plan = PLANS[name]
    folder = plan.save(tmp_path / "new")
    for loaded in (MultiLabelPlan.load(folder), load_plan(folder), load_plan(folder / "plan.json")):
        assert type(loaded) is MultiLabelPlan
        assert loaded == plan
        assert (loaded.requested, loaded.provenance) == (plan.requested, plan.provenance)
        assert (loaded.effective, loaded.warnings, loaded.describe()) == (
            plan.effective,
            plan.warnings,
            plan.describe(),
        )
        assert loaded.class_names == plan.class_names
        for session in range(len(plan.sessions)):
            assert np.array_equal(loaded.visible(session), plan.visible(session))
    content = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    assert content["header"] == plan.header
    assert content["effective"] == plan.effective


def test_each_kind_is_read_as_what_it_is(tmp_path):
    single = si_blurry_plan(np.arange(30) % 6, n_sessions=2)
    single.save(tmp_path / "single")
    small_plan().save(tmp_path / "several")
    assert type(load_plan(tmp_path / "single")) is StreamPlan
    assert load_plan(tmp_path / "single") == single
    with pytest.raises(PlanError, match=r"has format multi-label 1, but format 1 is read here: .*load_plan"):
        StreamPlan.load(tmp_path / "several")
    with pytest.raises(PlanError, match="has format 1, but format multi-label 1 is read here"):
        MultiLabelPlan.load(tmp_path / "single")


def rewrite_arrays(folder, **changes):
    with np.load(folder / "plan.npz") as arrays:
        content = {name: arrays[name] for name in arrays.files}
    np.savez(folder / "plan.npz", **(content | changes))


DAMAGE = {
    "order changed": {"indices": np.array([0, 3, 1, 4])},
    "visibility changed": {"block_columns": np.ones((3, 3), dtype=bool)},
    "known added": {"known": np.array([[1, 1, 0]] + [[1, 1, 1]] * 4, dtype=bool)},
    "anchors changed": {"anchors": np.array([1, 1, -1, 0, 2])},
    "targets changed": {"targets": np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1]])},
    "objects": {"anchors": np.array([{}], dtype=object)},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_in_one_line(tmp_path, damage):
    small_plan().save(tmp_path)
    rewrite_arrays(tmp_path, **DAMAGE[damage])
    with pytest.raises(PlanError, match=r"do not match|cannot be read") as refusal:
        load_plan(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_hold_no_pickle(tmp_path):
    small_plan().save(tmp_path)
    with np.load(tmp_path / "plan.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "iub" for name in arrays.files)


# --- other data ------------------------------------------------------------------------------------------------------


def test_other_targets_are_refused():
    plan, targets = small_plan(), PARTS["targets"]
    plan.check_targets(targets.tolist())
    plan.check_targets(targets, np.ones((5, 3), dtype=bool))
    changed = targets.copy()
    changed[1, 2] = 0
    known = np.ones((5, 3), dtype=bool)
    known[2, 0] = False
    for arguments, reason in (
        ((targets[:4],), r"\(5, 3\) but the data set has \(4, 3\)"),
        ((changed,), r"sample 1 has labels \[1\], the plan expects \[1, 2\]"),
        ((targets, known), "others of them are known"),
        (([0, 1, 2, 3, 4],), "one class id a sample"),
    ):
        with pytest.raises(PlanError, match=reason) as refusal:
            plan.check_targets(*arguments)
        assert "\n" not in str(refusal.value)


def test_plans_load_neither_torch_nor_avalanche():
    code = (
        "import sys, scenarios, scenarios.plans, scenarios.mlcil, scenarios.ml_si_blurry;"
        "scenarios.MLCILSettings, scenarios.MLSiBlurrySettings, scenarios.load_plan;"
        "print(sorted({'torch', 'avalanche', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
