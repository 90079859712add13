"""How a stream of images with several labels is evaluated: settings that all multi-label scenarios share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scenarios.settings import Settings

__all__ = ["EvaluationRule", "MultiLabelEvaluationSettings"]

EvaluationRule = Literal["seen", "all", "final_seen"]


class MultiLabelEvaluationSettings(Settings):
    """Evaluation images and the meaning of the scores; the base of the settings of every multi-label scenario."""

    eval_images: EvaluationRule = Field(
        "seen",
        description="test images with a class seen so far (published; grows), all labelled ones, or those with a class"
        " seen by the end",
    )
    threshold: float = Field(
        0.8, gt=0, lt=1, description="a class is predicted where its sigmoid lies strictly above (published: 0.8)"
    )
    scores: Literal["sigmoid", "logit"] = Field(
        "sigmoid", description="what average precision ranks; sigmoids of float32 saturate, which makes ties"
    )
    cf1: Literal["mean_f1", "from_mean_pr"] = Field(
        "mean_f1", description="CF1: mean F1 of the classes (published), or F1 of mean precision and mean recall"
    )
