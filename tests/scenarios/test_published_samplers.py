"""The published Si-Blurry samplers bit for bit: golden files, and a slow version written from the description."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scenarios.errors import PlanError
from scenarios.plan import ABSENT, BLURRY, DISJOINT, StreamPlanWarning
from scenarios.si_blurry import si_blurry_plan

pytestmark = pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning")

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("si_blurry_official_case*.npz"))


def test_golden_files_are_here():
    assert GOLDEN


def golden_cases():
    for path in GOLDEN:
        with np.load(path) as stored:
            meta = json.loads(str(stored["meta_json"]))
        yield pytest.param(path, "official", id=f"{path.stem[-6:]}-official")
        if meta["disjoint_num"] + meta["blurry_num"] == meta["num_classes"]:  # the fork drops no class
            yield pytest.param(path, "misa", id=f"{path.stem[-6:]}-misa")


@pytest.mark.parametrize("path, mode", golden_cases())
def test_published_plans(path, mode):
    with np.load(path) as stored:
        golden = {name: stored[name] for name in stored.files}
    meta = json.loads(str(golden["meta_json"]))
    plan = si_blurry_plan(
        golden["targets"],
        num_classes=meta["num_classes"],
        n_sessions=meta["n_tasks"],
        disjoint_class_pct=meta["n"],
        blurry_sample_pct=meta["m"],
        seed=meta["seed"],
        varying=bool(meta["varying"]),
        mode=mode,
    )
    assert plan.order.tolist() == golden["index_flat"].tolist()
    assert plan.session_ends.tolist() == golden["index_offsets"].tolist()[1:]
    for role, kind in (("disjoint", DISJOINT), ("blurry", BLURRY)):
        offsets = golden[f"{role}_offsets"]
        for t in range(meta["n_tasks"]):
            classes = golden[f"{role}_flat"][offsets[t] : offsets[t + 1]]
            shown = [c for c in classes if np.isin(c, plan.targets[plan.order])]
            assert (plan.class_kind[shown] == kind).all()
            assert (plan.home_session[shown] == t).all()
    effective = plan.effective
    assert effective["session_sizes"] == meta["session_sizes"]
    assert effective["blur"] == pytest.approx(meta["blur"])
    assert effective["class_coverage"] == pytest.approx(meta["cls_blurred"])
    assert effective["blur_class_min"] == pytest.approx(meta["mincls"])
    assert effective["blur_class_max"] == pytest.approx(meta["maxcls"])
    assert effective["dropped_samples"] == meta["lost"]
    assert effective["dropped_classes"] == meta["drop_cls"]
    assert effective["empty_sessions"] == meta["empty"]


def published_sampler(labels, classes, sessions, disjoint_pct, blurry_pct, seed, varying, keep_all):
    """The published algorithm written down step by step with lists: slow, and unrelated to the code under test."""
    g = torch.Generator()
    g.manual_seed(seed)
    d = classes * disjoint_pct // 100 // sessions * sessions
    b = classes - d if keep_all else (classes - d) // sessions * sessions
    perm = torch.randperm(classes, generator=g).tolist()

    def cuts(k):
        if not varying:
            return [k // sessions * t for t in range(sessions + 1)]
        if k == 0:
            return [0] * (sessions + 1)
        return [0, *sorted(torch.randint(0, k, (sessions - 1,), generator=g).tolist()), k]

    def parts(pool):
        at = cuts(len(pool))
        return [pool[at[t] : at[t + 1]] for t in range(sessions)]

    disjoint, blurry = parts(perm[:d]), parts(perm[d : d + b])
    fixed = [[i for i, y in enumerate(labels) if y in disjoint[t]] for t in range(sessions)]
    own = [[i for i, y in enumerate(labels) if y in blurry[t]] for t in range(sessions)]
    take = [len(part) * blurry_pct // 100 for part in own]
    pool_on = True
    if varying:
        quota = sum(map(len, own)) * blurry_pct // 100
        pool_on = quota > 0
        if pool_on:
            at = cuts(quota)
            take = [at[t + 1] - at[t] for t in range(sessions)]
    if pool_on:
        pool = [i for t in range(sessions) for i in own[t][: take[t]]]
        own = [own[t][take[t] :] for t in range(sessions)]
        pool = [pool[j] for j in torch.randperm(len(pool), generator=g).tolist()]
        per_session = len(pool) // sessions
        for t in range(sessions):
            count = take[t] if varying else per_session
            own[t], pool = own[t] + pool[:count], pool[count:]
    stream = []
    for t in range(sessions):
        s = fixed[t] + own[t]
        stream.append([s[j] for j in torch.randperm(len(s), generator=g).tolist()])
    return stream


@given(st.data())
@settings(deadline=None, max_examples=120)
def test_published_samplers_against_the_slow_one(data):
    mode = data.draw(st.sampled_from(["official", "misa"]))
    classes, sessions = data.draw(st.integers(1, 39)), data.draw(st.integers(1, 11))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=150))
    if data.draw(st.booleans()):
        labels = sorted(labels)
    disjoint, blurry = data.draw(st.integers(0, 100)), data.draw(st.sampled_from([0, 1, 10, 33, 50, 100]))
    seed, varying = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.booleans())
    rest = classes - classes * disjoint // 100 // sessions * sessions
    assume(mode == "official" or varying or rest % sessions == 0)
    plan = si_blurry_plan(
        labels,
        num_classes=classes,
        n_sessions=sessions,
        disjoint_class_pct=disjoint,
        blurry_sample_pct=blurry,
        seed=seed,
        mode=mode,
        varying=varying,
    )
    expected = published_sampler(labels, classes, sessions, disjoint, blurry, seed, varying, mode == "misa")
    assert [session.tolist() for session in plan.sessions] == expected


def test_misa_refuses_unequal_equal_sessions():
    with pytest.raises(PlanError, match="7 blurry classes cannot be shared equally by n_sessions=5"):
        si_blurry_plan(np.arange(12), n_sessions=5, mode="misa", varying=False)


def test_published_losses_are_said_aloud():
    sorted_by_class = np.repeat(np.arange(23), 9)
    with pytest.warns(StreamPlanWarning, match="never appear") as caught:
        plan = si_blurry_plan(sorted_by_class, n_sessions=6, disjoint_class_pct=45, mode="official")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    said = " | ".join(plan.warnings)
    assert "5 of 23 classes never appear" in said
    assert "45 of 207 samples never appear" in said
    assert "of the classes are disjoint, not 45 %" in said
    assert "of the samples of blurry classes are displaced, not 10 %" in said
    assert (plan.class_kind == ABSENT).sum() == 5
    unblurred = si_blurry_plan(np.repeat(np.arange(20), 30), mode="official")
    assert "blurry classes have no sample outside their home session" in " | ".join(unblurred.warnings)
