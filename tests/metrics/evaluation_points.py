"""Evaluation points for tests, made from readable numbers."""

from __future__ import annotations

import numpy as np

from cl_prompts.metrics import EvaluationPoint


def point(samples_seen, correct, count, *, kind="periodic", session=None, nominal=None, exposed=None, loss=1.0):
    """A point whose wrong predictions all go to the next class."""
    hits, total = np.asarray(correct, np.int64), np.asarray(count, np.int64)
    confusion = np.diag(hits)
    following = (np.arange(len(hits)) + 1) % len(hits)
    confusion[np.arange(len(hits)), following] += total - hits
    return EvaluationPoint.from_confusion(
        confusion,
        samples_seen=samples_seen,
        nominal=nominal,
        kind=kind,
        session=session,
        loss=loss,
        exposed=total > 0 if exposed is None else np.asarray(exposed, bool),
    )


def small_run():
    """A stream of 30 samples in two sessions, three classes: points, sessions, class kinds (0 and 2 disjoint)."""
    points = [
        point(12, [3, 0, 0], [4, 0, 0], nominal=10),
        point(22, [2, 1, 0], [4, 2, 0], nominal=20),
        point(30, [1, 2, 2], [4, 2, 2], kind="final"),
    ]
    sessions = [
        point(16, [4, 1, 0], [4, 2, 0], kind="session", session=0),
        point(30, [1, 2, 2], [4, 2, 2], kind="session", session=1),
    ]
    return points, sessions, np.array([0, 1, 0])
