"""Summaries and tables of either kind: by hand, from the definition, and never of the wrong kind."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_points import point, small_run
from multi_label_cases import multi_label_point

import cl_prompts.metrics as metrics
from cl_prompts.errors import MetricError
from cl_prompts.metrics import EvaluationPoint, MultiLabelPoint, MultiLabelTables, SingleLabelTables
from scenarios.multi_label_settings import MultiLabelEvaluationSettings

KINDS = np.array([0, 0, 1, 2])


def tables(kinds=KINDS, **settings):
    return MultiLabelTables(kinds, MultiLabelEvaluationSettings(**settings))


def run(**options):
    """Two sessions of 30 samples: points, sessions."""
    points = [
        multi_label_point(10, 1, nominal=8, **options),
        multi_label_point(20, 3, **options),
        multi_label_point(30, 4, kind="final", **options),
    ]
    sessions = [
        multi_label_point(15, 2, kind="session", session=0, **options),
        multi_label_point(30, 4, kind="session", session=1, **options),
    ]
    return points, sessions


def test_summary_from_the_points():
    points, sessions = run()
    first, last = (point.result for point in sessions)
    summary = tables().summarise(points, sessions, sessions_planned=2)
    lost = first.average_precision[:2] - last.average_precision[:2]
    assert summary == {
        "map_avg": pytest.approx((first.mean_average_precision + last.mean_average_precision) / 2),
        "map_last": np.mean(last.average_precision),
        "map_anytime": pytest.approx((points[0].score + points[1].score) / 2),
        "map_last_disjoint": np.mean(last.average_precision[:2]),
        "map_last_blurry": last.average_precision[2],
        "cf1_last": last.at(0.8).cf1,
        "of1_last": last.at(0.8).of1,
        "cf1_last_from_mean_pr": last.at(0.8).cf1_from_mean_pr,
        "cf1_last_050": last.at(0.5).cf1,
        "of1_last_050": last.at(0.5).of1,
        "cf1_last_oracle": last.oracle.cf1,
        "of1_last_oracle": last.oracle.of1,
        "ap_forgetting": pytest.approx(lost.mean()),
        "oracle_threshold": last.oracle.threshold,
        "map_last_classes": 4,
        "map_last_unlabelled_classes": 1,
        "evaluated_images": 40,
        "ap_forgetting_classes": 2,
        "anytime_points": 2,
        "sessions_measured": 2,
        "exposed_classes": 4,
        "eval_images": "seen",
        "threshold": 0.8,
        "scores": "sigmoid",
        "cf1_kind": "mean_f1",
    }
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert list(tables().metrics) == list(summary)[: len(tables().metrics)]
    assert summary["of1_last_oracle"] >= max(summary["of1_last"], summary["of1_last_050"])


def test_the_choices_are_followed_and_recorded():
    points, sessions = run(thresholds=(0.6, 0.5))
    chosen = tables(threshold=0.6, cf1="from_mean_pr", eval_images="all", scores="logit")
    summary = chosen.summarise(points, sessions)
    last = sessions[-1].result
    assert summary["cf1_last"] == last.at(0.6).cf1_from_mean_pr != last.at(0.6).cf1
    assert summary["cf1_last_050"] == last.at(0.5).cf1_from_mean_pr
    assert summary["cf1_last_oracle"] == last.oracle.cf1_from_mean_pr
    assert [summary[name] for name in ("eval_images", "threshold", "scores", "cf1_kind")] == [
        "all",
        0.6,
        "logit",
        "from_mean_pr",
    ]
    row = chosen.curve_rows(points, sessions)[-1]
    assert (row["cf1"], row["of1"]) == (summary["cf1_last"], summary["of1_last"])
    assert "mean precision and recall at 0.6" in chosen.metrics["cf1_last"]
    assert chosen.thresholds == (0.6, 0.5)
    assert tables(threshold=0.5).thresholds == (0.5,)
    with pytest.raises(MetricError, match=r"threshold=0\.8 was not evaluated"):
        tables().summarise(points, sessions)


def test_nothing_a_part_and_a_stream_without_periodic_points():
    nothing = tables().summarise([], [], sessions_planned=2)
    assert all(nothing[name] is None for name in tables().metrics)
    assert (nothing["anytime_points"], nothing["ap_forgetting_classes"], nothing["eval_images"]) == (0, 0, "seen")

    points, sessions = run()
    part = tables().summarise(points[:1], sessions[:1], sessions_planned=2)
    assert [part[name] for name in tables().metrics if "last" in name] == [None] * 10
    assert part["map_avg"] == sessions[0].score
    assert part["map_anytime"] == points[0].score
    assert part["ap_forgetting"] is None

    short = tables().summarise(points[-1:], [], sessions_planned=None)
    assert short["map_last"] == points[-1].score
    assert (short["map_anytime"], short["anytime_points"]) == (None, 0)
    assert math.isnan(tables().curve_rows(points[-1:], [])[0]["map_anytime"])
    assert short["map_avg"] is None
    assert tables(np.zeros(4, int)).summarise(points, sessions)["map_last_blurry"] is None
    ended = tables(np.zeros(4, int)).summarise(points, sessions)
    assert ended["map_last_disjoint"] == ended["map_last"]


KIND_ROWS = {"map_last_disjoint", "map_last_blurry"}


@pytest.mark.parametrize(
    "kinds, hidden", [([0, 0, 1, 2], set()), ([0, 0, 0, 2], KIND_ROWS), ([1, 1, 1, 1], KIND_ROWS), ([2] * 4, KIND_ROWS)]
)
def test_rows_that_would_repeat_another_are_not_shown(kinds, hidden):
    points, sessions = run()
    chosen = tables(np.array(kinds))
    shown = chosen.shown(chosen.summarise(points, sessions))
    assert list(shown.items()) == [(name, text) for name, text in chosen.metrics.items() if name not in hidden]
    without = chosen.shown(chosen.summarise(points[-1:], sessions))
    assert set(shown) - set(without) == {"map_anytime"}
    single = SingleLabelTables(np.array(kinds))
    assert single.shown({}) == metrics.METRICS


def test_evaluations_are_counted_by_what_they_are():
    points, sessions = run()
    several = tables()
    counted = [
        several.counted(several.summarise(points[start:], sessions[:ends]), planned)
        for start, ends, planned in ((0, 2, None), (1, 1, None), (2, 1, 3), (2, 0, 1))
    ]
    assert counted == [
        ("2 anytime evaluations", "2 sessions"),
        ("1 anytime evaluation", "1 session"),
        ("", "1 of 3 sessions"),
        ("", "0 of 1 session"),
    ]
    single = SingleLabelTables(KINDS)
    assert single.counted({"anytime_points": 20, "sessions_measured": 5}) == ("20 anytime evaluations", "5 sessions")
    assert single.counted({}, 8) == ("0 anytime evaluations", "0 of 8 sessions")


def test_basis_says_over_how_many_of_the_seen_classes_map_is_a_mean():
    columns = np.array([True, True, True, True, False])
    targets = np.array([[1, 0, 0, 1, 1], [0, 1, 0, 1, 1]])
    logits = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)

    def lines(kinds, positive=targets):
        result = metrics.evaluate_logits(logits, positive, columns)
        end = MultiLabelPoint.from_result(result, samples_seen=9, kind="session", session=0, loss=1, exposed=columns)
        chosen = tables(np.array(kinds))
        return chosen.basis(chosen.summarise([], [end]))

    # Column 2 has no positive test label; the last column is not seen, whatever it is.
    assert lines([0, 0, 0, 0, 2])[:2] == [
        "ap_forgetting over 0 classes",
        "mAP over 3 of 4 seen classes; the others have no test positive",
    ]
    assert lines([2, 0, 2, 0, 2])[2] == "2 seen classes evaluated without a positive label in training"
    assert lines([2, 0, 0, 0, 2])[2] == "1 seen class evaluated without a positive label in training"
    assert lines([0] * 5, 1 - targets)[1] == "mAP over 3 of 4 seen classes; the others have no test positive"
    whole = lines([0] * 5, np.array([[1, 0, 1, 1, 1], [0, 1, 0, 1, 1]]))
    assert whole[1] == "mAP over 4 seen classes"
    assert "training" not in "".join(whole)
    assert tables().basis(tables().summarise([], [], sessions_planned=2))[1].startswith("test images")


def test_a_class_without_positives_is_no_part_of_forgetting_or_map():
    columns, names = np.ones(3, bool), {"loss": 0.0, "exposed": np.ones(3, bool), "kind": "session"}
    logits = np.array([[3, 2, 1], [2, 1, 3], [1, 3, 2]], np.float32)
    ends = [
        MultiLabelPoint.from_result(
            metrics.evaluate_logits(logits, targets, columns), samples_seen=t, session=t, **names
        )
        for t, targets in enumerate(
            [np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]]), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])]
        )
    ]
    summary = tables(np.zeros(3, int)).summarise([], ends)
    assert summary["map_avg"] == pytest.approx(((1 + 1 / 3) / 2 + (1 / 2 + 1 / 2) / 2) / 2)
    # Class 0 falls from 1 to 1/2, class 1 has no earlier AP, class 2 no later one.
    assert (summary["ap_forgetting"], summary["ap_forgetting_classes"]) == (0.5, 1)
    assert summary["map_last_classes"] == 2


def test_forgetting_of_frozen_logits_depends_on_the_evaluated_images():
    generator = np.random.default_rng(3)
    targets = (generator.random((60, 4)) < 0.3).astype(np.uint8)
    logits = generator.normal(size=targets.shape).astype(np.float32)
    seen = np.array([[True, True, False, False], [True] * 4])
    for rule, frozen in (("seen", False), ("all", True), ("final_seen", True)):
        results = metrics.trajectory(logits, targets, seen, eval_images=rule)
        value = metrics.ap_forgetting([result.average_precision for result in results], eval_images=rule)
        assert value.eval_images == rule
        assert value.classes == 2
        assert (value.value == 0) == frozen


def test_curve_rows_follow_the_stream():
    points, sessions = run()
    rows = tables().curve_rows([points[0], sessions[0], *points[1:]], sessions)
    assert [(row["samples_seen"], row["kind"], row["session"]) for row in rows] == [
        (10, "periodic", ""),
        (15, "session", 0),
        (20, "periodic", ""),
        (30, "session", 1),
        (30, "final", ""),
    ]
    assert all(tuple(row) == tables().curve_columns for row in rows)
    assert [row["exposed_classes"] for row in rows] == [1, 2, 3, 4, 4]
    assert rows[0]["nominal"] == 8
    assert math.isnan(rows[0]["map_blurry"])
    assert rows[1]["map_anytime"] == points[0].score
    assert math.isnan(tables().curve_rows([], sessions)[0]["map_anytime"])
    assert rows[-1]["map_anytime"] == tables().summarise(points, sessions)["map_anytime"]
    header, table = tables().class_rows(sessions, "wxyz")
    assert header == ["session", "samples_seen", "w", "x", "y", "z"]
    assert table[0][:2] == [0, 15]
    np.testing.assert_array_equal(table[0][2:], sessions[0].class_average_precision)
    assert tables().class_rows([]) == (["session", "samples_seen"], [])


def test_single_label_tables_are_those_of_the_functions():
    points, sessions, kinds = small_run()
    single = SingleLabelTables(kinds)
    assert single.summarise(points, sessions, sessions_planned=3) == metrics.summarise(
        points, sessions, kinds, sessions_planned=3
    )
    assert repr(single.curve_rows(points, sessions)) == repr(metrics.curve_rows(points, sessions, kinds))
    assert repr(single.class_rows(sessions, "abc")) == repr(metrics.class_accuracy_rows(sessions, "abc"))
    assert set(single.headline) < set(single.metrics)
    assert set(tables().headline) < set(tables().metrics)
    assert single.basis({"f_last_classes": 7}) == ["f_last over 7 classes"]


def test_points_of_the_other_kind_are_refused_and_the_right_tables_named():
    one, several = small_run()[0], run()[0]
    for wrong, points, right in (
        (SingleLabelTables(KINDS), several, "MultiLabelTables"),
        (tables(), one, "SingleLabelTables"),
    ):
        for call in (
            lambda wrong=wrong, points=points: wrong.summarise(points, []),
            lambda wrong=wrong, points=points: wrong.curve_rows([], points),
            lambda wrong=wrong, points=points: wrong.class_rows(points),
        ):
            with pytest.raises(MetricError, match=right) as error:
                call()
            assert "\n" not in str(error.value)


def test_a_multi_label_point_says_what_it_measured_and_refuses_contradictions():
    made = multi_label_point(12, 2, nominal=10)
    assert (made.nominal, made.session, made.score_name) == (10, None, "mAP")
    assert made.score == made.result.mean_average_precision
    assert multi_label_point(12, 2).nominal == 12
    np.testing.assert_array_equal(made.class_average_precision, made.result.average_precision)
    good = {"samples_seen": 1, "kind": "final", "loss": 0.0}
    with pytest.raises(MetricError, match="not exposed"):
        MultiLabelPoint.from_result(made.result, exposed=np.array([True, False, False, False]), **good)
    with pytest.raises(MetricError, match=r"shape \(3,\)"):
        MultiLabelPoint.from_result(made.result, exposed=np.ones(3, bool), **good)
    accuracy = point(5, [1, 0], [2, 2])
    assert (EvaluationPoint.score_name, accuracy.score) == ("accuracy", accuracy.accuracy)


def test_settings_of_any_make_serve():
    points, sessions = run()
    other = SimpleNamespace(eval_images="seen", threshold=0.8, scores="sigmoid", cf1="mean_f1")
    assert MultiLabelTables(KINDS, other).summarise(points, sessions) == tables().summarise(points, sessions)
