"""Metrics of complete runs of the published code, recomputed from their stored arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cl_prompts.metrics import a_auc, a_avg, a_last, f_last, official_class_accuracy

GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = sorted(GOLDEN.glob("mvp_official_run*.npz"))


@pytest.fixture(scope="module")
def with_labels():
    """The run that stores plan and labels; the others share them."""
    return np.load(next(path for path in RUNS if "session_sizes" in np.load(path).files))


def test_there_is_a_run_to_compare_with():
    assert RUNS


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_accuracy_metrics(path, with_labels):
    run = np.load(path)
    order = json.loads(str(run["meta_json"]))["metrics_order"]
    expected = dict(zip(order, run["metrics"], strict=True))
    at_session_end = np.isin(run["eval_seen"], np.cumsum(with_labels["session_sizes"]))
    sessions = run["eval_acc"][at_session_end]
    anytime = run["eval_acc"][~at_session_end]
    assert a_auc(anytime, final=sessions[-1]) == pytest.approx(expected["A_auc"], abs=1e-6)
    assert a_avg(sessions) == pytest.approx(expected["A_avg"], abs=1e-6)
    assert a_last(sessions) == pytest.approx(expected["A_last"], abs=1e-6)
    if "anytime_acc" in run.files:
        np.testing.assert_array_equal(anytime, run["anytime_acc"])
        np.testing.assert_array_equal(sessions, run["session_acc"])


@pytest.mark.parametrize(
    "path", [path for path in RUNS if "eval_cls_acc" in np.load(path).files], ids=lambda path: path.stem
)
def test_class_accuracies_and_forgetting(path, with_labels):
    run = np.load(path)
    at_session_end = np.isin(run["eval_seen"], np.cumsum(with_labels["session_sizes"]))
    stored = run["eval_cls_acc"]
    assert f_last(stored[at_session_end]).value == pytest.approx(run["metrics"][3], abs=1e-6)

    of_class = np.bincount(with_labels["test_labels"])[run["exposed_order"]]
    correct = np.rint(stored * of_class).astype(np.int64)
    official = official_class_accuracy(correct, np.where(stored > 0, of_class, 0))
    np.testing.assert_array_equal(official, stored)
    true_value = f_last(correct[at_session_end] / of_class).value
    assert f_last(official[at_session_end]).value < true_value < run["metrics"][3] + 1e-5
