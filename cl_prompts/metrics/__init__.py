"""Metrics: every formula once, as a pure NumPy function on arrays; nothing here imports torch or Avalanche.

| module | what it defines |
|---|---|
| `confusion` | confusion matrix of single-label predictions |
| `accuracy` | accuracy over all, disjoint and blurry classes; of each class; by number of training samples seen |
| `anytime` | `a_auc`, `a_auc_trapz`, `a_avg`, `a_last` |
| `forgetting` | `f_last` and `ap_forgetting`; the forgetting of each session's classes over time |
| `ranking` | average precision and mAP, several labels a sample |
| `f1` | CF1 in both meanings, OF1, and the best threshold, an oracle |
| `multi_label` | all of them at once: `evaluate_logits`; the rules for ties, missing positives and the threshold |
| `labels` | one label or several: the check at the door of every metric |
| `calibration` | calibration error and reliability table of single labels |
| `trajectory` | results after every task from logits stored once |
| `usage` | entropy of prompt usage |
| `records` | `EvaluationPoint`, `MultiLabelPoint`: what one evaluation measured |
| `summary`, `multi_label_summary` | the metrics of `summary.json`, and the curves as rows of a table |
| `tables` | both behind one interface: what a run directory writes |
| `stream_points` | what both share: the last point, the order of the points |

All values are fractions, 0 to 1; only what is printed for people is in percent.
"""

from cl_prompts.metrics.accuracy import (
    accuracy_by_training_samples,
    accuracy_of_kind,
    class_accuracy,
    official_class_accuracy,
    total_accuracy,
)
from cl_prompts.metrics.anytime import a_auc, a_auc_trapz, a_avg, a_last
from cl_prompts.metrics.calibration import CalibrationReport, calibration
from cl_prompts.metrics.confusion import confusion_matrix
from cl_prompts.metrics.forgetting import APForgetting, LastForgetting, ap_forgetting, f_last, session_forgetting
from cl_prompts.metrics.labels import require_one_label, require_several_labels
from cl_prompts.metrics.multi_label import (
    MultiLabelResult,
    ThresholdScores,
    average_precision,
    best_threshold,
    cf1,
    class_f1,
    evaluate_logits,
    mean_average_precision,
    of1,
    sigmoid32,
)
from cl_prompts.metrics.records import EvaluationPoint, MultiLabelPoint, Point
from cl_prompts.metrics.summary import METRICS, class_accuracy_matrix, class_accuracy_rows, curve_rows, summarise
from cl_prompts.metrics.tables import MultiLabelTables, SingleLabelTables, Tables
from cl_prompts.metrics.trajectory import TaskAccuracies, task_accuracies, trajectory
from cl_prompts.metrics.usage import usage_entropy

__all__ = [
    "METRICS",
    "APForgetting",
    "CalibrationReport",
    "EvaluationPoint",
    "LastForgetting",
    "MultiLabelPoint",
    "MultiLabelResult",
    "MultiLabelTables",
    "Point",
    "SingleLabelTables",
    "Tables",
    "TaskAccuracies",
    "ThresholdScores",
    "a_auc",
    "a_auc_trapz",
    "a_avg",
    "a_last",
    "accuracy_by_training_samples",
    "accuracy_of_kind",
    "ap_forgetting",
    "average_precision",
    "best_threshold",
    "calibration",
    "cf1",
    "class_accuracy",
    "class_accuracy_matrix",
    "class_accuracy_rows",
    "class_f1",
    "confusion_matrix",
    "curve_rows",
    "evaluate_logits",
    "f_last",
    "mean_average_precision",
    "of1",
    "official_class_accuracy",
    "require_one_label",
    "require_several_labels",
    "session_forgetting",
    "sigmoid32",
    "summarise",
    "task_accuracies",
    "total_accuracy",
    "trajectory",
    "usage_entropy",
]
