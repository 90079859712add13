"""The exact Si-Blurry generator, and every edge case and refusal of all modes."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scenarios._exact_sampler import _random_spread
from scenarios.errors import PlanError
from scenarios.plan import ABSENT, BLURRY, DISJOINT
from scenarios.si_blurry import SiBlurrySettings, si_blurry_plan

pytestmark = pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning")

BALANCED = np.arange(600) % 20


def without_order(plan):
    return plan.class_kind.tolist(), plan.home_session.tolist()


def displaced(plan):
    """Data set indices of the samples outside the home session of their class."""
    session = np.repeat(np.arange(len(plan.sessions)), np.diff(plan.session_ends, prepend=0))
    return set(plan.order[session != plan.home_session[plan.targets[plan.order]]].tolist())


def test_more_sessions_than_classes():
    empty = si_blurry_plan(np.arange(12) % 4, n_sessions=6, mode="official")
    assert len(empty.order) == 0
    assert len(empty.sessions) == 6
    assert empty.effective["dropped_classes"] == 4
    assert "6 of 6 sessions are empty" in empty.warnings
    assert any("dropped   4 classes, 12 samples" in line for line in empty.describe())
    with pytest.raises(ValueError, match="n_sessions=6: 4 classes") as refusal:
        si_blurry_plan(np.arange(12) % 4, n_sessions=6)
    assert isinstance(refusal.value, PlanError)
    allowed = si_blurry_plan(np.arange(12) % 4, n_sessions=6, allow_empty_sessions=True)
    assert sorted(allowed.order.tolist()) == list(range(12))
    assert allowed.effective["empty_sessions"] >= 1


# --- the exact generator ---------------------------------------------------------------------------------------------


@st.composite
def exact_arguments(draw):
    classes = draw(st.integers(1, 25))
    return {
        "targets": draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=200)),
        "num_classes": classes,
        "n_sessions": draw(st.integers(1, 8)),
        "disjoint_class_pct": draw(st.integers(0, 100)),
        "blurry_sample_pct": draw(st.integers(0, 100)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "varying": draw(st.booleans()),
        "allow_empty_sessions": draw(st.booleans()),
        "allow_home": draw(st.booleans()),
    }


def exact_plan_or_reject(arguments):
    try:
        return si_blurry_plan(**arguments)
    except PlanError:
        assume(False)


@given(exact_arguments())
@settings(deadline=None, max_examples=150)
def test_exact_plans_keep_their_promises(arguments):
    plan = exact_plan_or_reject(arguments)
    labels = np.array(arguments["targets"])
    present = np.unique(labels)
    n, m, sessions = arguments["disjoint_class_pct"], arguments["blurry_sample_pct"], arguments["n_sessions"]

    assert sorted(plan.order.tolist()) == list(range(len(labels)))
    assert plan.counts.sum(axis=0).tolist() == np.bincount(labels, minlength=plan.num_classes).tolist()
    assert np.flatnonzero(plan.class_kind != ABSENT).tolist() == present.tolist()
    assert (plan.class_kind == DISJOINT).sum() == int(len(present) * n / 100 + 0.5)
    assert abs(plan.effective["disjoint_ratio"] - n / 100) <= 1 / (2 * len(present)) + 1e-12
    blurry_samples = int(np.isin(labels, np.flatnonzero(plan.class_kind == BLURRY)).sum())
    if sessions == 1:
        assert plan.effective["blur"] == 0
    elif blurry_samples and not arguments["allow_home"]:
        assert abs(plan.effective["blur"] - m / 100) <= 1 / (2 * blurry_samples) + 1e-12
        assert plan.effective["pooled_ratio"] == plan.effective["blur"]
    elif blurry_samples:
        assert plan.effective["blur"] <= plan.effective["pooled_ratio"]
        assert abs(plan.effective["pooled_ratio"] - m / 100) <= 1 / (2 * blurry_samples) + 1e-12
    if not arguments["allow_empty_sessions"]:
        assert plan.effective["empty_sessions"] == 0
        assert set(plan.home_session[present].tolist()) == set(range(sessions))
        assert plan.warnings == ()
    if not arguments["varying"]:
        for kinds in ((DISJOINT,), (BLURRY,), (DISJOINT, BLURRY)):
            homes = plan.home_session[np.isin(plan.class_kind, kinds)]
            assert np.ptp(np.bincount(homes, minlength=sessions)) <= 1
    assert plan.requested == {
        key: arguments[key]
        for key in (
            "disjoint_class_pct",
            "blurry_sample_pct",
            "n_sessions",
            "seed",
            "allow_empty_sessions",
            "allow_home",
        )
    } | {"mode": "exact"} | ({} if arguments["varying"] else {"varying": False})


@given(exact_arguments())
@settings(deadline=None, max_examples=60)
def test_quotas_are_largest_remainder_shares_of_every_class(arguments):
    arguments |= {"allow_home": False, "allow_empty_sessions": True, "n_sessions": max(2, arguments["n_sessions"])}
    plan = exact_plan_or_reject(arguments)
    moved = np.bincount(plan.targets[sorted(displaced(plan))], minlength=plan.num_classes)
    m = arguments["blurry_sample_pct"]
    sizes = np.bincount(plan.targets, minlength=plan.num_classes)
    extra_remainders, plain_remainders = [], []
    for c in np.flatnonzero(plan.class_kind == BLURRY):
        floor, remainder = divmod(m * int(sizes[c]), 100)
        assert moved[c] in (floor, floor + 1)
        (extra_remainders if moved[c] > floor else plain_remainders).append(remainder)
    assert min(extra_remainders, default=100) >= max(plain_remainders, default=0)
    assert moved[plan.class_kind == DISJOINT].sum() == 0


@given(exact_arguments())
@settings(deadline=None, max_examples=30)
def test_same_arguments_same_plan(arguments):
    plan = exact_plan_or_reject(arguments)
    state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state must stay untouched
    torch_state = torch.random.get_rng_state()
    named = si_blurry_plan(
        **arguments, class_names=[f"class {c}" for c in range(plan.num_classes)], dataset_name="other"
    )
    assert named.sha256 == plan.sha256
    assert named.class_names is not None
    as_tensor = si_blurry_plan(**(arguments | {"targets": torch.tensor(arguments["targets"])}))
    as_bytes = si_blurry_plan(**(arguments | {"targets": np.array(arguments["targets"], dtype=np.uint8)}))
    assert as_tensor.sha256 == as_bytes.sha256 == plan.sha256
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_state)


@pytest.mark.parametrize(
    "varying, sha256",
    [
        (True, "9e291c4f639cd522e3c31e097421045446efed310b80f3ca6401b5512e8f6bc4"),
        (False, "4c90775dad49099e7c1d4681ee3106158799819cc8968fe821c0905ff538c7b9"),
    ],
)
def test_the_exact_stream_is_pinned(varying, sha256):
    """If this hash must change, so must the version of the generator: saved results name it."""
    plan = si_blurry_plan(BALANCED, n_sessions=5, seed=1, varying=varying)
    assert plan.sha256 == sha256
    assert plan.provenance["generator_version"] == "1"


def test_varying_is_recorded_only_where_it_is_false():
    assert "varying" not in si_blurry_plan(BALANCED).requested
    assert si_blurry_plan(BALANCED, varying=False).requested["varying"] is False
    assert si_blurry_plan(BALANCED, varying=False).header["requested"]["varying"] == 0


def test_seeds_give_different_streams():
    assert len({si_blurry_plan(BALANCED, seed=seed).sha256 for seed in range(20)}) == 20


class TestStages:
    """One seed, five child generators: changing one stage leaves the draws of the others."""

    # 1000 samples in classes of 100: every percentage is a whole number of samples, so that pools are nested.
    targets = np.arange(1000) % 10

    def plan(self, **changes):
        return si_blurry_plan(self.targets, **({"n_sessions": 4, "blurry_sample_pct": 30, "seed": 7} | changes))

    def test_classes_come_from_the_first_child(self):
        child = np.random.SeedSequence(7).spawn(5)[0]
        drawn = np.random.Generator(np.random.PCG64(child)).permutation(10)
        assert np.flatnonzero(self.plan().class_kind == DISJOINT).tolist() == sorted(drawn[:5].tolist())

    @pytest.mark.parametrize(
        "change",
        [
            {"blurry_sample_pct": 80},
            {"allow_home": True},
            {"n_sessions": 7},
            {"allow_empty_sessions": True},
            {"varying": False},
        ],
        ids=str,
    )
    def test_class_roles_stay(self, change):
        assert self.plan(**change).class_kind.tolist() == self.plan().class_kind.tolist()

    @pytest.mark.parametrize("change", [{"blurry_sample_pct": 80}, {"allow_home": True}], ids=str)
    def test_homes_stay(self, change):
        assert without_order(self.plan(**change)) == without_order(self.plan())

    @pytest.mark.parametrize("change", [{"n_sessions": 7}, {"allow_empty_sessions": True}, {"varying": False}], ids=str)
    def test_the_pool_stays(self, change):
        assert displaced(self.plan(**change)) == displaced(self.plan())

    def test_more_blur_moves_more_of_the_same(self):
        assert (
            displaced(self.plan(blurry_sample_pct=10))
            < displaced(self.plan())
            < displaced(self.plan(blurry_sample_pct=90))
        )

    def test_returns_home_only_shrink_the_displaced(self):
        assert displaced(self.plan(allow_home=True)) < displaced(self.plan())

    @pytest.mark.parametrize(
        "change", [{"blurry_sample_pct": 80}, {"n_sessions": 1}, {"disjoint_class_pct": 0}], ids=str
    )
    def test_the_shuffle_stays(self, change):
        """All sessions of all these plans are parts of one shuffle of the data set."""
        whole = np.argsort(self.plan(n_sessions=1).order)  # position of every sample in the shuffle
        for session in self.plan(**change).sessions:
            assert (np.diff(whole[session]) > 0).all()


def test_equal_classes_are_blurred_in_turn():
    """20 classes tie for 10 places in the pool: over many seeds each wins about half of them."""
    wins = np.zeros(20)
    for seed in range(200):
        plan = si_blurry_plan(np.arange(200) % 20, disjoint_class_pct=0, blurry_sample_pct=5, seed=seed)
        wins += np.bincount(plan.targets[sorted(displaced(plan))], minlength=20)
    assert wins.sum() == 200 * 10
    assert (abs(wins - 100) < 5 * np.sqrt(200 / 4)).all()


def test_pooled_samples_are_chosen_at_random_within_their_class():
    """The published sampler takes the first ones; here every sample of a class has the same chance."""
    times = np.zeros(40)
    for seed in range(300):
        plan = si_blurry_plan(
            np.repeat([0, 1], 20), n_sessions=2, disjoint_class_pct=0, blurry_sample_pct=50, seed=seed
        )
        times[sorted(displaced(plan))] += 1
    assert (abs(times - 150) < 5 * np.sqrt(300 / 4)).all()


def test_destinations_follow_random_weights_and_avoid_home():
    sizes = [
        si_blurry_plan(BALANCED, n_sessions=4, varying=varying, disjoint_class_pct=0, blurry_sample_pct=100, seed=s)
        for varying in (True, False)
        for s in range(30)
    ]
    spread = [np.ptp(plan.effective["session_sizes"]) for plan in sizes]
    assert all(plan.effective["blur"] == 1.0 for plan in sizes)
    assert np.median(spread[:30]) > 100  # uniform on the simplex: sizes differ widely
    assert max(spread[30:]) <= 4  # dealt in turn: equal up to one sample a home session


def test_destinations_have_the_stated_probabilities():
    """From home h to s with probability w_s / sum of the other w, which are the first draws of the fourth child."""
    plan = si_blurry_plan(np.arange(30_000) % 10, n_sessions=4, disjoint_class_pct=0, blurry_sample_pct=100, seed=11)
    child = np.random.SeedSequence(11).spawn(5)[3]
    weights = np.random.Generator(np.random.PCG64(child)).standard_exponential(4)
    for home in range(4):
        received = plan.counts[:, plan.home_session == home].sum(axis=1)
        share = np.where(np.arange(4) == home, 0, weights) / (weights.sum() - weights[home])
        deviation = np.sqrt(received.sum() * share * (1 - share))
        assert (abs(received - received.sum() * share) <= 5 * deviation).all()


class GivenNumbers:
    """A random source that returns what a test chooses."""

    def __init__(self, weights, uniform):
        self.weights, self.uniform = np.array(weights), np.array(uniform)

    def standard_exponential(self, size):
        return self.weights

    def random(self, size):
        return self.uniform


@given(
    weights=st.lists(st.floats(1e-12, 40), min_size=2, max_size=6),
    uniform=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
    data=st.data(),
)
@settings(deadline=None, max_examples=100)
def test_no_rounding_leads_home(weights, uniform, data):
    sessions = len(weights)
    homes = np.array([data.draw(st.integers(0, sessions - 1)) for _ in uniform])
    shape = SiBlurrySettings(n_sessions=sessions)
    destinations = _random_spread(homes, shape, GivenNumbers(weights, uniform))
    assert (destinations != homes).all()
    assert ((destinations >= 0) & (destinations < sessions)).all()


def test_equal_sessions_spread_every_class_evenly():
    plan = si_blurry_plan(BALANCED, n_sessions=5, varying=False, disjoint_class_pct=0, blurry_sample_pct=80)
    for c in range(20):
        elsewhere = np.delete(plan.counts[:, c], plan.home_session[c])
        assert plan.counts[plan.home_session[c], c] == 6
        assert elsewhere.tolist() == [6, 6, 6, 6]


def test_one_stream_without_task_structure():
    plan = si_blurry_plan(
        BALANCED, n_sessions=4, varying=False, disjoint_class_pct=0, blurry_sample_pct=100, allow_home=True
    )
    assert plan.effective["session_sizes"] == [150] * 4
    assert np.ptp(plan.counts) <= 1


# --- edge cases and refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", "official", "misa"])
@pytest.mark.parametrize("varying", [True, False])
def test_one_session(mode, varying):
    plan = si_blurry_plan(BALANCED, n_sessions=1, blurry_sample_pct=100, mode=mode, varying=varying)
    assert plan.effective["blur"] == 0
    assert sorted(plan.order.tolist()) == list(range(600))
    assert plan.order.tolist() != list(range(600))


@pytest.mark.parametrize("n, m", [(0, 10), (100, 10), (50, 0), (0, 100), (100, 100), (0, 0)])
def test_extreme_percentages(n, m):
    for mode in ("exact", "official"):
        plan = si_blurry_plan(BALANCED, disjoint_class_pct=n, blurry_sample_pct=m, mode=mode)
        assert plan.effective["disjoint_ratio"] == n / 100
        if mode == "exact":
            assert plan.effective["blur"] == (m / 100 if n < 100 else 0)
            assert plan.warnings == ()


def test_one_class_and_one_sample():
    plan = si_blurry_plan([0, 0, 0], n_sessions=1)
    assert plan.effective["disjoint_classes"] == 1
    single = si_blurry_plan([4], num_classes=7, n_sessions=1, disjoint_class_pct=0)
    assert single.order.tolist() == [0]
    assert single.class_kind.tolist() == [2, 2, 2, 2, 1, 2, 2]
    assert single.home_session.tolist() == [-1, -1, -1, -1, 0, -1, -1]


def test_absent_classes_take_no_part():
    plan = si_blurry_plan(np.arange(300) % 10 * 2, num_classes=30)
    assert np.flatnonzero(plan.class_kind == ABSENT).tolist() == [*range(1, 20, 2), *range(20, 30)]
    assert plan.effective["disjoint_classes"] == 5
    assert plan.effective["dropped_classes"] == 0
    assert plan.first_seen[1] == 300
    assert plan.warnings == ()


def test_classes_smaller_than_the_number_of_sessions():
    plan = si_blurry_plan([0, 1, 2, 2, 2, 2, 2, 2, 2, 2], n_sessions=3, disjoint_class_pct=0, blurry_sample_pct=50)
    assert plan.effective["blur"] == 0.5
    assert plan.effective["empty_sessions"] == 0


def test_streams_that_cannot_be_are_refused_with_advice():
    """Nine single samples must each leave home, and no session may stay empty: only full exchanges do."""
    with pytest.raises(PlanError, match="choose fewer sessions, a smaller blurry_sample_pct"):
        si_blurry_plan(np.arange(9), n_sessions=9, disjoint_class_pct=0, blurry_sample_pct=100)
    plan = si_blurry_plan(
        np.arange(9), n_sessions=9, disjoint_class_pct=0, blurry_sample_pct=100, allow_empty_sessions=True
    )
    assert plan.effective["blur"] == 1.0
    assert "sessions are empty" in plan.warnings[0]


REFUSALS = {
    "negative percentage": ({"blurry_sample_pct": -1}, "blurry_sample_pct=-1"),
    "percentage above 100": ({"disjoint_class_pct": 150}, "disjoint_class_pct=150"),
    "fraction": ({"blurry_sample_pct": 0.1}, "blurry_sample_pct=0.1"),
    "percentage as truth value": ({"blurry_sample_pct": True}, "blurry_sample_pct=True"),
    "no session": ({"n_sessions": 0}, "n_sessions=0"),
    "unknown mode": ({"mode": "oficial"}, "mode='oficial'"),
    "varying as text": ({"varying": "yes"}, "varying='yes'"),
    "no seed": ({"seed": None}, "seed=None"),
    "negative seed": ({"seed": -1}, "seed=-1"),
    "seed as truth value": ({"seed": True}, "seed=True"),
    "huge seed": ({"seed": 2**64}, "seed="),
    "no targets": ({"targets": []}, "targets are empty"),
    "matrix": ({"targets": np.zeros((4, 2), dtype=int)}, r"shape \(4, 2\)"),
    "ragged": ({"targets": [[1], [1, 2]]}, "targets"),
    "fractions": ({"targets": [0.0, 1.0]}, "float64"),
    "texts": ({"targets": ["cat", "dog"]}, "whole numbers"),
    "negative label": ({"targets": [0, 1, -1]}, "sample 2 has class id -1"),
    "label out of range": ({"num_classes": 10}, "class id 10, outside 0..9"),
    "no classes": ({"num_classes": 0}, "num_classes=0"),
    "names and number differ": ({"num_classes": 21, "class_names": ["a"] * 20}, "20 names for num_classes=21"),
    "fewer names than labels": ({"class_names": ["a"] * 19}, "outside 0..18"),
}


@pytest.mark.parametrize("mode", ["exact", "official"])
@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_key_and_value_in_one_line(case, mode):
    change, text = REFUSALS[case]
    with pytest.raises(PlanError, match=text) as refusal:
        si_blurry_plan(**({"targets": BALANCED, "mode": mode} | change))
    assert isinstance(refusal.value, ValueError)
    assert "\n" not in str(refusal.value)


def test_several_errors_are_reported_together():
    with pytest.raises(PlanError, match=r"n_sessions=0.*blurry_sample_pct=101"):
        si_blurry_plan(BALANCED, n_sessions=0, blurry_sample_pct=101)


def test_numpy_numbers_are_numbers():
    plan = si_blurry_plan(BALANCED, n_sessions=np.int64(4), seed=np.uint8(9), blurry_sample_pct=np.int32(20))
    assert plan == si_blurry_plan(BALANCED, n_sessions=4, seed=9, blurry_sample_pct=20)


def test_settings_have_ranges_and_descriptions():
    assert all(field.description for field in SiBlurrySettings.model_fields.values())
    assert SiBlurrySettings().model_dump() == {
        "n_sessions": 5,
        "disjoint_class_pct": 50,
        "blurry_sample_pct": 10,
        "mode": "exact",
        "varying": True,
        "allow_empty_sessions": False,
        "allow_home": False,
    }
    with pytest.raises(ValidationError):
        SiBlurrySettings(blurry_sample_pct=101)


def test_provenance_names_what_made_the_stream():
    exact = si_blurry_plan(BALANCED, dataset_name="digits")
    assert exact.provenance["dataset"] == "digits"
    assert exact.provenance["num_samples"] == 600
    assert exact.provenance["targets_sha256"] == exact.targets_sha256
    assert exact.provenance["libraries"].keys() == {"python", "numpy"}
    assert si_blurry_plan(BALANCED, mode="official").provenance["libraries"]["torch"] == torch.__version__


def test_planning_imports_neither_torch_nor_avalanche():
    code = (
        "import sys, scenarios; from scenarios import si_blurry_plan, StreamPlan, SiBlurrySettings;"
        "si_blurry_plan([0, 1, 2, 3] * 5, n_sessions=2).describe();"
        "assert not {'torch', 'avalanche', 'torchvision', 'timm', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_package_exports_are_complete():
    import scenarios

    assert sorted(scenarios._HOMES) == sorted(scenarios.__all__)
    assert {"StreamPlan", "si_blurry_plan"} <= set(dir(scenarios))
    with pytest.raises(AttributeError, match="nothing"):
        _ = scenarios.nothing


@pytest.mark.parametrize("mode, varying", [("exact", True), ("exact", False), ("official", True)])
def test_a_million_samples(mode, varying):
    """Under 2 s of processor time and 200 MB, by a wide margin; class-sorted targets are the slow case."""
    targets = np.sort(np.random.default_rng(0).integers(0, 1000, 1_000_000))
    arguments = {"n_sessions": 10, "blurry_sample_pct": 50, "mode": mode, "varying": varying}
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = si_blurry_plan(targets, **arguments)
        spent = time.process_time() - started
        assert plan.effective["dropped_samples"] == 0
        assert spent < 2
        if mode == "exact" and varying:
            del plan
            tracemalloc.start()
            si_blurry_plan(targets, **arguments)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 200e6
