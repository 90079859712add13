"""Seeded choices among labelled samples: a split where the data brings none, and a subset of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from scenarios.datasets.base import DatasetSettings
from scenarios.errors import DataError


def _members(targets: np.ndarray, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """(class id, ascending indices of its samples) of every class; a multi-label sample belongs to several."""
    if targets.ndim == 2:
        yield from ((class_id, np.flatnonzero(targets[:, class_id])) for class_id in range(num_classes))
        return
    order = np.argsort(targets, kind="stable")  # linear in the samples, however many classes there are
    ends = np.cumsum(np.bincount(targets, minlength=num_classes))
    yield from enumerate(np.split(order, ends[:-1]))


def class_counts(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Samples of each class, int64 `(classes,)`, of class ids `(samples,)` or multi-hot `(samples, classes)`."""
    if targets.ndim == 2:
        return targets.sum(axis=0, dtype=np.int64)
    return np.bincount(targets, minlength=num_classes)


def stratified_split(
    targets: np.ndarray, class_names: Sequence[str], *, test_pct: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split each class at random: `test_pct` per cent of it, rounded half up, at least one sample and never all.

    With one label a sample, one class never changes the draw of another. With several labels the classes are served
    one after the other, always the one with the fewest undecided samples (of equal ones the lowest id): of its
    undecided samples so many are drawn for testing as its share still lacks, the rest is for training (after
    Sechidis, Tsoumakas, Vlahavas: On the stratification of multi-label data, ECML PKDD 2011). Shares are then met as
    closely as co-occurrence allows. Samples without a label are split last, with the same per cent.

    Args:
        targets: class ids int64 `(samples,)` or multi-hot uint8 `(samples, classes)`.
        class_names: one name a class id.
        test_pct: per cent for testing, 1..99.
        seed: seed of the draw.

    Returns:
        Ascending int64 indices of the training and of the test samples.

    Raises:
        DataError: a class has a single sample.
    """
    members = dict(_members(targets, len(class_names)))
    for class_id, samples in members.items():
        if len(samples) == 1:
            raise DataError(
                f"class {class_names[class_id]!r} has 1 image, which cannot be split into train and test; "
                "add images or remove the class"
            )
    is_test = np.zeros(len(targets), dtype=bool)
    undecided = np.ones(len(targets), dtype=bool)
    left = class_counts(targets, len(class_names))
    waiting = [class_id for class_id, samples in members.items() if len(samples)]
    while waiting:
        class_id = waiting.pop(int(np.argmin(left[waiting])))
        samples = members[class_id]
        quota = min(max(_share(len(samples), test_pct), 1), len(samples) - 1)
        lacking = quota - np.count_nonzero(is_test[samples])
        drawn = np.random.default_rng([seed, class_id]).permutation(samples[undecided[samples]])
        is_test[drawn[: max(lacking, 0)]] = True
        undecided[drawn] = False
        left = left - class_counts(targets[drawn], len(class_names))
    unlabelled = np.flatnonzero(undecided)
    drawn = np.random.default_rng([seed, len(class_names)]).permutation(unlabelled)
    is_test[drawn[: _share(len(drawn), test_pct)]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _share(count: int, percent: int) -> int:
    """Per cent of a count, rounded half up."""
    return (2 * count * percent + 100) // 200


def training_subset(
    targets: np.ndarray, class_names: Sequence[str], settings: DatasetSettings
) -> tuple[np.ndarray, list[str]]:
    """`train_per_class` samples of each class, drawn with `subset_seed`; all of a class that has fewer.

    With several labels a sample, so many samples that have the label are drawn for each class, and the subset is
    their union: a class gets more where samples drawn for other classes have it, too. Samples without a label are in
    no subset.

    Args:
        targets: class ids int64 `(samples,)` or multi-hot uint8 `(samples, classes)` of the training part.
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
    return np.unique(np.concatenate(chosen)), notes


def describe_subset(settings: DatasetSettings) -> str:
    """The subset in words, for a data set's identity."""
    if settings.train_per_class is None:
        return "all"
    return f"{settings.train_per_class} a class, seed {settings.subset_seed}"
