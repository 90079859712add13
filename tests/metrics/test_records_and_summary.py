"""Evaluation points refuse contradictions; the summary and the tables agree with hand-worked values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluation_points import point, small_run

from cl_prompts.errors import MetricError
from cl_prompts.metrics import (
    METRICS,
    EvaluationPoint,
    class_accuracy_matrix,
    class_accuracy_rows,
    confusion_matrix,
    curve_rows,
    summarise,
)
from cl_prompts.metrics.summary import CURVE_COLUMNS


def test_a_point_reads_everything_from_its_confusion_matrix():
    confusion = confusion_matrix([0, 0, 0, 1], [0, 0, 1, 1], 3)
    made = EvaluationPoint.from_confusion(
        confusion, samples_seen=12, kind="periodic", loss=0.5, exposed=np.array([True, True, True]), nominal=10
    )
    assert (made.accuracy, made.nominal, made.session) == (0.75, 10, None)
    np.testing.assert_allclose(made.class_accuracy, [2 / 3, 1.0, math.nan])
    with pytest.raises(AttributeError):
        made.loss = 0.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"correct": np.array([3, 0])}, "0..count"),
        ({"correct": np.array([-1, 0])}, "0..count"),
        ({"exposed": np.array([False, True])}, "not exposed"),
        ({"confusion": np.array([[1, 0], [0, 0]])}, "rows must sum"),
        ({"confusion": np.zeros((3, 3), np.int64)}, r"shape \(3, 3\)"),
        ({"count": np.array([2])}, r"shape \(1,\)"),
    ],
)
def test_a_point_refuses_contradictions(change, message):
    good = {
        "samples_seen": 1,
        "nominal": 1,
        "kind": "final",
        "session": None,
        "correct": np.array([1, 0]),
        "count": np.array([2, 0]),
        "confusion": np.array([[1, 1], [0, 0]]),
        "loss": 0.0,
        "exposed": np.array([True, False]),
    }
    EvaluationPoint(**good)
    with pytest.raises(MetricError, match=message):
        EvaluationPoint(**(good | change))


def test_summary_of_a_small_run_by_hand():
    summary = summarise(*small_run())
    assert set(METRICS) < set(summary)
    assert summary == {
        "a_auc": pytest.approx((3 / 4 + 3 / 6) / 2),
        "a_auc_trapz": pytest.approx((10 * (3 / 4 + 3 / 6) / 2 + 8 * (3 / 6 + 5 / 8) / 2) / 18),
        "a_avg": pytest.approx((5 / 6 + 5 / 8) / 2),
        "a_last": pytest.approx(5 / 8),
        "a_last_disjoint": pytest.approx(3 / 6),
        "a_last_blurry": pytest.approx(1.0),
        "f_last": pytest.approx(((1 - 1 / 4) + (1 / 2 - 1)) / 2),
        "f_last_classes": 2,
        "anytime_points": 3,
        "sessions_measured": 2,
        "exposed_classes": 3,
    }


def test_summary_of_nothing_and_of_an_interrupted_run_is_valid_json():
    nothing = summarise([], [], [0, 1])
    assert json.loads(json.dumps(nothing, allow_nan=False))["a_auc"] is None
    assert nothing["anytime_points"] == 0

    points, sessions, kinds = small_run()
    part = summarise(points[:1], sessions[:1], kinds)
    assert part["a_last"] == pytest.approx(5 / 6)
    assert part["f_last"] is None
    assert part["f_last_classes"] == 0
    assert part["sessions_measured"] == 1


def test_an_earlier_session_is_no_last_one():
    points, sessions, kinds = small_run()
    whole = summarise(points, sessions, kinds, sessions_planned=2)
    assert whole == summarise(points, sessions, kinds)
    for ends in (sessions, []):
        part = summarise(points, ends, kinds, sessions_planned=3)
        assert [part[name] for name in ("a_last", "a_last_disjoint", "a_last_blurry")] == [None, None, None]
        assert part["sessions_measured"] == len(ends)
    assert part["a_auc"] == whole["a_auc"]


def test_a_stream_too_short_for_a_periodic_point_uses_its_final_point():
    final = point(5, [1, 1], [2, 2], kind="final")
    summary = summarise([final], [], [0, 1])
    assert summary["a_auc"] == summary["a_auc_trapz"] == summary["a_last"] == 0.5
    assert summary["a_avg"] is None


def test_session_points_among_the_anytime_points_change_nothing():
    points, sessions, kinds = small_run()
    assert summarise([points[0], sessions[0], *points[1:]], sessions, kinds) == summarise(points, sessions, kinds)
    mixed = curve_rows([points[0], sessions[0], *points[1:]], sessions, kinds)
    assert repr(mixed) == repr(curve_rows(points, sessions, kinds))


def test_curve_rows_follow_the_stream():
    points, sessions, kinds = small_run()
    rows = curve_rows(points, sessions, kinds)
    assert [(row["samples_seen"], row["kind"], row["session"]) for row in rows] == [
        (12, "periodic", ""),
        (16, "session", 0),
        (22, "periodic", ""),
        (30, "session", 1),
        (30, "final", ""),
    ]
    assert all(tuple(row) == CURVE_COLUMNS for row in rows)
    assert rows[0]["nominal"] == 10
    assert math.isnan(rows[0]["accuracy_blurry"])
    assert rows[-1]["accuracy_blurry"] == 1.0
    assert rows[-1]["a_auc"] == rows[2]["a_auc"] == pytest.approx(0.625)
    assert summarise(points, sessions, kinds)["a_auc"] == rows[-1]["a_auc"]


def test_class_accuracy_table_names_classes_and_keeps_gaps():
    _, sessions, _ = small_run()
    header, rows = class_accuracy_rows(sessions, ["cat", "dog", "bird, blue"])
    assert header == ["session", "samples_seen", "cat", "dog", "bird, blue"]
    assert rows[0][:4] == [0, 16, 1.0, 0.5]
    assert math.isnan(rows[0][4])
    assert class_accuracy_rows(sessions)[0][2:] == ["0", "1", "2"]
    assert class_accuracy_rows([])[1] == []
    assert class_accuracy_matrix(sessions).shape == (2, 3)
    assert class_accuracy_matrix([]).shape == (0, 0)
