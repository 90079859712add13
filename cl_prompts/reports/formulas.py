"""Every metric of a summary by name: what it means, its formula, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cl_prompts.metrics.multi_label_summary import multi_label_metrics
from cl_prompts.metrics.summary import METRICS

FORMULAS: Mapping[str, str] = MappingProxyType(
    {
        "a_auc": "(1/n) sum_i a(x_i) over the periodic evaluations x_1..x_n; a(x): share of correct test images of the "
        "classes exposed by x",
        "a_auc_trapz": "sum_i (x_{i+1} - x_i) (a(x_i) + a(x_{i+1})) / 2 / (x_n - x_1), the final evaluation included",
        "a_avg": "(1/T) sum_t a_t over the session ends t = 1..T",
        "a_last": "a_T after the last session T, on all classes exposed by then",
        "a_last_disjoint": "a_T over the test images of classes learnt in one session; all exposed classes compete",
        "a_last_blurry": "a_T over the test images of classes spread over sessions; all exposed classes compete",
        "f_last": "mean over classes k with max_{t<T} c_{t,k} > 0 of (max_{t<T} c_{t,k} - c_{T,k}); c_{t,k}: accuracy "
        "on class k after session t; lower is better",
        "map_avg": "(1/T) sum_t mAP_t over the session ends; mAP: mean over the evaluated classes with a positive of "
        "AP = sum_k (R_k - R_{k-1}) P_k, precision P and recall R down the ranking",
        "map_last": "mAP_T after the last session",
        "map_anytime": "(1/n) sum_i mAP(x_i) over the periodic evaluations",
        "map_last_disjoint": "mAP_T over the classes learnt in one session",
        "map_last_blurry": "mAP_T over the classes spread over sessions",
        "cf1_last": "{cf1} at p > {threshold:g} after the last session",
        "of1_last": "2 hits / (predicted + positives), counted over all labels at p > {threshold:g}",
        "cf1_last_from_mean_pr": "2 P R / (P + R), P and R the means of precision and recall over the classes, at "
        "p > {threshold:g}",
        "cf1_last_050": "{cf1} at p > 0.5",
        "of1_last_050": "2 hits / (predicted + positives) over all labels at p > 0.5",
        "cf1_last_oracle": "{cf1} at the threshold with the highest OF1, found on the test labels: only a bound",
        "of1_last_oracle": "the highest OF1 of any threshold, found on the test labels: only a bound",
        "ap_forgetting": "mean over classes k of (max_{t<T} AP_{t,k} - AP_{T,k}); lower is better, and it depends on "
        "which images are evaluated ({eval_images})",
    }
)
"""Name in `summary.json` -> formula; `{cf1}`, `{threshold}`, `{eval_images}` stand for the choices of the run."""

_CF1 = {
    "mean_f1": "mean over the classes of 2 hits / (predicted + positives)",
    "from_mean_pr": "2 P R / (P + R), P and R the means over the classes",
}

LOWER_IS_BETTER = frozenset({"f_last", "ap_forgetting"})


@dataclass(frozen=True)
class Choices:
    """How a run of several labels an image was measured, read from its summary."""

    eval_images: str
    threshold: float
    scores: Any
    cf1: Any


@dataclass(frozen=True)
class MetricNames:
    """The metrics of runs of one kind.

    Attributes:
        meanings: name -> meaning, in the order in which they are shown; all are fractions.
        formulas: name -> formula.
        headline: names of the metric over the stream and of the one after its end.
        curve: column of `curves.csv` that is drawn.
        curve_name: what that column is called.
        class_file: table of one value a class and session.
    """

    meanings: Mapping[str, str]
    formulas: Mapping[str, str]
    headline: tuple[str, str]
    curve: str
    curve_name: str
    class_file: str


def metric_names(metrics: Mapping[str, Any]) -> MetricNames:
    """Which metrics a summary has, by its names."""
    if "map_last" not in metrics:
        return MetricNames(METRICS, FORMULAS, ("a_auc", "a_last"), "accuracy", "accuracy", "class_accuracy.csv")
    choices = _choices(metrics)
    meanings = multi_label_metrics(choices)
    words = {"cf1": _CF1[choices.cf1], "threshold": choices.threshold, "eval_images": choices.eval_images}
    formulas = {name: _filled(FORMULAS[name], words) for name in meanings}
    return MetricNames(meanings, formulas, ("map_avg", "map_last"), "map", "mAP", "class_average_precision.csv")


def _choices(metrics: Mapping[str, Any]) -> Choices:
    threshold, cf1 = metrics.get("threshold"), metrics.get("cf1_kind")
    return Choices(
        eval_images=str(metrics.get("eval_images", "seen")),
        threshold=float(threshold) if isinstance(threshold, int | float) else 0.5,
        scores=metrics.get("scores", "sigmoid"),
        cf1=cf1 if cf1 in _CF1 else "mean_f1",
    )


def _filled(text: str, words: Mapping[str, Any]) -> str:
    """The text with the choices in it; braces of indices are no places to fill."""
    for name in ("cf1", "eval_images"):
        text = text.replace(f"{{{name}}}", str(words[name]))
    return text.replace("{threshold:g}", f"{words['threshold']:g}")
