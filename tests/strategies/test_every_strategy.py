"""The contract on every registered strategy: one test a promise. A new method file is tested by being there."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from toys import CLASSES, SETTINGS, assert_same, labels, learned, make_strategy, normalise, stream_of, train

from cl_prompts.contract import check_strategy
from cl_prompts.evaluation import Evaluator
from cl_prompts.logging import TensorBoardLog, TerminalProgress
from cl_prompts.plugins import AnytimeEvaluation, PromptUsage
from cl_prompts.strategies.declaration import strategy_names

CHECKS = {name: check_strategy(name, SETTINGS.get(name)) for name in strategy_names()}


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{name}-{check.id}", marks=[pytest.mark.slow] if check.slow else [])
        for name, checks in CHECKS.items()
        for check in checks
    ],
)
def test_promise(check):
    check.run()


@pytest.mark.parametrize("name", CHECKS)
def test_a_strategy_makes_many_promises_each_with_an_id_of_its_own(name):
    checks = CHECKS[name]
    assert len(checks) >= 40
    assert len({check.id for check in checks}) == len(checks)
    assert all(check.description.endswith(".") for check in checks)


@pytest.mark.parametrize("progress", ["plain", "bar"])
def test_watching_changes_nothing(progress, tiny_backbone, tmp_path):
    sessions = [labels(19, [5, 2, 4], 1), labels(25, [3, 0, 4], 2)]
    reference = learned(train(make_strategy("mvp", tiny_backbone), stream_of(sessions)))
    benchmark = stream_of(sessions)
    evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise)
    evaluation = AnytimeEvaluation(evaluator, every=10, session_ends=benchmark.plan.session_ends)
    console = Console(file=io.StringIO(), force_terminal=progress == "bar")
    with TerminalProgress(44, console=console, mode=progress) as terminal:
        tensorboard = TensorBoardLog(tmp_path, every_samples=1, plan=benchmark.plan)
        evaluation.subscribe(terminal.on_evaluation)
        evaluation.subscribe(tensorboard.on_evaluation)
        plugins = [PromptUsage(every=1), terminal, tensorboard, evaluation]
        strategy = train(make_strategy("mvp", tiny_backbone, plugins=plugins), benchmark)
        tensorboard.close()
    assert_same(learned(strategy), reference)
