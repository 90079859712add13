"""A stream of a few vectors under Avalanche's Naive, and a stub of this project's strategies."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scenarios.si_blurry import si_blurry_plan

sys.path.append(str(Path(__file__).parents[1] / "metrics"))

CLASSES, SAMPLES = 4, 80


@pytest.fixture
def plan():
    targets = np.arange(SAMPLES) % CLASSES
    return si_blurry_plan(targets, n_sessions=2, seed=1, class_names=["ant", "bee", "cat", "dog"])


@pytest.fixture
def naive(plan):
    """A function that makes a Naive strategy with the plugins given, and the experiences of the plan."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive
    from torch.utils.data import TensorDataset

    targets = torch.tensor(plan.targets)
    images = torch.eye(6)[targets] + 0.01 * torch.arange(SAMPLES)[:, None] / SAMPLES

    def dataset(indices):
        data = TensorDataset(images[indices], targets[indices])
        data.targets = targets[indices].tolist()
        return as_classification_dataset(data)

    sessions = [dataset(torch.tensor(session)) for session in plan.sessions]
    benchmark = benchmark_from_datasets(train=sessions, test=sessions[:1])

    def make(*plugins, **options):
        model = torch.nn.Linear(6, CLASSES)
        with torch.no_grad():
            model.weight.zero_()
            model.bias.zero_()
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            train_mb_size=8,
            plugins=list(plugins),
            evaluator=EvaluationPlugin(),
            **options,
        )
        return strategy, benchmark.train_stream

    return make


class Counted:
    """Counts how often a value is read from it."""

    def __init__(self, value):
        self.value = value
        self.reads = 0

    def __float__(self):
        self.reads += 1
        return self.value


class StubStrategy(SimpleNamespace):
    """What loggers may read of a `ContinualStrategy`, and a walk through the hooks of a stream."""

    def __init__(self, usage=None):
        super().__init__(
            samples_seen=0,
            last_losses={"cross_entropy": torch.tensor(1.5), "prompt": torch.tensor([0.5]), "total": torch.tensor(2.0)},
            running_accuracy=Counted(0.75),
            model=SimpleNamespace(prompt_usage=lambda: usage),
            optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.25),
            train_mb_size=8,
            mb_y=torch.zeros(8, dtype=torch.int64),
            dataloader=None,
            experience=SimpleNamespace(dataset=range(10**9)),
        )

    def walk(self, plugin, batches, each=lambda: None):
        plugin.before_training_epoch(self)
        for _ in range(batches):
            plugin.before_training_iteration(self)
            each()
            plugin.after_forward(self)
            plugin.after_update(self)
            self.samples_seen += len(self.mb_y)
            plugin.after_training_iteration(self)
        plugin.after_training(self)


@pytest.fixture
def stub():
    return StubStrategy


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()
