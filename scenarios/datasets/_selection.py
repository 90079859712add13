"""Seeded choices among labelled samples: a split where the data brings none, and a subset of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from scenarios.datasets.base import DatasetSettings
from scenarios.errors import DataError


def _members(targets: np.ndarray, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """(class id, ascending indices of its samples) of every class, in time linear in the samples."""
    order = np.argsort(targets, kind="stable")
    ends = np.cumsum(np.bincount(targets, minlength=num_classes))
    yield from enumerate(np.split(order, ends[:-1]))


def stratified_split(
    targets: np.ndarray, class_names: Sequence[str], *, test_pct: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split each class at random; one class never changes the draw of another.

    Args:
        targets: class ids int64 `(samples,)`.
        class_names: one name a class id.
        test_pct: per cent of each class for testing, 1..99, rounded half up, at least one sample and never all.
        seed: seed of the draw.

    Returns:
        Ascending int64 indices of the training and of the test samples.

    Raises:
        DataError: a class has a single sample.
    """
    is_test = np.zeros(len(targets), dtype=bool)
    for class_id, members in _members(targets, len(class_names)):
        if len(members) == 1:
            raise DataError(
                f"class {class_names[class_id]!r} has 1 image, which cannot be split into train and test; "
                "add images or remove the class"
            )
        if len(members):
            wanted = (2 * len(members) * test_pct + 100) // 200
            count = min(max(wanted, 1), len(members) - 1)
            is_test[np.random.default_rng([seed, class_id]).permutation(members)[:count]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def training_subset(
    targets: np.ndarray, class_names: Sequence[str], settings: DatasetSettings
) -> tuple[np.ndarray, list[str]]:
    """`train_per_class` samples of each class, drawn with `subset_seed`; all of a class that has fewer.

    Args:
        targets: class ids int64 `(samples,)` of the training part.
        class_names: one name a class id.
        settings: `train_per_class` (None: everything) and `subset_seed`.

    Returns:
        Ascending int64 indices into `targets`, and a note where a class was too small.
    """
    per_class = settings.train_per_class
    if per_class is None:
        return np.arange(len(targets)), []
    chosen, short = [], []
    for class_id, members in _members(targets, len(class_names)):
        # The first of one fixed permutation: a subset of 50 contains the subset of 20.
        chosen.append(np.random.default_rng([settings.subset_seed, class_id]).permutation(members)[:per_class])
        if len(members) < per_class:
            short.append((len(members), class_names[class_id]))
    notes = []
    if short:
        fewest, name = min(short)
        notes.append(
            f"{len(short)} of {len(class_names)} classes have fewer than train_per_class={per_class} training images "
            f"(fewest: {name!r} with {fewest}); all of theirs are used"
        )
    return np.sort(np.concatenate(chosen)), notes


def describe_subset(settings: DatasetSettings) -> str:
    """The subset in words, for a data set's identity."""
    if settings.train_per_class is None:
        return "all"
    return f"{settings.train_per_class} a class, seed {settings.subset_seed}"
