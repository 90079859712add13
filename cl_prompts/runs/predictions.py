"""What a run of several labels an image leaves of its predictions, in `predictions/`.

| file | content |
|---|---|
| `test.npz` | final logits of all test images, their labels, the classes seen after each session |
| `calibration.csv` | reliability table of the final probabilities |
| `trajectory.csv` | every session end under every choice of test images, where the final logits hold them all |

A learner whose classes are final after their session needs no second evaluation: every number of every session, at any
threshold and on any choice of test images, follows from `test.npz` by `cl_prompts.metrics.trajectory`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import numpy as np

from cl_prompts.evaluation import EvaluatedLogits
from cl_prompts.metrics.calibration import calibration
from cl_prompts.metrics.multi_label import MultiLabelResult
from cl_prompts.metrics.trajectory import trajectory
from cl_prompts.runs.directory import RunDirectory
from scenarios.multi_label_plan import MultiLabelPlan
from scenarios.multi_label_settings import EvaluationRule, MultiLabelEvaluationSettings

TRAJECTORY_COLUMNS = ("eval_images", "session", "images", "map", "threshold", "cf1", "cf1_from_mean_pr", "of1")


def write_predictions(
    directory: RunDirectory,
    evaluated: EvaluatedLogits,
    plan: MultiLabelPlan,
    settings: MultiLabelEvaluationSettings,
    *,
    columns_are_final: bool,
) -> None:
    """Write the files above.

    Args:
        directory: of the run.
        evaluated: the final evaluation.
        plan: the stream.
        settings: thresholds and what average precision ranks.
        columns_are_final: no logit of a class changed after the session it was learnt in.
    """
    arrays = {
        "logits": evaluated.logits,
        "targets": evaluated.targets,
        "evaluated": evaluated.rows,
        "seen_after": plan.seen_after,
    }
    directory.write_predictions("test.npz", arrays)
    report = calibration(evaluated.logits[evaluated.rows], evaluated.targets[evaluated.rows], evaluated.columns)
    directory.write_prediction_table("calibration.csv", report.rows())
    if columns_are_final:
        directory.write_prediction_table("trajectory.csv", list(_trajectories(evaluated, plan, settings)))


def _trajectories(
    evaluated: EvaluatedLogits, plan: MultiLabelPlan, settings: MultiLabelEvaluationSettings
) -> Iterable[dict[str, Any]]:
    labelled = (evaluated.targets == 1).any(1)
    for rule in get_args(EvaluationRule):
        if rule == "all" and np.isnan(evaluated.logits[labelled]).any():
            continue  # images of classes that the stream never shows were not evaluated
        results = trajectory(
            evaluated.logits,
            evaluated.targets,
            plan.seen_after,
            eval_images=rule,
            thresholds=tuple(dict.fromkeys((settings.threshold, 0.5))),
            scores=settings.scores,
        )
        for session, result in enumerate(results):
            yield from _rows(rule, session, result)


def _rows(rule: str, session: int, result: MultiLabelResult) -> Iterable[dict[str, Any]]:
    for scores in result.thresholds:
        values = (
            rule,
            session,
            result.images,
            result.mean_average_precision,
            scores.threshold,
            scores.cf1,
            scores.cf1_from_mean_pr,
            scores.of1,
        )
        yield dict(zip(TRAJECTORY_COLUMNS, values, strict=True))
