"""Slow definitions of the multi-label metrics, random tables with many ties, and evaluation points."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from cl_prompts.metrics import MultiLabelPoint, evaluate_logits


def slow_average_precision(scores, labels, known):
    """AP of one class by its definition in exact fractions; None without a positive."""
    entries = [(s, y) for s, y, k in zip(scores, labels, known, strict=True) if k]
    positives = sum(y for _, y in entries)
    if not positives:
        return None
    total, recall_before = Fraction(0), Fraction(0)
    for threshold in sorted({s for s, _ in entries}, reverse=True):
        taken = [y for s, y in entries if s >= threshold]
        recall = Fraction(sum(taken), positives)
        total += (recall - recall_before) * Fraction(sum(taken), len(taken))
        recall_before = recall
    return total


def slow_counts(probabilities, targets, known, threshold):
    """Hits, predictions and positives of each class, label by label."""
    classes = []
    for c in range(len(targets[0]) if len(targets) else 0):
        hits = predicted = positives = 0
        for i in range(len(targets)):
            if known[i][c]:
                guess = np.float32(probabilities[i][c]) > np.float32(threshold)
                hits += bool(guess and targets[i][c])
                predicted += bool(guess)
                positives += bool(targets[i][c])
        classes.append((hits, predicted, positives))
    return classes


def slow_f1(hits, predicted, positives):
    return Fraction(2 * hits, predicted + positives) if predicted + positives else Fraction(0)


def slow_cf1(classes):
    return sum((slow_f1(*one) for one in classes), Fraction(0)) / len(classes)


def slow_cf1_from_mean_pr(classes):
    precision = sum((Fraction(h, p) if p else Fraction(0) for h, p, _ in classes), Fraction(0)) / len(classes)
    recall = sum((Fraction(h, n) if n else Fraction(0) for h, _, n in classes), Fraction(0)) / len(classes)
    return 2 * precision * recall / (precision + recall) if precision + recall else Fraction(0)


def slow_of1(classes):
    return slow_f1(*(sum(column) for column in zip(*classes, strict=True)))


@st.composite
def tables(draw, most_samples=12):
    """Logits with ties, 0/1 targets and known labels."""
    n, c = draw(st.integers(1, most_samples)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 4, 1000]))
    logits = (generator.integers(-levels, levels + 1, (n, c)) / levels * 5).astype(np.float32)
    targets = (generator.random((n, c)) < draw(st.sampled_from([0.1, 0.5, 0.9]))).astype(np.uint8)
    return logits, targets, generator.random((n, c)) < draw(st.sampled_from([0.6, 1.0]))


def multi_label_point(
    samples_seen,
    classes,
    *,
    kind="periodic",
    session=None,
    seed=0,
    known_classes=4,
    thresholds=(0.8, 0.5),
    nominal=None,
):
    """A point on the first `classes` columns of a random table of 40 images, better the more samples were seen."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((40, known_classes)) < 0.4).astype(np.uint8)
    logits = (generator.normal(size=targets.shape) + targets * (0.5 + samples_seen / 20)).astype(np.float32)
    exposed = np.arange(known_classes) < classes
    return MultiLabelPoint.from_result(
        evaluate_logits(logits, targets, exposed, thresholds=thresholds),
        samples_seen=samples_seen,
        nominal=nominal,
        kind=kind,
        session=session,
        loss=0.5,
        exposed=exposed,
    )
