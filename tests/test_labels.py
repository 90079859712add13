"""What the loop asks of labels: the losses against slow sums, hidden entries, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_prompts.errors import StrategyError
from cl_prompts.labels import LABEL_KINDS, label_kind, visible_cross_entropy, visible_labels
from cl_prompts.masks import ClassTracker

NAN = float("nan")
ROWS = torch.tensor([[1.0, 0.0, NAN, NAN], [0.0, NAN, NAN, 1.0]])


@st.composite
def batches(draw):
    """Logits, rows with hidden entries and competing columns."""
    count, classes = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    cell = st.sampled_from([0.0, 1.0, NAN])
    rows = draw(st.lists(st.lists(cell, min_size=classes, max_size=classes), min_size=count, max_size=count))
    logit = st.floats(-30, 30, width=32)
    logits = draw(st.lists(st.lists(logit, min_size=classes, max_size=classes), min_size=count, max_size=count))
    allowed = draw(st.lists(st.booleans(), min_size=classes, max_size=classes))
    return torch.tensor(logits), torch.tensor(rows), torch.tensor(allowed)


def slow_entropy(logit: float, label: float) -> float:
    """-log sigmoid of the logit or of its opposite."""
    signed = logit if label == 1 else -logit
    return math.log1p(math.exp(-abs(signed))) + max(-signed, 0)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_the_loss_is_the_mean_over_visible_labels_of_competing_columns(batch):
    logits, rows, allowed = batch
    terms = [
        slow_entropy(float(logits[i, c]), float(rows[i, c]))
        for i in range(len(rows))
        for c in range(rows.shape[1])
        if allowed[c] and not torch.isnan(rows[i, c])
    ]
    leaf = logits.clone().requires_grad_()
    loss = label_kind(rows).loss(leaf, rows, allowed)
    assert float(loss.detach()) == pytest.approx(sum(terms) / max(1, len(terms)), rel=1e-5, abs=1e-6)
    loss.backward()
    counted = ~torch.isnan(rows) & allowed
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[~counted].any()


@settings(max_examples=30, deadline=None)
@given(batches(), st.integers(0, 2**31))
def test_logits_where_labels_are_hidden_change_nothing(batch, seed):
    logits, rows, allowed = batch
    kind, hidden = label_kind(rows), torch.isnan(rows)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)) * 10
    other = torch.where(hidden, noise, logits)
    assert torch.equal(kind.loss(logits, rows, allowed), kind.loss(other, rows, allowed))
    assert torch.equal(kind.hits(logits, rows), kind.hits(other, rows))
    for fill in (float("-inf"), float("inf")):
        assert torch.equal(kind.loss(logits, rows, allowed), kind.loss(logits.masked_fill(hidden, fill), rows, allowed))


@settings(max_examples=40, deadline=None)
@given(batches())
def test_hits_are_micro_f1_at_one_half(batch):
    logits, rows, _ = batch
    found = predicted = positive = 0
    for logit, label in zip(logits.flatten().tolist(), rows.flatten().tolist(), strict=True):
        if not math.isnan(label):
            found += logit > 0 and label == 1
            predicted += logit > 0
            positive += label == 1
    assert label_kind(rows).hits(logits, rows).tolist() == [2 * found, predicted + positive]


def test_a_hidden_label_called_visible_is_not_a_number():
    everything = torch.ones_like(ROWS, dtype=torch.bool)
    losses = visible_cross_entropy(torch.zeros_like(ROWS), ROWS, everything)
    assert torch.equal(torch.isnan(losses), torch.isnan(ROWS))
    assert torch.equal(visible_labels(ROWS), ~torch.isnan(ROWS))
    none = visible_cross_entropy(torch.full_like(ROWS, float("inf")), ROWS, ~everything)
    assert not none.any()


def test_columns_with_a_visible_label_are_shown_positive_or_not():
    assert label_kind(ROWS).shown(ROWS, 4).tolist() == [True, True, False, True]
    ids = torch.tensor([2, 2, 0])
    assert label_kind(ids).shown(ids, 4).tolist() == [True, False, True, False]


def test_a_tracker_follows_both_forms():
    tracker = ClassTracker(4)
    tracker.observe(ROWS)
    assert tracker.exposed.tolist() == [True, True, False, True]
    tracker.begin_session(torch.tensor([1, 2]))
    assert not tracker.session.any()
    batch = torch.tensor([[NAN, NAN, 0.0, NAN]])
    assert tracker.allowed("batch", batch).tolist() == [False, False, True, False]
    assert tracker.allowed("task", batch).tolist() == [False, True, True, False]
    assert tracker.allowed("exposed", batch).all()


def test_one_label_competes_in_a_cross_entropy():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.5, 9.0]])
    ids, allowed = torch.tensor([0, 1]), torch.tensor([True, True, False])
    expected = np.mean([math.log1p(math.exp(2)), math.log1p(math.exp(-0.5))])
    assert float(label_kind(ids).loss(logits, ids, allowed)) == pytest.approx(expected, rel=1e-6)
    assert label_kind(ids).hits(logits, ids).tolist() == [0.0, 1.0]
    assert {kind.name for kind in LABEL_KINDS.values()} == {"accuracy", "F1"}


@pytest.mark.parametrize(
    "targets",
    [
        torch.zeros(3),
        torch.zeros(3, 2, dtype=torch.int64),
        torch.zeros((), dtype=torch.int64),
        torch.zeros(2, 2, 2),
        torch.zeros(3, 2, dtype=torch.bool),
    ],
    ids=lambda targets: f"{tuple(targets.shape)} {targets.dtype}",
)
def test_other_forms_are_refused_in_one_line(targets):
    with pytest.raises(StrategyError, match=r"\A[^\n]*class ids[^\n]*float rows[^\n]*NaN[^\n]*\Z"):
        label_kind(targets)
