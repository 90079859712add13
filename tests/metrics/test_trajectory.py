"""The trajectory from stored logits against evaluating after every task, and calibration against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cl_prompts.metrics as metrics
from cl_prompts.errors import MetricError, PlanError

IMAGES = 50


class FrozenLanes:
    """A learner that gets one lane a task; finished lanes never change, and a column without a lane is noise."""

    def __init__(self, seed, classes=7, tasks=4):
        generator = np.random.default_rng(seed)
        self.generator = generator
        self.targets = (generator.random((IMAGES, classes)) < 0.25).astype(np.uint8)
        self.targets[generator.random(IMAGES) < 0.1] = 0
        self.known = generator.random(self.targets.shape) < 0.9
        self.task_of_class = np.concatenate([np.arange(tasks), generator.integers(0, tasks, classes - tasks)])
        generator.shuffle(self.task_of_class)
        self.seen_after = self.task_of_class <= np.arange(tasks)[:, None]
        final = (generator.integers(-3, 4, self.targets.shape) * 4).astype(np.float32)
        self.final = np.where(generator.random(final.shape) < 0.5, final, final + 20 * self.targets).astype(np.float32)
        self.lanes = generator.normal(size=(IMAGES, tasks, classes)).astype(np.float32)
        self.similarities = (generator.integers(-2, 3, (IMAGES, tasks)) / 2).astype(np.float32)

    def logits_after(self, task):
        """What the model gives after a task: columns without a lane are not those of later."""
        noise = self.generator.normal(size=self.final.shape).astype(np.float32)
        return np.where(self.seen_after[task], self.final, noise)

    def key_logits_after(self, task):
        """The lane of the most similar key among those so far, image by image."""
        rows = []
        for image in range(IMAGES):
            best = max(range(task + 1), key=lambda lane: (self.similarities[image, lane], -lane))
            rows.append(self.lanes[image, best])
        return np.stack(rows)

    def images(self, task, rule):
        """Indices of the images evaluated after a task, one by one."""
        allowed = {
            "seen": set(np.flatnonzero(self.seen_after[task])),
            "all": set(range(self.targets.shape[1])),
            "final_seen": set(np.flatnonzero(self.seen_after[-1])),
        }[rule]
        labels = [
            {c for c in np.flatnonzero(row) if known[c]} for row, known in zip(self.targets, self.known, strict=True)
        ]
        return [image for image in range(IMAGES) if labels[image] & allowed]


def assert_same(first, second):
    """Bit for bit."""
    assert (first.images, repr(first.thresholds), repr(first.oracle)) == (
        second.images,
        repr(second.thresholds),
        repr(second.oracle),
    )
    np.testing.assert_array_equal(first.average_precision, second.average_precision)
    np.testing.assert_array_equal(first.positives, second.positives)
    np.testing.assert_array_equal(first.columns, second.columns)


@pytest.mark.parametrize("scores", ["sigmoid", "logit"])
@pytest.mark.parametrize("rule", ["seen", "all", "final_seen"])
@pytest.mark.parametrize("seed", range(3))
def test_stored_logits_give_what_evaluating_after_every_task_gives(seed, rule, scores):
    lanes = FrozenLanes(seed)
    options = {"thresholds": (0.1, 0.5, 0.8), "scores": scores}
    stored = metrics.trajectory(
        lanes.final, lanes.targets, lanes.seen_after, eval_images=rule, known=lanes.known, **options
    )
    assert len(stored) == len(lanes.seen_after)
    for task, columns in enumerate(lanes.seen_after):
        rows = lanes.images(task, rule)
        known = lanes.known[rows]
        evaluated = metrics.evaluate_logits(
            lanes.logits_after(task)[rows], lanes.targets[rows], columns, known=known, **options
        )
        assert_same(stored[task], evaluated)
    numbers = [result.images for result in stored]
    assert (len(set(numbers)) == 1) == (rule != "seen")


@pytest.mark.parametrize("rule", ["seen", "all", "final_seen"])
def test_lanes_chosen_by_a_key_are_chosen_among_those_of_the_time(rule):
    lanes = FrozenLanes(5)
    targets = np.where(lanes.known, lanes.targets, np.nan).astype(np.float32)
    stored = metrics.trajectory(
        lanes.lanes, targets, lanes.seen_after, eval_images=rule, similarities=lanes.similarities
    )
    for task, columns in enumerate(lanes.seen_after):
        rows = lanes.images(task, rule)
        evaluated = metrics.evaluate_logits(lanes.key_logits_after(task)[rows], targets[rows], columns)
        assert_same(stored[task], evaluated)
    only_last = metrics.trajectory(lanes.key_logits_after(3), targets, lanes.seen_after, eval_images=rule)
    values = [[result.mean_average_precision for result in results] for results in (stored, only_last)]
    assert values[0][:3] != values[1][:3]
    assert values[0][3] == values[1][3]


def test_average_precision_of_frozen_logits_stays_on_all_images_and_falls_on_seen_ones():
    lanes = FrozenLanes(1)
    first = lanes.seen_after[0]
    for rule, constant in (("all", True), ("final_seen", True), ("seen", False)):
        results = metrics.trajectory(lanes.final, lanes.targets, lanes.seen_after, eval_images=rule)
        table = np.array([result.average_precision[first] for result in results])
        assert np.array_equal(table, np.broadcast_to(table[0], table.shape)) == constant
        assert (np.diff(table, axis=0) <= 1e-12).all()


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_task_accuracies_equal_counting_image_by_image(seed, by_key):
    lanes = FrozenLanes(seed, classes=5, tasks=3)
    targets = lanes.generator.integers(0, 5, IMAGES)
    logits, options = (lanes.lanes, {"similarities": lanes.similarities}) if by_key else (lanes.final, {})
    result = metrics.task_accuracies(logits, targets, lanes.seen_after, **options)
    for task in range(3):
        table = lanes.key_logits_after(task) if by_key else lanes.logits_after(task)
        hits = {earlier: [] for earlier in range(task + 1)}
        for image, true in enumerate(targets):
            if lanes.seen_after[task][true]:
                seen = np.flatnonzero(lanes.seen_after[task])
                hits[lanes.task_of_class[true]].append(max(seen, key=lambda c: (table[image, c], -c)) == true)
        means = [np.mean(own) if own else math.nan for own in hits.values()]
        assert result.of_task[task, : task + 1] == pytest.approx(means, nan_ok=True)
        assert np.isnan(result.of_task[task, task + 1 :]).all()
        assert result.average[task] == pytest.approx(np.nanmean(means) if any(hits.values()) else math.nan, nan_ok=True)
        everything = [hit for own in hits.values() for hit in own]
        assert result.total[task] == pytest.approx(np.mean(everything) if everything else math.nan, nan_ok=True)


def test_task_accuracies_agree_with_the_confusion_matrix():
    lanes = FrozenLanes(2)
    targets = lanes.generator.integers(0, 7, IMAGES)
    result = metrics.task_accuracies(lanes.final, targets, lanes.seen_after)
    confusion = metrics.confusion_matrix(targets, lanes.final.argmax(axis=1), 7)
    assert result.total[-1] == metrics.total_accuracy(np.diagonal(confusion), confusion.sum(axis=1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"logits": np.zeros((2, 4), np.float32)}, r"logits: shape \(2, 4\), expected \(2, 3\)"),
        ({"logits": np.zeros((2, 2, 3), np.float32)}, "need similarities"),
        ({"similarities": np.zeros((2, 3))}, r"similarities \(2, 3\).*expected \(2, 2\)"),
        ({"seen_after": np.ones((2, 4), bool)}, r"\(2, 4\)"),
        ({"seen_after": np.ones((2, 3), int)}, "seen_after: int64"),
        ({"seen_after": np.zeros((0, 3), bool)}, r"\(0, 3\)"),
        ({"seen_after": np.array([[True, True, True], [True, True, False]])}, "unseen after a later task"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    good = {
        "logits": np.zeros((2, 3), np.float32),
        "targets": np.array([[1, 0, 0], [0, 1, 1]]),
        "seen_after": np.array([[True, False, False], [True, True, True]]),
    }
    single = np.array([0, 2])
    for metric, targets in ((metrics.trajectory, good["targets"]), (metrics.task_accuracies, single)):
        metric(**(good | {"targets": targets}))
        with pytest.raises(MetricError, match=message) as error:
            metric(**(good | {"targets": targets} | change))
        assert "\n" not in str(error.value)
    with pytest.raises(PlanError, match="eval_images='some'"):
        metrics.trajectory(**good, eval_images="some")
    with pytest.raises(MetricError, match=r"one class id a sample.*accuracy"):
        metrics.trajectory(**(good | {"targets": single}))
    with pytest.raises(MetricError, match=r"multi-hot.*mAP"):
        metrics.task_accuracies(**good)
    with pytest.raises(MetricError, match="NaN in a column seen after task 1"):
        metrics.task_accuracies(np.array([[0, 0, np.nan]] * 2), single, good["seen_after"])
    metrics.task_accuracies(np.array([[0, np.nan, np.nan]] * 2), single[:1].repeat(2), good["seen_after"][:1])


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 4, 15]))
def test_calibration_equals_its_definition_label_by_label(seed, bins):
    lanes = FrozenLanes(seed, classes=4, tasks=3)
    columns = lanes.seen_after[1]
    report = metrics.calibration(lanes.final / 4, lanes.targets, columns, bins, known=lanes.known)
    probabilities = metrics.sigmoid32(lanes.final / 4).astype(float)

    def error(chosen):
        groups = {}
        for image in range(IMAGES):
            for c in chosen:
                if lanes.known[image, c]:
                    p = probabilities[image, c]
                    groups.setdefault(min(int(p * bins), bins - 1), []).append((p, lanes.targets[image, c]))
        total = sum(map(len, groups.values()))
        if not total:
            return math.nan, groups
        gaps = (len(g) * abs(np.mean([p for p, _ in g]) - np.mean([y for _, y in g])) for g in groups.values())
        return sum(gaps) / total, groups

    expected, groups = error(np.flatnonzero(columns))
    assert report.ece == pytest.approx(expected, abs=1e-12)
    for c in range(4):
        assert report.class_ece[c] == pytest.approx(error([c])[0] if columns[c] else math.nan, abs=1e-12, nan_ok=True)
    rows = report.rows()
    assert (report.bins, len(rows), rows[0]["lower"], rows[-1]["upper"]) == (bins, bins, 0, 1)
    for b, row in enumerate(rows):
        members = groups.get(b, [])
        assert row["count"] == len(members)
        if members:
            assert row["mean_probability"] == pytest.approx(np.mean([p for p, _ in members]))
            assert row["positive_share"] == pytest.approx(np.mean([y for _, y in members]))
            assert row["lower"] <= row["mean_probability"] <= row["upper"] + 1e-12
        else:
            assert math.isnan(row["mean_probability"])
            assert math.isnan(row["positive_share"])


def test_calibration_of_perfect_and_of_certainly_wrong_probabilities():
    sure = np.array([[40.0, -120.0], [-120.0, 40.0]], np.float32)
    columns = np.ones(2, bool)
    assert metrics.calibration(sure, np.eye(2, dtype=int), columns).ece == 0
    wrong = metrics.calibration(sure, 1 - np.eye(2, dtype=int), columns)
    assert (wrong.ece, wrong.class_ece.tolist()) == (1, [1, 1])
    assert wrong.count.tolist() == [2, *[0] * 13, 2]
    nothing = metrics.calibration(sure, np.eye(2, dtype=int), ~columns)
    assert math.isnan(nothing.ece)
    assert nothing.count.sum() == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bins": 0}, "bins=0"),
        ({"targets": np.array([0, 1])}, "one class id a sample"),
        ({"logits": np.zeros((2, 3))}, "expected"),
        ({"logits": np.full((2, 2), np.nan)}, "NaN"),
    ],
)
def test_calibration_refuses_what_it_is_not_defined_for(change, message):
    good = {"logits": np.zeros((2, 2)), "targets": np.eye(2, dtype=int), "columns": np.ones(2, bool)}
    with pytest.raises(MetricError, match=message):
        metrics.calibration(**(good | change))
