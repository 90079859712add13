"""Multi-label class-incremental plans: published splits exactly, class orders, evaluation images, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scenarios.errors import PlanError
from scenarios.mlcil import (
    MLCILSettings,
    check_task_division,
    evaluation_images,
    mlcil_plan,
    multi_label_plan,
    task_indices,
)
from scenarios.plan import ABSENT, DISJOINT, StreamPlanWarning

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("mlcil_split_case*.json"))

# Samples 0 and 3 have labels of both tasks of two classes, sample 2 has none, class 1 has no sample.
LABELS = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=np.uint8)


def matrix(label_sets, classes):
    return np.array([[int(column in labels) for column in range(classes)] for labels in label_sets], dtype=np.uint8)


def quiet_plan(labels=LABELS, **options):
    with pytest.warns(StreamPlanWarning):
        return mlcil_plan(labels, **options)


# --- published splits ------------------------------------------------------------------------------------------------


def test_there_are_published_splits():
    assert GOLDEN


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning")
def test_published_splits_exactly(path):
    case = json.loads(path.read_text(encoding="utf-8"))
    classes, base, tasks = case["num_classes"], case["base_classes"], case["num_tasks"]
    increment = (classes - base) // (tasks - 1) if tasks > 1 else classes
    shuffled = case["shuffle"] == "yes"
    split = multi_label_plan(
        classes,
        base,
        increment,
        ("random", case["seed"]) if shuffled else "alphabetical",
        class_names=case["category_names"],
    )
    assert split == case["class_mask"]

    train, val = matrix(case["train_targets"], classes), matrix(case["val_targets"], classes)
    plan = mlcil_plan(
        train,
        base=base,
        increment=increment,
        order="random" if shuffled else "alphabetical",
        seed=case["seed"],
        class_names=case["category_names"],
    )
    assert plan.tasks == tuple(tuple(sorted(one)) for one in case["class_mask"])
    assert len(plan.sessions) == tasks
    for task, expected in enumerate(case["tasks"]):
        assert plan.sessions[task].tolist() == expected["train"]
        assert task_indices(val, case["class_mask"][task]).tolist() == expected["val"]
        chosen = evaluation_images(val, plan.seen_after[task], "seen")
        assert np.flatnonzero(chosen).tolist() == case["eval_seen"][task]


# --- division of the classes -----------------------------------------------------------------------------------------


@given(
    first=st.integers(1, 12),
    increment=st.integers(1, 6),
    later=st.integers(0, 6),
    order=st.randoms(use_true_random=False),
)
def test_every_class_is_in_one_task_of_the_right_size(first, increment, later, order):
    classes = list(range(first + increment * later))
    order.shuffle(classes)
    split = multi_label_plan(len(classes), first, increment, classes)
    assert [len(task) for task in split] == [first] + [increment] * later
    assert [one for task in split for one in task] == classes


def test_base_zero_means_the_increment():
    assert multi_label_plan(6, 0, 2) == [[0, 1], [2, 3], [4, 5]]
    assert multi_label_plan(80, 40, 10)[1] == list(range(40, 50))
    assert [len(task) for task in multi_label_plan(20, 4, 2)] == [4] + [2] * 8
    assert multi_label_plan(5, 5, 9) == multi_label_plan(5, 5, 2) == [[0, 1, 2, 3, 4]]


def test_alphabetical_order_is_by_name_in_code_points():
    names = ["zebra", "apple", "Bus", "hot dog", "hotdog"]
    assert multi_label_plan(5, 1, 1, class_names=names) == [[2], [1], [3], [4], [0]]
    assert multi_label_plan(5, 1, 1) == [[0], [1], [2], [3], [4]]


def test_random_order_follows_the_seed_and_leaves_the_global_state():
    import random

    random.seed(4)
    before = random.getstate()
    plan = quiet_plan(order="random", seed=13)
    assert random.getstate() == before
    expected = list(range(4))
    random.Random(13).shuffle(expected)
    assert multi_label_plan(4, 2, 2, ("random", 13)) == [expected[:2], expected[2:]]
    assert plan.tasks == (tuple(sorted(expected[:2])), tuple(sorted(expected[2:])))


SPLIT_REFUSALS = {
    "no increment": ({"increment": 0}, "increment=0: give a whole number from 1"),
    "increment above the classes": ({"increment": 7}, "base=0 with increment=7: the first task would have more than"),
    "negative base": ({"base": -1}, "base=-1"),
    "base above the classes": ({"base": 7}, "base=7: give a whole number from 0 to 6"),
    "remainder": ({"base": 1}, "base=1 with increment=2: the 5 classes after the first task cannot be divided"),
    "remainder of equal tasks": ({"increment": 4}, "increment=4: the 2 classes"),
    "class twice": ({"order": [0, 1, 2, 3, 4, 4]}, "order="),
    "class missing": ({"order": [0, 1, 2, 3, 4]}, "6 class ids 0..5"),
    "words": ({"order": "by size"}, 'give "alphabetical"'),
    "truth values": ({"order": [False, True, 2, 3, 4, 5]}, "order="),
    "seed of words": ({"order": ("random", "one")}, "order: seed='one'"),
    "names of other classes": ({"class_names": ["a", "b"]}, "class_names has 2 names for 6 classes"),
    "no classes": ({"num_classes": 0}, "num_classes=0"),
}


@pytest.mark.parametrize("case", SPLIT_REFUSALS)
def test_divisions_are_refused_in_one_line(case):
    change, text = SPLIT_REFUSALS[case]
    with pytest.raises(PlanError) as refusal:
        multi_label_plan(**({"num_classes": 6, "base": 0, "increment": 2} | change))
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


# --- evaluation images -----------------------------------------------------------------------------------------------


def label_rows(classes=5):
    return st.lists(st.lists(st.integers(0, 1), min_size=classes, max_size=classes), min_size=1, max_size=12)


@given(rows=label_rows(), seen=st.lists(st.booleans(), min_size=5, max_size=5), more=st.integers(0, 4))
def test_evaluation_images_against_loops(rows, seen, more):
    final = [one or column == more for column, one in enumerate(seen)]
    allowed = {"seen": seen, "all": [True] * 5, "final_seen": final}
    for rule, columns in allowed.items():
        chosen = evaluation_images(rows, seen, rule, final)
        assert chosen.tolist() == [any(label and use for label, use in zip(row, columns, strict=True)) for row in rows]
        assert not chosen[~np.array(rows, dtype=bool).any(axis=1)].any()


def test_unknown_rules_are_refused():
    with pytest.raises(PlanError, match="eval_images='most': choose seen, all, final_seen"):
        evaluation_images(LABELS, [True] * 4, "most")
    with pytest.raises(PlanError, match="needs final"):
        evaluation_images(LABELS, [True] * 4, "final_seen")
    for classes in ([0, 1], [0, 1, 2, 3], [True] * 3):
        with pytest.raises(PlanError, match="give one bool a class"):
            evaluation_images(LABELS, classes)
        with pytest.raises(PlanError, match=r"final is .* give one bool a class"):
            evaluation_images(LABELS, [True] * 4, "final_seen", classes)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_an_image_returns_in_every_task_of_its_labels():
    plan = quiet_plan()
    assert [rows.tolist() for rows in plan.sessions] == [[0, 3], [0, 1, 3]]
    assert plan.visible(0).tolist() == [[True, True, False, False]] * 2
    assert plan.visible(1).tolist() == [[False, False, True, True]] * 3
    assert plan.counts.tolist() == [[2, 0, 0, 0], [0, 0, 2, 2]]
    assert plan.seen_after.tolist() == [[True, True, False, False], [True] * 4]
    assert plan.class_kind.tolist() == [DISJOINT, ABSENT, DISJOINT, DISJOINT]
    assert plan.home_session.tolist() == [0, -1, 1, 1]
    assert plan.session_ends.tolist() == [2, 5]
    assert plan.stream_batch is None
    assert (plan.effective["presentations"], plan.effective["distinct_samples"]) == (5, 3)
    assert plan.effective["missing_label_rate"] == pytest.approx(1 - 6 / 11)


def test_known_false_is_hidden_in_its_own_task():
    known = np.ones_like(LABELS, dtype=bool)
    known[1, 2] = False
    plan = quiet_plan(known=known)
    assert plan.visible(1).tolist() == [
        [False, False, True, True],
        [False, False, False, True],
        [False] * 2 + [True] * 2,
    ]
    assert plan != quiet_plan()


def test_description_counts_presentations_and_images():
    text = "\n".join(quiet_plan(class_names=["ant", "bee", "cow", "dog"]).describe())
    for part in (
        "5 presentations of 3 distinct samples (4 in the data set), 2 sessions",
        "tasks of 2 2 classes, alphabetical order",
        "sessions  2 3 samples",
        "warning   1 of 4 samples have no label and are never presented",
        "warning   1 of 4 classes have no visible label: bee",
    ):
        assert part in text


def test_short_streams_warn():
    with pytest.warns(StreamPlanWarning, match="MLCIL stream: 1 of 4 samples have no label"):
        mlcil_plan(LABELS)


ORDERS = "give alphabetical, random (drawn with the seed, which is set apart), or a list of all class ids, each once"


@pytest.mark.parametrize("order", ["rnd", ("random", 3), [0, 1, 2, 3, 3], [0, 1.0], [True, 0], 7, None])
def test_orders_are_refused_with_what_every_way_in_takes(order):
    with pytest.raises(PlanError) as refusal:
        mlcil_plan(LABELS, order=order)
    assert str(refusal.value) == f"MLCIL stream: order={order!r}: {ORDERS}"
    with pytest.raises(ValidationError, match=re.escape(ORDERS)) as invalid:
        MLCILSettings(order=order)
    assert invalid.value.error_count() == 1


def test_orders_of_other_classes_are_refused():
    with pytest.raises(PlanError, match=r"give alphabetical, random \(drawn .* a list of the 4 class ids 0\.\.3"):
        mlcil_plan(LABELS, order=[0, 1, 2])
    assert quiet_plan(order=range(4)) == quiet_plan(order=np.arange(4)) == quiet_plan(order=(0, 1, 2, 3))


@pytest.mark.parametrize(
    "arguments, advice",
    [
        ((20, 0, 3), "choose increment=1, 2, 4, 5, 10 or 20, or another base"),
        ((20, 0, 21), "choose increment=1, 2, 4, 5, 10 or 20, or another base"),
        ((20, 7, 2), "choose increment=1 or 13, or another base"),
        ((20, 19, 2), "choose increment=1, or another base"),
        ((20, 21, 2), "base=21: give a whole number from 0 to 20"),
    ],
)
def test_divisions_name_what_is_possible(arguments, advice):
    texts = []
    for refused in (check_task_division, multi_label_plan):
        with pytest.raises(PlanError, match=re.escape(advice)) as refusal:
            refused(*arguments)
        texts.append(str(refusal.value))
    assert texts[0] == texts[1]


@given(classes=st.integers(1, 30), base=st.integers(0, 30), increment=st.integers(1, 31))
def test_named_increments_are_all_that_divide(classes, base, increment):
    assume(base <= classes)
    possible = []
    for one in range(1, classes + 1):
        try:
            check_task_division(classes, base, one)
        except PlanError:
            continue
        possible.append(one)
        assert sum(map(len, multi_label_plan(classes, base, one))) == classes
    try:
        check_task_division(classes, base, increment)
    except PlanError as refusal:
        named = re.search("increment=([0-9, or]+), or another base", str(refusal))
        assert [int(one) for one in re.findall("[0-9]+", named[1])] == possible


PLAN_REFUSALS = {
    "task without images": ({"base": 1, "increment": 1}, "task 1: no training image has a label of its classes [1]"),
    "class ids": ({"targets": [0, 1, 2]}, "one class id a sample"),
    "other values": ({"targets": [[0, 2]]}, "other values than whole 0 and 1"),
    "floats": ({"targets": [[0.0, 1.0]]}, "targets of type float64"),
    "empty": ({"targets": np.zeros((0, 3), dtype=np.uint8)}, "shape (0, 3)"),
    "ragged": ({"targets": [[0, 1], [1]]}, "targets cannot be read"),
    "known of another shape": ({"known": np.ones((2, 2), dtype=bool)}, "known is bool (2, 2)"),
    "known contradicts": ({"known": np.zeros((4, 4), dtype=bool)}, "sample 0 has label 0 but does not know it"),
    "seed": ({"seed": -1}, "seed=-1"),
    "order": ({"order": "size"}, "order"),
}


@pytest.mark.parametrize("case", PLAN_REFUSALS)
def test_plans_are_refused_in_one_line(case):
    change, text = PLAN_REFUSALS[case]
    with pytest.raises(PlanError) as refusal:
        mlcil_plan(**({"targets": LABELS} | change))
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_settings_take_what_a_config_file_has():
    chosen = MLCILSettings(base=10, increment=2, order=[1, 0], eval_images="all", threshold=0.5)
    assert (chosen.order, chosen.threshold, MLCILSettings().order) == ((1, 0), 0.5, "alphabetical")
    for wrong in ({"order": "size"}, {"increment": 0}, {"threshold": 1}, {"eval_images": "some"}, {"batch": 3}):
        with pytest.raises(ValidationError):
            MLCILSettings(**wrong)


@given(
    labels=st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=1, max_size=30),
    increment=st.sampled_from([1, 2, 3, 6]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
@pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning")
def test_any_stream_against_loops(labels, increment, seed):
    split = multi_label_plan(6, 0, increment, ("random", seed))
    members = [[i for i, row in enumerate(labels) if any(row[column] for column in task)] for task in split]
    if not all(members):
        with pytest.raises(PlanError, match="no training image"):
            mlcil_plan(labels, increment=increment, order="random", seed=seed)
        return
    plan = mlcil_plan(labels, increment=increment, order="random", seed=seed)
    assert [rows.tolist() for rows in plan.sessions] == members
    for session, task in enumerate(split):
        assert plan.counts[session].tolist() == [
            sum(labels[i][column] for i in members[session]) if column in task else 0 for column in range(6)
        ]
