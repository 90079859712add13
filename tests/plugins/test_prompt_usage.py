"""`PromptUsage`: what it records, where, and under which loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche_toys import LinearModel, float_stream, foreign, train_in_order
from toys import CLASSES, SETTINGS, fingerprint, labels, make_strategy, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.plugins import LogitMask, PromptUsage
from cl_prompts.strategies import MVPSettings
from cl_prompts.strategies.mvp import MVPMethod


def test_records_and_entropy(tiny_backbone):
    plugin, metrics = PromptUsage(every=10), EvaluationPlugin()
    strategy = make_strategy("mvp", tiny_backbone, plugins=[plugin], evaluator=metrics, updates_per_batch=3)
    train(strategy, stream_of([labels(19, range(CLASSES)), labels(25, range(CLASSES))]))
    assert [seen for seen, _ in plugin.history] == [16, 27, 35, 43]
    for seen, counts in plugin.history:
        assert counts.dtype == torch.int64
        assert counts.sum() == 3 * seen
    positions, entropies = metrics.get_all_metrics()["prompt_usage/entropy"]
    assert positions == [16, 27, 35, 43]
    for (_, counts), entropy in zip(plugin.history, entropies, strict=True):
        share = counts[counts > 0].numpy() / counts.sum().item()
        assert entropy == pytest.approx(-(share * np.log(share)).sum())
        assert 0 <= entropy <= np.log(4) + 1e-12


def test_records_are_copies(tiny_backbone):
    plugin = PromptUsage(every=8)
    train(make_strategy("mvp", tiny_backbone, plugins=[plugin]), stream_of([labels(16, range(CLASSES))]))
    first, second = (counts for _, counts in plugin.history)
    assert first.sum() < second.sum()


def test_a_method_of_ours_in_avalanches_own_strategy(tiny_backbone):
    """Naive rebuilds its optimizer over all parameters: the frozen backbone must not notice."""
    before = fingerprint(tiny_backbone)
    method = MVPMethod(tiny_backbone, CLASSES, MVPSettings(**SETTINGS["mvp"]), torch.Generator().manual_seed(0))
    head = method.head.weight.detach().clone()
    plugin = PromptUsage(every=8)
    strategy = foreign("Naive", method, [LogitMask("exposed"), plugin])
    train_in_order(strategy, float_stream([labels(16, range(CLASSES)), labels(9, range(CLASSES))]))
    assert fingerprint(tiny_backbone) == before
    assert not any(module.training for module in tiny_backbone.modules())
    assert not torch.equal(head, method.head.weight)
    assert [(seen, int(counts.sum())) for seen, counts in plugin.history] == [(8, 8), (16, 16), (24, 24)]


def test_a_model_without_pool_is_refused():
    with pytest.raises(StrategyError, match="PromptUsage: LinearModel has no prompt pool to watch"):
        train_in_order(foreign("Naive", LinearModel(), [PromptUsage()]), float_stream([[0, 1]]))
