"""Toy images with several labels, streams and strategies on them: a whole run takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from toys import make_strategy, normalise

from cl_prompts.contract.toys import Scenes, label_rows
from cl_prompts.evaluation import MultiLabelEvaluator
from cl_prompts.plugins import AnytimeEvaluation
from scenarios import benchmark_from_plan, ml_si_blurry_plan, mlcil_plan

CLASSES = 6
BATCH = 4
LANES: dict[str, Any] = {"num_selectors": 3, "num_prompts": 2, "prompt_layers": 2, "init_tasks": 3}
"""Settings of MULTI-LANE that fit a tiny backbone."""


def train_scenes(count: int = 24, seed: int = 0) -> Scenes:
    return Scenes(label_rows(count, seed), seed)


def unseen_scenes(count: int = 16, seed: int = 50) -> Scenes:
    return Scenes(label_rows(count, seed), seed)


def mlcil(train: Scenes | None = None, test: Scenes | None = None, *, benchmark: dict | None = None, **keywords: Any):
    """A stream of tasks of two classes each; keywords go to `mlcil_plan`."""
    train = train_scenes() if train is None else train
    test = unseen_scenes() if test is None else test
    plan = mlcil_plan(train.targets, known=train.known, **keywords)
    return benchmark_from_plan(plan, train, test, **benchmark or {})


def blurry(train: Scenes | None = None, test: Scenes | None = None, **keywords: Any):
    """A multi-label Si-Blurry stream of three sessions in batches of `BATCH`; keywords go to `ml_si_blurry_plan`."""
    train = train_scenes(48) if train is None else train
    test = unseen_scenes() if test is None else test
    settings = {"n_sessions": 3, "blurry_sample_pct": 40, "stream_batch": BATCH, "cuts": "stochastic", "seed": 3}
    plan = ml_si_blurry_plan(train.targets, known=train.known, **settings | keywords)
    return benchmark_from_plan(plan, train, test)


def learner(backbone: Any, name: str = "multi_lane", **keywords: Any):
    """A strategy with toy settings; `settings` is a dict of changes."""
    settings = (LANES if name == "multi_lane" else {}) | keywords.pop("settings", {})
    defaults = {"num_classes": CLASSES, "train_mb_size": BATCH, "updates_per_batch": 1}
    return make_strategy(name, backbone, settings=settings, **defaults | keywords)


def evaluation(benchmark: Any, *, epochs: int = 1, every: int = 0, deferred: bool = False, **keywords: Any):
    """The evaluation plugin of a stream; keywords go to `MultiLabelEvaluator`."""
    plan = benchmark.plan
    defaults = {"num_classes": plan.num_classes, "transform": normalise, "batch_size": 8}
    if keywords.get("eval_images") == "final_seen":
        defaults["final_seen"] = plan.seen_after[-1]
    evaluator = MultiLabelEvaluator(benchmark.test_stream[0].dataset, **defaults | keywords)
    return AnytimeEvaluation(evaluator, every=every, session_ends=plan.session_ends * epochs, deferred=deferred)


def trained_with(backbone: Any, benchmark: Any, plugin: Any = None, name: str = "multi_lane", **keywords: Any):
    """The strategy after the whole stream, and the evaluation it was measured with."""
    epochs = keywords.get("epochs", 1)
    plugin = evaluation(benchmark, epochs=epochs) if plugin is None else plugin
    strategy = learner(backbone, name, plugins=[*keywords.pop("plugins", ()), plugin], **keywords)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return strategy, plugin


class LossLog:
    """Avalanche plugin that keeps every update's named losses."""

    def __init__(self) -> None:
        from avalanche.core import SupervisedPlugin

        class Log(SupervisedPlugin):
            def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
                losses.append({name: float(value) for name, value in strategy.last_losses.items()})

        losses: list[dict[str, float]] = []
        self.losses = losses
        self.plugin = Log()


def lane_state(strategy: Any, lanes: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
    """Copies of the tensors of these lanes, or of all."""
    numbers = range(len(strategy.model.lanes)) if lanes is None else lanes
    return {
        f"{number}.{name}": tensor.detach().clone()
        for number in numbers
        for name, tensor in strategy.model.lanes[number].state_dict().items()
    }


def same_points(left: Any, right: Any, atol: float = 0) -> None:
    """Two measurements are equal, bit for bit by default."""
    assert (left.samples_seen, left.session, left.kind) == (right.samples_seen, right.session, right.kind)
    np.testing.assert_array_equal(left.exposed, right.exposed)
    np.testing.assert_allclose(left.loss, right.loss, rtol=0, atol=atol)
    same_results(left.result, right.result, atol)


def same_results(left: Any, right: Any, atol: float = 0) -> None:
    """Two results are equal, bit for bit by default, NaN where NaN."""
    np.testing.assert_array_equal(left.positives, right.positives)
    np.testing.assert_array_equal(left.columns, right.columns)
    assert left.images == right.images
    np.testing.assert_allclose(left.average_precision, right.average_precision, rtol=0, atol=atol)
    for one, two in zip((*left.thresholds, left.oracle), (*right.thresholds, right.oracle), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=atol)
