"""A run on images with several labels: three sessions of two classes, two images without any label seen."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from cl_prompts.metrics.multi_label import evaluate_logits
from cl_prompts.metrics.records import MultiLabelPoint

CLASSES, SESSIONS, IMAGES, SESSION_SAMPLES = 6, 3, 40, 20
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]
UNUSED = 3
"""A class without a positive test image."""


def labels():
    """Test labels float32 (images, classes), one of them unknown."""
    targets = (np.random.default_rng(5).random((IMAGES, CLASSES)) < 0.4).astype(np.float32)
    targets[:, UNUSED] = 0
    targets[0, 0] = np.nan
    return targets


def evaluated(session):
    """What a multi-label evaluator keeps after a session."""
    columns = np.arange(CLASSES) < 2 * (session + 1)
    targets = labels()
    logits = np.random.default_rng(session).normal(3 * np.nan_to_num(targets) - 1, 2).astype(np.float32)
    rows = (targets[:, columns] == 1).any(axis=1)
    return SimpleNamespace(logits=logits, targets=targets, rows=rows, columns=columns)


def point(session, kind="session", samples_seen=None):
    """The evaluation of `evaluated(session)`."""
    found = evaluated(session)
    result = evaluate_logits(found.logits[found.rows], found.targets[found.rows], found.columns)
    return MultiLabelPoint.from_result(
        result,
        samples_seen=SESSION_SAMPLES * (session + 1) if samples_seen is None else samples_seen,
        kind=kind,
        loss=0.5 + session,
        exposed=found.columns,
        session=session if kind == "session" else None,
    )
