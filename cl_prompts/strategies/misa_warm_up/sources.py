"""The two sources of MISA's warm-up: classes that come as a stream, and the rest, a few of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cl_prompts.errors import StrategyError

KEEP = 1 / 3
"""Probability that the classes of the second source stay for one more pass when their images are used up."""


def divide(num_classes: int, held_out_pct: int, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Class ids of the stream, in the order in which they come, and those held out.

    Raises:
        StrategyError: too few classes for two sources.
    """
    held_out = max(1, round(num_classes * held_out_pct / 100))
    if num_classes - held_out < 2:
        raise StrategyError(f"images: {num_classes} classes are too few for a stream and held-out ones; give 3 or more")
    order = draws.permutation(num_classes)
    return order[held_out:], order[:held_out]


def stream_batches(
    labels: np.ndarray, classes: np.ndarray, *, sessions: int, epochs: int, batch: int, draws: np.random.Generator
) -> Iterator[np.ndarray]:
    """Image indices of each update: group after group of classes, each passed `epochs` times in a random order."""
    for group in np.array_split(classes, min(sessions, len(classes))):
        members = np.flatnonzero(np.isin(labels, group))
        for _ in range(epochs):
            order = draws.permutation(members)
            yield from (order[start : start + batch] for start in range(0, len(order), batch))


def held_out_batches(
    labels: np.ndarray, classes: np.ndarray, *, at_once: int, batch: int, draws: np.random.Generator
) -> Iterator[np.ndarray]:
    """Image indices without end: some classes until their images are used up, then others with probability 2/3."""
    chosen = draws.choice(classes, min(at_once, len(classes)), replace=False)
    while True:
        order = draws.permutation(np.flatnonzero(np.isin(labels, chosen)))
        yield from (order[start : start + batch] for start in range(0, len(order), batch))
        if draws.random() >= KEEP:
            chosen = draws.choice(classes, min(at_once, len(classes)), replace=False)
