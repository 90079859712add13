"""What loggers read from a strategy: sample counts, losses, accuracy, speed."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin

from cl_prompts.logging.observer import StrategyObserver


class Watcher(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.observer = StrategyObserver()
        self.seen, self.losses, self.accuracies = [], [], []

    def before_training_epoch(self, strategy, **kwargs):
        self.observer.before_training_epoch(strategy)

    def before_training_iteration(self, strategy, **kwargs):
        self.observer.before_training_iteration(strategy)

    def after_training_iteration(self, strategy, **kwargs):
        self.observer.after_training_iteration(strategy)
        self.seen.append(self.observer.samples_seen)
        self.losses.append((self.observer.losses(strategy), strategy.loss.item()))
        correct = (strategy.mb_output.argmax(1) == strategy.mb_y).float().mean().item()
        self.accuracies.append((self.observer.running_score(strategy).value, correct))


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, cl_prompts.logging, cl_prompts.logging.console;"
        "print([m for m in ('torch', 'avalanche', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("plugins", [[], [ReplayPlugin(mem_size=20)]])
def test_stock_strategies_count_stream_samples_only(naive, plan, plugins):
    watcher = Watcher()
    strategy, stream = naive(watcher, *plugins)
    for experience in stream:
        strategy.train(experience, shuffle=False)
    ends = plan.session_ends.tolist()
    assert watcher.seen[-1] == plan.num_samples
    assert watcher.seen == sorted(
        set(range(8, ends[0], 8)) | {ends[0]} | set(range(ends[0] + 8, ends[1], 8)) | {ends[1]}
    )
    for read, true in watcher.losses:
        assert read == {"total": pytest.approx(true)}
    for read, true in watcher.accuracies:
        assert read == pytest.approx(true)
    assert StrategyObserver.learning_rates(strategy) == [0.1]
    assert StrategyObserver.prompt_usage(strategy) is None


def test_our_strategies_are_read_by_their_own_names(stub):
    strategy = stub(usage=torch.tensor([3.0, 1.0]))
    observer = StrategyObserver()
    assert observer.losses(strategy) == {"cross_entropy": 1.5, "prompt": 0.5, "total": 2.0}
    assert observer.running_score(strategy) == ("running_accuracy", 0.75)
    assert observer.prompt_usage(strategy) == [3.0, 1.0]
    assert observer.learning_rates(strategy) == [0.25]
    strategy.optimizer, strategy.last_losses = None, {}
    strategy.loss = torch.zeros(1)  # what Avalanche keeps for a learner in closed form
    assert observer.learning_rates(strategy) == []
    assert observer.losses(strategy) == {}


def test_speed_leaves_pauses_out(stub, clock):
    strategy, observer = stub(), StrategyObserver(clock)
    observer.before_training_epoch(strategy)
    assert math.isnan(observer.samples_per_second())
    for _ in range(5):
        observer.before_training_iteration(strategy)
        clock.sleep(2)
        observer.tick()
        clock.sleep(100)  # an evaluation between the last update and the end of the iteration
        observer.pause()
        strategy.samples_seen += 8
        observer.after_training_iteration(strategy)
    assert observer.samples_per_second() == pytest.approx(4.0)
    assert math.isnan(observer.samples_per_second())
    clock.sleep(50)
    observer.before_training_epoch(strategy)
    clock.sleep(1)
    strategy.samples_seen += 8
    observer.after_training_iteration(strategy)
    assert observer.samples_per_second() == pytest.approx(8.0)
