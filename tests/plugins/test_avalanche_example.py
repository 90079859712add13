"""The way an Avalanche user combines the parts: own model and strategy, our stream, mask and evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from avalanche.training import Naive
from avalanche_toys import LinearModel, as_float
from toys import CLASSES, Pictures, labels, make_strategy, normalise

from cl_prompts.evaluation import Evaluator
from cl_prompts.metrics import a_auc, summarise
from cl_prompts.plugins import AnytimeEvaluation, LogitMask
from scenarios import si_blurry_benchmark


@pytest.mark.parametrize("view", ["sessions", "merged"])
def test_naive_on_a_si_blurry_stream(view):
    train, test = Pictures(labels(120, range(CLASSES))), Pictures(labels(40, range(CLASSES), 1), seed=1)
    benchmark = si_blurry_benchmark(
        train, test, n_sessions=3, seed=1, view=view, train_transform=as_float, eval_transform=as_float
    )
    evaluation = AnytimeEvaluation(
        Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES),
        every=20,
        session_ends=benchmark.plan.session_ends,
    )
    model = LinearModel()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=10,
        eval_mb_size=20,
        plugins=[LogitMask("exposed"), evaluation],
        evaluator=None,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience, shuffle=False)
    assert evaluation.points[-1].samples_seen == 120
    assert len(evaluation.sessions) == 3
    # The toy classes are easy: chance would be 1/6 of the exposed ones.
    assert evaluation.points[-1].accuracy > 0.5
    assert 0 < a_auc([point.accuracy for point in evaluation.points if point.kind == "periodic"]) <= 1
    summary = summarise(evaluation.points, evaluation.sessions, benchmark.plan.class_kind)
    assert summary["a_last"] == evaluation.sessions[-1].accuracy
    assert not np.isnan(summary["a_auc"])


def test_a_strategy_of_ours_on_the_same_stream(tiny_backbone):
    train, test = Pictures(labels(120, range(CLASSES))), Pictures(labels(40, range(CLASSES), 1), seed=1)
    benchmark = si_blurry_benchmark(train, test, n_sessions=3, seed=1)
    evaluation = AnytimeEvaluation(
        Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise),
        every=20,
        session_ends=benchmark.plan.session_ends,
    )
    strategy = make_strategy("mvp", tiny_backbone, train_mb_size=10, plugins=[evaluation])
    strategy.train(benchmark.train_stream)
    assert strategy.samples_seen == 120
    assert evaluation.points[-1].kind == "final"
    assert evaluation.points[-1].accuracy > 1 / CLASSES
