"""Formulas against slow oracles, hand-worked values and properties."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import re
import subprocess
import sys
import warnings
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

import cl_prompts.metrics as metrics
from cl_prompts.errors import MetricError

MODULES = [module.name for module in pkgutil.iter_modules(metrics.__path__)]
WITHOUT_EXAMPLES = {"records", "record_state", "summary", "multi_label_summary", "stream_points", "tables"}
fractions01 = st.floats(0, 1)
maybe_missing = st.one_of(fractions01, st.just(math.nan))


@pytest.mark.parametrize("name", MODULES)
def test_worked_examples_in_the_docstrings(name):
    module = importlib.import_module(f"cl_prompts.metrics.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0 or name in WITHOUT_EXAMPLES


def test_importing_metrics_loads_neither_torch_nor_avalanche():
    code = (
        "import sys, cl_prompts.metrics; print([m for m in ('torch', 'avalanche', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_nothing_imports_torchmetrics():
    # From version 1 on it counts a class without positives as average precision 0, see `multi_label`.
    root = Path(metrics.__file__).parents[2]
    pattern = re.compile(r"^\s*(import|from)\s+torchmetrics|import_module\(.torchmetrics", re.MULTILINE)
    sources = [path for room in ("cl_prompts", "scenarios") for path in (root / room).rglob("*.py")]
    assert len(sources) > 50
    assert [str(path) for path in (*sources, root / "run.py") if pattern.search(path.read_text())] == []
    declared = (root / "pyproject.toml").read_text()
    assert "torchmetrics" not in declared
    assert pattern.search("    from torchmetrics.classification import MultilabelAveragePrecision")


def rational_area(x, y):
    """Trapezoids by exact arithmetic, one for each pair of neighbouring points."""
    points = {}
    for position, height in zip(x, y, strict=True):
        if not math.isnan(height):
            points[position] = Fraction(height)
    pairs = sorted(points.items())
    if not pairs:
        return math.nan
    if len(pairs) == 1:
        return float(pairs[0][1])
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(pairs))
    return float(area / (pairs[-1][0] - pairs[0][0]))


@given(st.lists(st.tuples(st.integers(0, 20), maybe_missing), max_size=12))
def test_trapezoid_equals_exact_arithmetic(points):
    points = sorted(points, key=lambda pair: pair[0])
    x, y = [p[0] for p in points], [p[1] for p in points]
    assert metrics.a_auc_trapz(x, y) == pytest.approx(rational_area(x, y), abs=1e-12, nan_ok=True)


def test_trapezoid_of_a_straight_line_is_its_middle_whatever_the_gaps():
    x = np.array([1, 2, 10, 50, 51])
    assert metrics.a_auc_trapz(x, x / 100) == pytest.approx(0.26)
    with pytest.raises(MetricError, match="decreases"):
        metrics.a_auc_trapz([2, 1], [0.0, 0.0])
    with pytest.raises(MetricError, match=r"\(n,\)"):
        metrics.a_auc_trapz([2, 1], [0.0])


@given(st.lists(maybe_missing, max_size=8), maybe_missing)
def test_means_leave_out_what_was_not_measured(values, final):
    present = [Fraction(v) for v in values if not math.isnan(v)]
    mean = float(sum(present) / len(present)) if present else math.nan
    assert metrics.a_avg(values) == pytest.approx(mean, abs=1e-12, nan_ok=True)
    assert metrics.a_auc(values, final) == pytest.approx(mean if present else final, abs=1e-12, nan_ok=True)
    assert math.isnan(metrics.a_last([])) if not values else metrics.a_last(values) is not None


def slow_f_last(rows):
    lost = []
    for k in range(len(rows[0])):
        earlier = [row[k] for row in rows[:-1] if not math.isnan(row[k])]
        if earlier and max(earlier) > 0 and not math.isnan(rows[-1][k]):
            lost.append(max(earlier) - rows[-1][k])
    return (sum(lost) / len(lost) if lost else math.nan), len(lost)


matrices = st.integers(1, 5).flatmap(
    lambda classes: st.lists(st.lists(maybe_missing, min_size=classes, max_size=classes), min_size=1, max_size=5)
)


@given(matrices)
def test_forgetting_equals_the_definition_and_never_warns(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = metrics.f_last(rows)
        table = metrics.session_forgetting(rows, [0] * len(rows[0]))
    value, classes = slow_f_last(rows)
    assert result.value == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert result.classes == classes
    assert np.isnan(table[0]).all()
    for end in range(1, len(rows)):
        assert table[end, 0] == pytest.approx(slow_f_last(rows[: end + 1])[0], abs=1e-12, nan_ok=True)


def test_one_session_has_no_forgetting():
    assert metrics.f_last([[1.0, 0.5]]).classes == 0
    assert math.isnan(metrics.f_last([[1.0, 0.5]]).value)


def test_forgetting_may_be_negative_and_skips_classes_of_the_last_session():
    result = metrics.f_last([[0.5, math.nan, 0.0], [0.75, 1.0, 1.0]])
    assert result == (-0.25, 1)


def test_session_forgetting_separates_sessions_and_refuses_misfits():
    nan = math.nan
    rows = [[1.0, 0.5, nan, nan], [0.5, 0.5, 1.0, nan], [0.0, 0.25, 0.5, 1.0]]
    expected = [[nan, nan, nan], [0.25, nan, nan], [0.625, 0.5, nan]]
    np.testing.assert_allclose(metrics.session_forgetting(rows, [0, 0, 1, -1]), expected)
    with pytest.raises(MetricError, match=r"outside 0\.\.2"):
        metrics.session_forgetting(rows, [0, 0, 1, 3])
    with pytest.raises(MetricError, match="4 classes"):
        metrics.session_forgetting(rows, [0])
    with pytest.raises(MetricError, match="one row a session"):
        metrics.f_last([0.5, 0.5])


class_counts = st.lists(
    st.integers(0, 9).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total), st.integers(0, 2))),
    min_size=1,
    max_size=8,
)


@given(class_counts)
def test_accuracies_equal_counting_sample_by_sample(classes):
    correct, count, kind = (np.array(column) for column in zip(*classes, strict=True))
    samples = [(position < correct[k], kind[k]) for k in range(len(count)) for position in range(count[k])]

    def share(chosen):
        return sum(chosen) / len(chosen) if chosen else math.nan

    assert metrics.total_accuracy(correct, count) == pytest.approx(share([hit for hit, _ in samples]), nan_ok=True)
    for one in (0, 1):
        expected = share([hit for hit, which in samples if which == one])
        assert metrics.accuracy_of_kind(correct, count, kind, one) == pytest.approx(expected, nan_ok=True)
    np.testing.assert_array_equal(
        metrics.class_accuracy(correct, count), [c / n if n else math.nan for c, n in zip(correct, count, strict=True)]
    )


def test_accuracy_by_training_samples_puts_borders_into_the_upper_group():
    correct, count, seen = [1, 0, 4, 3], [2, 2, 4, 4], [0, 9, 10, 99]
    np.testing.assert_allclose(
        metrics.accuracy_by_training_samples(correct, count, seen, [0, 10, 100, 1000]), [0.25, 0.875, math.nan]
    )
    with pytest.raises(MetricError, match="increasing"):
        metrics.accuracy_by_training_samples(correct, count, seen, [10, 10])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60))
def test_confusion_matrix_equals_scikit_learn(pairs):
    true, predicted = [p[0] for p in pairs], [p[1] for p in pairs]
    ours = metrics.confusion_matrix(np.array(true, np.int64), np.array(predicted, np.int64), 5)
    reference = sklearn_confusion_matrix(true, predicted, labels=range(5)) if pairs else np.zeros((5, 5))
    np.testing.assert_array_equal(ours, reference)
    assert ours.dtype == np.int64


@pytest.mark.parametrize(
    "targets, message",
    [
        (np.array([[0, 1, 1], [1, 0, 0]]), "mAP"),
        (np.array([0.0, 1.0]), "float64"),
        (np.array([True, False]), "bool"),
        (np.array([0, 3]), r"class 3 is outside 0\.\.2"),
        (np.array([-1, 0]), r"class -1 is outside"),
        (np.array([0]), "1 targets but 2 predictions"),
        (np.zeros((1, 1, 1), int), "shape"),
    ],
)
def test_confusion_matrix_refuses_what_it_is_not_defined_for_in_one_line(targets, message):
    with pytest.raises(MetricError, match=message) as error:
        metrics.confusion_matrix(targets, np.array([0, 1]), 3)
    assert "\n" not in str(error.value)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_usage_entropy_lies_between_one_prompt_and_all(counts):
    value = metrics.usage_entropy(counts)
    used = sum(count > 0 for count in counts)
    if used == 0:
        assert math.isnan(value)
    else:
        assert -1e-12 <= value <= math.log(used) + 1e-12
        assert metrics.usage_entropy([count * 3 for count in counts]) == pytest.approx(value)
        assert metrics.usage_entropy([7] * used) == pytest.approx(math.log(used))


MULTI_HOT = np.array([[0, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    "metric",
    [
        lambda labels: metrics.require_one_label(labels, "accuracy"),
        lambda labels: metrics.confusion_matrix(labels, np.array([0, 1]), 3),
        lambda labels: metrics.confusion_matrix(np.array([0, 1]), labels, 3),
        lambda labels: metrics.total_accuracy(labels, 1 - labels),
        lambda labels: metrics.total_accuracy(labels, [1, 1, 1]),
        lambda labels: metrics.class_accuracy(labels, 1 - labels),
        lambda labels: metrics.official_class_accuracy(labels, 1 - labels),
        lambda labels: metrics.accuracy_of_kind(labels.T, 1 - labels.T, [0, 0, 0], 0),
        lambda labels: metrics.a_auc(labels),
        lambda labels: metrics.a_avg(labels),
        lambda labels: metrics.a_last(labels),
        lambda labels: metrics.f_last(labels),
        lambda labels: metrics.f_last(labels.astype(np.uint8)),
        lambda labels: metrics.session_forgetting(labels > 0, [0, 1, 1]),
        lambda labels: metrics.task_accuracies(np.zeros((2, 3)), labels, np.ones((1, 3), bool)),
    ],
)
def test_multi_hot_labels_are_refused_by_every_single_label_metric_and_the_right_one_is_named(metric):
    with pytest.raises(MetricError, match=r"mAP|average precision") as error:
        metric(MULTI_HOT)
    assert "\n" not in str(error.value)


def test_labels_of_the_right_kind_pass_both_doors():
    assert metrics.require_one_label(np.array([2, 0], np.uint8), "accuracy").tolist() == [2, 0]
    for rows in (MULTI_HOT, MULTI_HOT > 0, MULTI_HOT.astype(np.float32), np.where(MULTI_HOT, 1.0, np.nan)):
        assert metrics.require_several_labels(rows, "mAP").shape == (2, 3)
    with pytest.raises(MetricError, match=r"one class id a sample.*accuracy"):
        metrics.require_several_labels(np.array([2, 0]), "mAP")
