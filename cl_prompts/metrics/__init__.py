"""Metrics: every formula once, as a pure NumPy function on arrays; nothing here imports torch or Avalanche.

| module | what it defines |
|---|---|
| `confusion` | confusion matrix of single-label predictions |
| `accuracy` | accuracy over all, disjoint and blurry classes; of each class; by number of training samples seen |
| `anytime` | `a_auc`, `a_auc_trapz`, `a_avg`, `a_last` |
| `forgetting` | `f_last`, and the forgetting of each session's classes over time |
| `usage` | entropy of prompt usage |
| `records` | `EvaluationPoint`: what one evaluation measured |
| `summary` | the metrics of `summary.json`, and the curves as rows of a table |

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
from cl_prompts.metrics.confusion import confusion_matrix
from cl_prompts.metrics.forgetting import LastForgetting, f_last, session_forgetting
from cl_prompts.metrics.records import EvaluationPoint
from cl_prompts.metrics.summary import METRICS, class_accuracy_matrix, class_accuracy_rows, curve_rows, summarise
from cl_prompts.metrics.usage import usage_entropy

__all__ = [
    "METRICS",
    "EvaluationPoint",
    "LastForgetting",
    "a_auc",
    "a_auc_trapz",
    "a_avg",
    "a_last",
    "accuracy_by_training_samples",
    "accuracy_of_kind",
    "class_accuracy",
    "class_accuracy_matrix",
    "class_accuracy_rows",
    "confusion_matrix",
    "curve_rows",
    "f_last",
    "official_class_accuracy",
    "session_forgetting",
    "summarise",
    "total_accuracy",
    "usage_entropy",
]
