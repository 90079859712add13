"""What a strategy promises inside Avalanche: its metrics and plugins work on it as on its own strategies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import plugins
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor

from cl_prompts.contract.check import Promise, require
from cl_prompts.contract.subject import Subject
from cl_prompts.contract.toys import CLASSES, learned, normalise, stream_of, train
from cl_prompts.evaluation import Evaluator

PLUGINS: Mapping[str, Mapping[str, Any]] = {
    "EWCPlugin": {"ewc_lambda": 1.0},
    "LwFPlugin": {},
    "AGEMPlugin": {"patterns_per_experience": 4, "sample_size": 4},
}
"""Plugins that add to the loss or the gradient, and their arguments."""
_ALWAYS_ACT = ("EWCPlugin", "LwFPlugin")
"""A-GEM changes only gradients that point against those of its memory."""


def its_evaluation_agrees_with_ours(subject: Subject) -> None:
    """Avalanche's own evaluation of the strategy gives the accuracy that ours gives."""
    benchmark = stream_of([[0, 1, 2, 3, 4, 5] * 2])
    plugin = EvaluationPlugin(accuracy_metrics(minibatch=True, stream=True))
    strategy = train(subject.make(evaluator=plugin), benchmark)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = strategy.eval(benchmark.test_stream)
    ours = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise)(
        strategy.model, strategy.exposed
    )
    expected = float(np.trace(ours.confusion) / ours.confusion.sum())
    found = next(value for key, value in metrics.items() if key.startswith("Top1_Acc_Stream"))
    require(abs(found - expected) < 1e-6, f"Avalanche measures {found:.3f}, we measure {expected:.3f}")
    require(any(key.startswith("Top1_Acc_MB/train") for key in metrics), "no accuracy of training batches was measured")


def its_plugins_run(subject: Subject) -> None:
    """EWC, LwF and A-GEM run on the strategy; EWC and LwF change what it learns."""
    without = _with_plugin(subject)
    for name, arguments in PLUGINS.items():
        after = _with_plugin(subject, getattr(plugins, name)(**arguments))
        broken = [part for part, tensor in after.items() if not torch.isfinite(tensor).all()]
        require(not broken, f"{name}: {', '.join(broken)} are not finite")
        # Without a gradient behind the logits LwF would be silent.
        acts = name not in _ALWAYS_ACT or any(not torch.equal(after[part], without[part]) for part in after)
        require(acts, f"{name} changes nothing")


def _with_plugin(subject: Subject, *added: Any) -> dict[str, Tensor]:
    benchmark = subject.stream(task_label=0, train_transform=_normalise_one, eval_transform=_normalise_one)
    strategy = subject.make(plugins=added, train_transform=None, eval_transform=None)
    return learned(train(strategy, benchmark))


def _normalise_one(image: Tensor) -> Tensor:
    return normalise(image[None])[0]


PROMISES: tuple[Promise[Subject], ...] = (
    Promise(its_evaluation_agrees_with_ours),
    Promise(its_plugins_run, lambda subject: subject.needs.gradient, slow=True),
)
