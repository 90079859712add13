"""Average precision, CF1, OF1 and the best threshold: published values, scikit-learn, slow definitions, properties."""

from __future__ import annotations

import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multi_label_cases import slow_average_precision, slow_cf1, slow_cf1_from_mean_pr, slow_counts, slow_of1, tables
from sklearn.metrics import average_precision_score, f1_score

import cl_prompts.metrics as metrics
from cl_prompts.errors import MetricError
from cl_prompts.metrics.f1 import class_counts

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("mlcil_metrics_case*.npz"))


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    case = np.load(request.param)
    columns = np.zeros(case["logits"].shape[1], bool)
    columns[case["seen"]] = True
    return case, columns


def test_there_are_published_values_to_compare_with():
    assert GOLDEN


def test_published_values(golden):
    case, columns = golden
    result = metrics.evaluate_logits(case["logits"], case["targets"], columns)
    at = result.at(0.8)
    assert 100 * result.mean_average_precision == pytest.approx(float(case["official_mAP"]), abs=2e-5)
    assert 100 * at.of1 == pytest.approx(float(case["official_oF1"]), abs=2e-5)
    assert 100 * at.cf1 == pytest.approx(float(case["official_cF1"]), abs=2e-5)
    np.testing.assert_allclose(result.average_precision, case["official_ap_all"], rtol=0, atol=2e-6)
    seen = sorted(c for task in json.loads(str(case["config"]))["class_mask"] for c in task)
    assert len(seen) == len(columns)
    assert result.images == len(case["logits"])


def test_published_class_f1_and_the_other_cf1(golden):
    case, columns = golden
    probabilities = metrics.sigmoid32(case["logits"][:, columns])
    targets = case["targets"][:, columns]
    np.testing.assert_allclose(metrics.class_f1(probabilities, targets), case["official_class_f1"], rtol=0, atol=2e-6)
    counts = class_counts(probabilities, targets)
    assert counts.precision.mean() == pytest.approx(float(case["cp"]), abs=1e-12)
    assert counts.recall.mean() == pytest.approx(float(case["cr"]), abs=1e-12)
    other = metrics.cf1(probabilities, targets, kind="from_mean_pr")
    assert other == pytest.approx(float(case["cf1_from_mean_pr"]), abs=1e-12)
    assert metrics.evaluate_logits(case["logits"], case["targets"], columns).at(0.8).cf1_from_mean_pr == other


@pytest.mark.parametrize("scores", ["sigmoid", "logit"])
def test_stored_scikit_learn_values(golden, scores):
    case, columns = golden
    result = metrics.evaluate_logits(case["logits"], case["targets"], columns, scores=scores)
    np.testing.assert_allclose(result.average_precision[columns], case[f"sk_ap_{scores}"], rtol=0, atol=1e-12)
    assert np.isnan(result.average_precision[~columns]).all()
    # As scikit-learn returns it, a class without positives has 0.
    np.testing.assert_allclose(
        np.nan_to_num(metrics.average_precision(metrics.sigmoid32(case["logits"]), case["targets"])[columns]),
        case["sk_ap_zero"],
        rtol=0,
        atol=1e-12,
    )


@given(tables())
def test_average_precision_equals_the_definition_and_scikit_learn(table):
    logits, targets, known = table
    ours = metrics.average_precision(logits, targets, known)
    for c, value in enumerate(ours):
        exact = slow_average_precision(logits[:, c].tolist(), targets[:, c].tolist(), known[:, c])
        assert value == pytest.approx(math.nan if exact is None else float(exact), abs=1e-12, nan_ok=True)
        if exact is not None:
            rows = known[:, c]
            assert value == pytest.approx(average_precision_score(targets[rows, c], logits[rows, c]), abs=1e-12)


@given(tables(), st.sampled_from([0.2, 0.5, 0.8]))
def test_f1_equals_counting_label_by_label(table, threshold):
    logits, targets, known = table
    probabilities = metrics.sigmoid32(logits)
    classes = slow_counts(probabilities, targets, known, threshold)
    arguments = {"threshold": threshold, "known": known}
    assert metrics.cf1(probabilities, targets, **arguments) == pytest.approx(float(slow_cf1(classes)), abs=1e-12)
    assert metrics.of1(probabilities, targets, **arguments) == pytest.approx(float(slow_of1(classes)), abs=1e-12)
    assert metrics.cf1(probabilities, targets, kind="from_mean_pr", **arguments) == pytest.approx(
        float(slow_cf1_from_mean_pr(classes)), abs=1e-12
    )
    result = metrics.evaluate_logits(
        logits, targets, np.ones(targets.shape[1], bool), thresholds=[threshold], known=known
    )
    assert result.at(threshold).of1 == metrics.of1(probabilities, targets, **arguments)
    assert result.at(threshold).cf1 == metrics.cf1(probabilities, targets, **arguments)


@given(tables())
def test_f1_equals_scikit_learn(table):
    logits, targets, _ = table
    probabilities = metrics.sigmoid32(logits)
    predicted = probabilities > np.float32(0.5)
    for average, value in (("macro", metrics.cf1), ("micro", metrics.of1)):
        # scikit-learn takes a table with one column for the labels of two classes.
        if targets.shape[1] > 1:
            expected = f1_score(targets, predicted, average=average, zero_division=0)
            assert value(probabilities, targets, 0.5) == pytest.approx(expected, abs=1e-12)


@given(tables(most_samples=8))
def test_best_threshold_is_the_best_of_all(table):
    logits, targets, known = table
    probabilities = metrics.sigmoid32(logits)
    best = metrics.best_threshold(probabilities, targets, known=known)
    if not known.any():
        assert math.isnan(best.threshold)
        return
    assert metrics.of1(probabilities, targets, best.threshold, known=known) == best.of1
    candidates = [-1.0, *np.unique(probabilities).tolist()]
    values = [slow_of1(slow_counts(probabilities, targets, known, t)) for t in candidates]
    assert best.of1 == pytest.approx(float(max(values)), abs=1e-15)
    predicted = [sum(p for _, p, _ in slow_counts(probabilities, targets, known, t)) for t in candidates]
    fewest = min(number for number, value in zip(predicted, values, strict=True) if value == max(values))
    assert sum(p for _, p, _ in slow_counts(probabilities, targets, known, best.threshold)) == fewest
    result = metrics.evaluate_logits(logits, targets, np.ones(targets.shape[1], bool), known=known)
    assert (result.oracle.threshold, result.oracle.of1) == best
    assert result.oracle.cf1 == metrics.cf1(probabilities, targets, best.threshold, known=known)


def same(first, second):
    """Bit for bit the same result on the columns of the first."""
    number = len(first.columns)
    assert repr(first.thresholds) == repr(second.thresholds)
    assert repr(first.oracle) == repr(second.oracle)
    np.testing.assert_array_equal(first.average_precision, second.average_precision[:number])
    np.testing.assert_array_equal(first.positives, second.positives[:number])
    assert repr(first.mean_average_precision) == repr(second.mean_average_precision)
    assert first.images == second.images


@given(tables(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_unseen_columns_change_nothing(table, more, seed):
    logits, targets, known = table
    n, c = targets.shape
    generator = np.random.default_rng(seed)
    other = generator.choice(np.array([np.nan, np.inf, -np.inf, 100.0, 0.0], np.float32), (n, more))
    result = metrics.evaluate_logits(logits, targets, np.ones(c, bool), known=known)
    wider = metrics.evaluate_logits(
        np.hstack([logits, other]),
        np.hstack([targets, generator.integers(0, 2, (n, more), np.uint8)]),
        np.arange(c + more) < c,
        known=np.hstack([known, generator.random((n, more)) < 0.5]),
    )
    same(result, wider)
    assert np.isnan(wider.average_precision[c:]).all()
    assert not wider.positives[c:].any()
    alone = [metrics.average_precision(logits[:, [k]], targets[:, [k]], known[:, [k]])[0] for k in range(c)]
    np.testing.assert_array_equal(metrics.average_precision(logits, targets, known), alone)


@given(tables(most_samples=40), st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_nothing(table, random):
    logits, targets, known = table
    rows = list(range(len(targets)))
    random.shuffle(rows)
    columns = np.ones(targets.shape[1], bool)
    same(
        metrics.evaluate_logits(logits, targets, columns, known=known),
        metrics.evaluate_logits(logits[rows], targets[rows], columns, known=known[rows]),
    )


@given(tables())
def test_labels_that_are_not_known_may_be_anything(table):
    logits, targets, known = table
    columns = np.ones(targets.shape[1], bool)
    result = metrics.evaluate_logits(logits, targets, columns, known=known)
    same(result, metrics.evaluate_logits(logits, np.where(known, targets, 1 - targets), columns, known=known))
    same(result, metrics.evaluate_logits(logits, np.where(known, targets, np.nan).astype(np.float32), columns))
    same(result, metrics.evaluate_logits(np.where(known, logits, -logits), targets, columns, known=known))
    same(
        metrics.evaluate_logits(logits, targets, columns),
        metrics.evaluate_logits(logits, targets, columns, known=np.ones_like(known)),
    )


def test_the_threshold_is_strict_in_float32():
    logits = np.array([[1.3862944], [1.3862945]], np.float32)
    assert metrics.sigmoid32(logits)[:, 0].tolist() == [np.float32(0.8)] * 2
    above = np.nextafter(np.float32(1.3862945), np.float32(2), dtype=np.float32)
    logits = np.array([[1.3862944], [above + np.float32(1e-6)]], np.float32)
    assert metrics.class_f1(metrics.sigmoid32(logits), [[1], [0]]).tolist() == [0.0]
    assert metrics.class_f1(metrics.sigmoid32(logits), [[0], [1]]).tolist() == [1.0]
    # 0.8 in float64 is larger than in float32: the comparison must not be made there.
    assert metrics.of1(np.array([[0.8]]), [[1]], 0.8) == 0.0


def test_saturated_sigmoids_tie_and_logits_do_not():
    logits = np.array([[20.0], [30.0], [40.0], [-200.0]], np.float32)
    targets = np.array([[0], [0], [1], [0]])
    columns = np.array([True])
    assert metrics.evaluate_logits(logits, targets, columns).average_precision[0] == pytest.approx(1 / 3)
    assert metrics.evaluate_logits(logits, targets, columns, scores="logit").average_precision[0] == 1.0


def test_sigmoid_is_that_of_float32_arithmetic_and_never_warns():
    logits = np.concatenate([np.linspace(-120, 120, 4001), [np.inf, -np.inf, 0, -0.0]]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = metrics.sigmoid32(logits)
    assert values.dtype == np.float32
    exact = 1 / (1 + np.exp(-logits.astype(np.float64).clip(-700)))
    np.testing.assert_allclose(values, exact, rtol=2e-7, atol=1e-38)
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(values, torch.sigmoid(torch.from_numpy(logits)).numpy(), rtol=4e-7, atol=1e-37)
    assert np.array_equal(values == 1, torch.sigmoid(torch.from_numpy(logits)).numpy() == 1)


def test_what_cannot_be_measured_is_nan_and_what_is_empty_is_zero():
    nothing = metrics.evaluate_logits(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.ones(3, bool))
    no_column = metrics.evaluate_logits(np.zeros((2, 3), np.float32), np.ones((2, 3), np.uint8), np.zeros(3, bool))
    for result in (nothing, no_column):
        values = [result.mean_average_precision, *result.at(0.8)[1:], *result.oracle]
        assert all(math.isnan(value) for value in values)
        assert np.isnan(result.average_precision).all()
        assert result.positives.tolist() == [0, 0, 0]
    quiet = metrics.evaluate_logits(np.full((3, 2), -9.0, np.float32), np.zeros((3, 2), np.uint8), np.ones(2, bool))
    assert math.isnan(quiet.mean_average_precision)
    assert quiet.at(0.8)[1:] == quiet.oracle[1:] == (0.0, 0.0, 0.0)
    assert math.isnan(metrics.class_f1(np.zeros((0, 1)), np.zeros((0, 1), int))[0])


def test_a_class_without_positives_stays_in_cf1_and_not_in_map():
    logits = np.array([[9.0, -9.0], [-9.0, -9.0]], np.float32)
    result = metrics.evaluate_logits(logits, np.array([[1, 0], [0, 0]]), np.ones(2, bool))
    assert result.mean_average_precision == 1.0
    assert result.at(0.8).cf1 == 0.5
    assert result.at(0.8).of1 == 1.0
    with pytest.raises(MetricError, match=r"threshold=0.7 was not evaluated \(measured: 0.8, 0.5\)"):
        result.at(0.7)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": np.array([0, 1])}, r"one class id a sample.*mAP.*use accuracy"),
        ({"targets": np.array([[0, 2], [1, 0]])}, "value 2 is not a label"),
        ({"targets": np.array([[0.0, 0.5], [1, 0]])}, "value 0.5 is not a label"),
        ({"targets": np.array([["a", "b"], ["a", "b"]])}, "dtype"),
        ({"targets": np.zeros((2, 2, 1), int)}, r"shape \(2, 2, 1\)"),
        ({"logits": np.zeros((2, 3), np.float32)}, r"logits \(2, 3\), targets \(2, 2\)"),
        ({"columns": np.array([0, 1])}, "columns int64"),
        ({"columns": np.ones(3, bool)}, r"columns bool \(3,\)"),
        ({"known": np.ones((2, 2))}, "known: float64"),
        ({"known": np.ones((2, 3), bool)}, r"known: bool \(2, 3\)"),
        ({"logits": np.array([[0, np.nan], [0, 0]], np.float32)}, "NaN"),
        ({"scores": "softmax"}, "scores='softmax'.*sigmoid, logit"),
    ],
)
def test_what_is_not_multi_label_is_refused_in_one_line(change, message):
    good = {"logits": np.zeros((2, 2), np.float32), "targets": np.eye(2, dtype=int), "columns": np.ones(2, bool)}
    metrics.evaluate_logits(**good)
    with pytest.raises(MetricError, match=message) as error:
        metrics.evaluate_logits(**(good | change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metric",
    [metrics.average_precision, metrics.class_f1, metrics.cf1, metrics.of1, metrics.best_threshold],
    ids=lambda metric: metric.__name__,
)
def test_every_multi_label_metric_refuses_class_ids_and_names_accuracy(metric):
    with pytest.raises(MetricError, match=r"one class id a sample.*accuracy"):
        metric(np.zeros((3, 4)), np.array([0, 3, 1]))
    with pytest.raises(MetricError, match="one score a label"):
        metric(np.zeros((3, 2)), np.zeros((3, 4), int))
    with pytest.raises(MetricError, match="NaN among"):
        metric(np.full((3, 4), np.nan), np.zeros((3, 4), int))


def test_names_of_cf1_and_shapes_of_map_are_checked():
    with pytest.raises(MetricError, match="cf1='micro': choose one of mean_f1, from_mean_pr"):
        metrics.cf1([[0.5]], [[1]], kind="micro")
    with pytest.raises(MetricError, match="mean_average_precision"):
        metrics.mean_average_precision([[0.5]])
    assert math.isnan(metrics.mean_average_precision([]))


def test_a_large_test_set_takes_a_moment():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(5000, 80)).astype(np.float32)
    targets = (generator.random(logits.shape) < 0.04).astype(np.uint8)
    start = time.perf_counter()
    metrics.evaluate_logits(logits, targets, np.ones(80, bool))
    assert time.perf_counter() - start < 5
