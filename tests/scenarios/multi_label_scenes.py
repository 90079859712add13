"""A tiny data set of images with several labels, its streams, and what looks at a strategy from inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.nn.functional import binary_cross_entropy_with_logits

from scenarios.multi_label_benchmark import ml_si_blurry_benchmark, mlcil_benchmark

CLASSES = 6
LABELS = (np.random.default_rng(2).random((90, CLASSES)) < 0.3).astype(np.uint8)
TEST_LABELS = (np.random.default_rng(3).random((30, CLASSES)) < 0.3).astype(np.uint8)


class Scenes:
    """A data set of images with several labels, whose first pixel tells their index."""

    def __init__(self, targets, known=None, class_names=None, name=""):
        self.targets = np.asarray(targets)
        self.known = known
        self.class_names = class_names
        self.name = name

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = np.zeros((2, 3, 3), dtype=np.uint8)
        image[0, 0] = index, 7, 9
        return image, self.targets[index], index


def index_of(images):
    return images[:, 0, 0, 0].long().tolist()


def as_float(image):
    return image.float()


class Halved:
    """A module-level transform, as worker processes need it."""

    def __call__(self, image):
        return image.float() / 2


class VisibleLoss(torch.nn.Module):
    """What a user writes for hidden labels: the loss over those that are there."""

    def forward(self, logits, labels):
        visible = ~torch.isnan(labels)
        return binary_cross_entropy_with_logits(logits[visible], labels[visible])


class Recorder(SupervisedPlugin):
    """Notes the samples and labels of every training batch, as the strategy sees them."""

    def __init__(self):
        super().__init__()
        self.batches, self.labels = [], []

    def before_forward(self, strategy, **kwargs):
        self.batches.append(index_of(strategy.mb_x))
        self.labels.append(np.array(strategy.mb_y))


class TinyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(18, CLASSES)

    def forward(self, images):
        return self.head(images.flatten(1) / 255)


def tasks(train=None, **options):
    train = Scenes(LABELS) if train is None else train
    return mlcil_benchmark(train, Scenes(TEST_LABELS), **({"increment": 2} | options))


def blurry(train=None, **options):
    train = Scenes(LABELS) if train is None else train
    return ml_si_blurry_benchmark(train, Scenes(TEST_LABELS), **({"n_sessions": 3, "stream_batch": 8} | options))


MAKERS = {
    "mlcil": tasks,
    "ml_si_blurry": blurry,
}
every_stream = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def strategy_with(plugins=(), kind=Naive, loss=None, metrics=(), batch=8, **options):
    model = TinyModel()
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=VisibleLoss() if loss is None else loss,
        train_mb_size=batch,
        eval_mb_size=16,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*metrics),
        **options,
    )


def train_on(strategy, benchmark, num_workers=0):
    for experience in benchmark.train_stream:
        strategy.train(experience, shuffle=False, num_workers=num_workers)


def expected_rows(plan, session):
    """Labels of a session one by one."""
    visible = plan.visible(session)
    return [
        [float(plan.targets[i, c]) if visible[position, c] else np.nan for c in range(plan.num_classes)]
        for position, i in enumerate(plan.sessions[session])
    ]
