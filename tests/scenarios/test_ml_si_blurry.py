"""Multi-label Si-Blurry: the example of the definition exactly, its edge cases, and an independent slow version."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scenarios.errors import PlanError
from scenarios.ml_si_blurry import MLSiBlurrySettings, ml_si_blurry_plan
from scenarios.plan import ABSENT, BLURRY, DISJOINT, StreamPlanWarning

pytestmark = pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning")

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("mlcil_siblurry_example*.npz"))
LABELS = (np.random.default_rng(8).random((300, 12)) < 0.2).astype(np.uint8)


def plan_of(labels=LABELS, **options):
    return ml_si_blurry_plan(labels, **({"n_sessions": 4, "stream_batch": 8} | options))


def test_there_is_an_example():
    assert GOLDEN


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_example_of_the_definition_exactly(path):
    with np.load(path, allow_pickle=False) as golden:
        example = {name: golden[name] for name in golden.files}
    config, stats = json.loads(str(example["config"])), json.loads(str(example["stats"]))
    plan = ml_si_blurry_plan(
        example["targets"],
        n_sessions=config["T"],
        disjoint_class_pct=config["n"],
        blurry_sample_pct=config["m"],
        cuts=config["cuts"],
        seed=config["seed"],
        stream_batch=config["batch"],
    )
    session = np.full(plan.num_samples, -1)
    for number, rows in enumerate(plan.sessions):
        session[rows] = number
    assert plan.drawn_home.tolist() == example["home"].tolist()
    assert (plan.drawn_kind == BLURRY).tolist() == example["is_blurry"].tolist()
    assert plan.anchors.tolist() == example["anchor"].tolist()
    assert session.tolist() == example["session"].tolist()
    assert (
        np.flatnonzero((session >= 0) & (session != plan.drawn_home[plan.anchors])).tolist()
        == example["moved"].tolist()
    )
    assert np.flatnonzero(session < 0).tolist() == example["dropped"].tolist()
    assert plan.order.tolist() == example["served"].tolist()
    assert session[plan.order].tolist() == example["served_session"].tolist()
    assert plan.block_sizes.tolist() == example["batch_len"].tolist()
    visible = np.concatenate([plan.visible(number) for number in range(len(plan.sessions))])
    assert visible.tolist() == np.repeat(example["batch_visible"], example["batch_len"], axis=0).tolist()
    ends = np.cumsum(example["batch_len"]).searchsorted(plan.session_ends)
    assert plan.seen_after.tolist() == example["batch_exposed"][ends].tolist()
    for name, value in stats.items():
        assert plan.effective[name] == pytest.approx(value, abs=1e-12, rel=0), name


def slow_plan(labels, sessions, n, m, cuts, batch, seed, order=None):
    """The definition once more, image by image; None where no stream can be built."""
    draws = np.random.Generator(np.random.PCG64(seed))
    classes = len(labels[0])
    if classes < sessions:
        return None
    ranked = list(order) if order is not None else draws.permutation(classes).tolist()
    disjoint = ranked[: classes * n // 100]
    blurry = ranked[len(disjoint) :]
    for _ in range(1000 if cuts == "stochastic" else 1):
        home = {}
        for part in (disjoint, blurry):
            k = len(part)
            if cuts == "stochastic":
                points = sorted(draws.integers(0, k + 1, size=sessions - 1).tolist())
            else:
                points = [k * (s + 1) // sessions for s in range(sessions - 1)]
            home |= {one: sum(point <= j for point in points) for j, one in enumerate(part)}
        if set(home.values()) == set(range(sessions)):
            break
    else:
        return None
    label_lists = [[c for c in range(classes) if row[c]] for row in labels]
    anchor = {}
    for i, u in enumerate(draws.random(len(labels)).tolist()):
        if label_lists[i]:
            anchor[i] = label_lists[i][int(u * len(label_lists[i]))]
    where = {i: home[one] for i, one in anchor.items()}
    eligible = [i for i in anchor if anchor[i] in blurry]
    q = 0 if sessions == 1 else len(eligible) * m // 100
    moved = sorted(draws.permutation(np.array(eligible, dtype=np.int64))[:q].tolist())
    if q:
        for i, d in zip(moved, draws.integers(0, sessions - 1, q).tolist(), strict=True):
            where[i] = d + (d >= where[i])
    served, visible, exposed = [], [], set()
    for s in range(sessions):
        members = [i for i in sorted(where) if where[i] == s]
        members = [members[j] for j in draws.permutation(len(members)).tolist()]
        served.append(members)
        vocabulary = {anchor[i] for i in members}
        rows = []
        for start in range(0, len(members), batch):
            part = members[start : start + batch]
            exposed |= {anchor[i] for i in part}
            rows += [[c in vocabulary & exposed for c in range(classes)] for _ in part]
        visible.append(rows)
    return served, visible, home, anchor, len(moved), len(eligible)


@given(
    labels=st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=40),
    sessions=st.integers(1, 6),
    n=st.integers(0, 100),
    m=st.integers(0, 100),
    cuts=st.sampled_from(["stochastic", "even"]),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
    order=st.none() | st.permutations(range(5)),
)
@settings(deadline=None, max_examples=80)
def test_any_stream_against_the_slow_version(labels, sessions, n, m, cuts, batch, seed, order):
    options = {"n_sessions": sessions, "disjoint_class_pct": n, "blurry_sample_pct": m, "cuts": cuts, "order": order}
    expected = slow_plan(labels, sessions, n, m, cuts, batch, seed, order) if np.any(labels) else None
    if expected is None:
        with pytest.raises(PlanError):
            ml_si_blurry_plan(labels, **options, stream_batch=batch, seed=seed, allow_empty_sessions=True)
        return
    served, visible, home, anchor, moved, eligible = expected
    if not all(served):
        with pytest.raises(PlanError, match="have no image"):
            ml_si_blurry_plan(labels, **options, stream_batch=batch, seed=seed)
    plan = ml_si_blurry_plan(labels, **options, stream_batch=batch, seed=seed, allow_empty_sessions=True)
    assert [rows.tolist() for rows in plan.sessions] == served
    assert [plan.visible(s).tolist() for s in range(sessions)] == visible
    assert plan.effective["anchor_blur"] == (moved / eligible if eligible else 0)
    seen = [{anchor[i] for rows in served[: s + 1] for i in rows} for s in range(sessions)]
    assert plan.seen_after.tolist() == [[c in one for c in range(5)] for one in seen]

    # A class without an anchor is never exposed; a disjoint class is visible in its home session alone.
    anchored = set(anchor.values())
    for c in range(5):
        assert (plan.class_kind[c] == ABSENT) == (c not in anchored)
        assert plan.home_session[c] == (home[c] if c in anchored else -1)
        if plan.class_kind[c] == DISJOINT:
            assert [s for s in range(sessions) if plan.session_columns[s, c]] == [home[c]]
    # Every labelled image once, its anchor visible.
    assert sorted(plan.order.tolist()) == sorted(anchor)
    for s, rows in enumerate(served):
        assert all(visible[s][position][anchor[i]] for position, i in enumerate(rows))

    positives = [
        (s, position, i, c) for s, rows in enumerate(served) for position, i in enumerate(rows) for c in range(5)
    ]
    positives = [one for one in positives if labels[one[2]][one[3]]]
    shown = [one for one in positives if visible[one[0]][one[1]][one[3]]]
    assert plan.effective["missing_label_rate"] == pytest.approx(1 - len(shown) / len(positives), abs=1e-12)
    for name, chosen in (("presence", positives), ("visible", shown)):
        for kind, kind_name in ((DISJOINT, "disjoint"), (BLURRY, "blurry")):
            shares = []
            for c in np.flatnonzero(plan.drawn_kind == kind):
                of_class = [s for s, _, _, column in chosen if column == c]
                if of_class:
                    shares.append(1 - of_class.count(home[c]) / len(of_class))
            value = sum(shares) / len(shares) if shares else 0
            assert plan.effective[f"{name}_blur_{kind_name}"] == pytest.approx(value, abs=1e-12)


# --- edge cases of the definition ------------------------------------------------------------------------------------


def test_all_disjoint_or_unmoved_streams_have_no_anchor_blur():
    assert plan_of(disjoint_class_pct=100).effective["anchor_blur"] == 0
    assert plan_of(blurry_sample_pct=0).effective["anchor_blur"] == 0
    assert plan_of(n_sessions=1, blurry_sample_pct=100).effective["anchor_blur"] == 0


def test_everything_moved():
    plan = plan_of(disjoint_class_pct=0, blurry_sample_pct=100)
    assert plan.effective["anchor_blur"] == 1
    for session, rows in enumerate(plan.sessions):
        assert not (plan.drawn_home[plan.anchors[rows]] == session).any()


def test_moved_images_reach_all_other_sessions_evenly():
    labels = np.zeros((4000, 4), dtype=np.uint8)
    labels[np.arange(4000), np.arange(4000) % 4] = 1
    plan = plan_of(labels, disjoint_class_pct=0, blurry_sample_pct=100, cuts="even", order=[0, 1, 2, 3])
    assert np.diag(plan.counts).tolist() == [0] * 4
    assert (np.abs(plan.counts[~np.eye(4, dtype=bool)] - 1000 / 3) < 75).all()


def test_one_label_an_image_shows_every_label_that_has_arrived():
    labels = np.eye(6, dtype=np.uint8)[np.arange(120) % 6]
    plan = plan_of(labels, n_sessions=3, blurry_sample_pct=30)
    assert plan.effective["missing_label_rate"] == 0
    assert plan.counts.sum(axis=0).tolist() == [20] * 6
    assert plan.effective["visible_blur_disjoint"] == plan.effective["presence_blur_disjoint"] == 0


def test_presence_blur_is_large_without_any_moved_image():
    plan = plan_of(blurry_sample_pct=0)
    assert plan.effective["presence_blur_disjoint"] > 0.3
    assert plan.effective["visible_blur_disjoint"] == 0
    text = "\n".join(plan.describe())
    assert f"{plan.effective['presence_blur_disjoint']:.1%} disjoint" in text
    assert "large even where no image is moved" in text
    assert "anchor 0.0% (requested 0 %)" in text


def test_a_class_without_anchor_is_listed_and_never_exposed():
    labels = LABELS.copy()
    labels[:, 3] = 0
    with pytest.warns(StreamPlanWarning, match="1 of 12 classes have no visible label: d"):
        plan = plan_of(labels, class_names=list("abcdefghijkl"))
    assert not plan.seen_after[:, 3].any()
    assert (plan.class_kind[3], plan.home_session[3]) == (ABSENT, -1)
    assert plan.num_classes == 12


def test_a_single_blurry_image_with_a_hidden_unknown_label():
    known = np.ones_like(LABELS, dtype=bool)
    known[LABELS == 0] = False
    plan, all_known = plan_of(known=known), plan_of()
    assert [rows.tolist() for rows in plan.sessions] == [rows.tolist() for rows in all_known.sessions]
    for session, rows in enumerate(plan.sessions):
        assert np.array_equal(plan.visible(session), all_known.visible(session) & (LABELS[rows] == 1))


def test_sessions_without_an_image_need_permission():
    # Six classes make six homes, but only class 0 has images.
    labels = np.zeros((9, 6), dtype=np.uint8)
    labels[:, 0] = 1
    with pytest.raises(PlanError, match=r"sessions \[.*\] have no image; .*allow_empty_sessions=true"):
        plan_of(labels, n_sessions=3, blurry_sample_pct=0)
    plan = plan_of(labels, n_sessions=3, blurry_sample_pct=0, allow_empty_sessions=True)
    assert sorted(len(rows) for rows in plan.sessions) == [0, 0, 9]
    assert plan.effective["empty_sessions"] == 2
    assert "2 of 3 sessions are empty" in plan.warnings
    assert [plan.visible(session).shape for session in range(3)] == [(len(rows), 6) for rows in plan.sessions]
    assert plan.counts.shape == (3, 6)


def test_the_seed_alone_decides_and_no_global_state_is_touched():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert plan_of(seed=2) == plan_of(seed=2) != plan_of(seed=3)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    # The batch size decides visibility only.
    one, other = plan_of(stream_batch=8), plan_of(stream_batch=3)
    assert one != other
    assert one.order.tolist() == other.order.tolist()
    assert (one.stream_batch, other.stream_batch) == (8, 3)


REFUSALS = {
    "more sessions than classes": ({"n_sessions": 13}, "n_sessions=13: 12 classes cannot give every session a class"),
    "even cuts of too few": ({"n_sessions": 7, "cuts": "even"}, "cuts=even: 6 disjoint and 6 blurry classes leave"),
    "hopeless cuts": ({"labels": np.eye(40, dtype=np.uint8), "n_sessions": 40}, "(1000 tries)"),
    "percent": ({"blurry_sample_pct": 101}, "blurry_sample_pct=101"),
    "unknown cuts": ({"cuts": "odd"}, "cuts='odd'"),
    "order": ({"order": [0, 1]}, "order=[0, 1]: give null for a drawn order, or a list of the 12 class ids"),
    "class twice": (
        {"order": [0, 0]},
        "order=[0, 0]: give null for a drawn order, or a list of all class ids, each once",
    ),
    "order in words": (
        {"order": "rnd"},
        "order='rnd': give null for a drawn order, or a list of all class ids, each once",
    ),
    "batch": ({"stream_batch": 0}, "stream_batch=0: give a whole number from 1"),
    "seed": ({"seed": True}, "seed=True"),
    "no labels at all": ({"labels": np.zeros((3, 4), dtype=np.uint8)}, "no image has a label"),
    "class ids": ({"labels": [0, 1, 2]}, "one class id a sample"),
    "names": ({"class_names": ["a"]}, "class_names has 1 names for 12 classes"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_in_one_line(case):
    change, text = REFUSALS[case]
    with pytest.raises(PlanError) as refusal:
        plan_of(**change)
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_settings_take_what_a_config_file_has():
    assert MLSiBlurrySettings(order=[1, 0]).order == (1, 0)
    assert (MLSiBlurrySettings().n_sessions, MLSiBlurrySettings().eval_images) == (5, "seen")
    for wrong in ({"cuts": "odd"}, {"n_sessions": 0}, {"seed": 3}, {"stream_batch": 4}):
        with pytest.raises(ValidationError):
            MLSiBlurrySettings(**wrong)
