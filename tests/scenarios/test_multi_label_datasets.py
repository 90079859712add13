"""Several labels an image: what `ImageDataset` keeps, what its identity covers, splits and subsets of classes."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scenarios.datasets._selection import class_counts, stratified_split, training_subset
from scenarios.datasets.base import ArrayPixels, DatasetSettings, ImageDataset, array_dataset
from scenarios.errors import DataError

ROWS = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8)
KNOWN = np.array([[True, True, True], [False, True, True]])


def pixels(count: int = 2) -> np.ndarray:
    return np.arange(count * 48, dtype=np.uint8).reshape(count, 3, 4, 4)


def data_set(rows=ROWS, known=None, content=None, **details) -> ImageDataset:
    return array_dataset(
        pixels(len(rows)) if content is None else content, rows, "abc", identity={"name": "x"}, known=known, **details
    )


@pytest.mark.parametrize("kind", [np.uint8, bool, np.int64, float])
def test_rows_are_kept_as_small_numbers(kind):
    part = data_set(ROWS.astype(kind))
    assert part.multi_label
    assert part.targets.dtype == np.uint8
    assert np.array_equal(part.targets, ROWS)
    assert part.known is None
    image, row, index = part[-2]
    assert (image.shape, row.dtype, row.tolist(), index) == ((4, 4, 3), np.uint8, [1, 0, 1], 0)
    row[:] = 0  # a copy: the labels stay
    assert part.targets[0].tolist() == [1, 0, 1]
    with pytest.raises(ValueError):
        part.targets[0, 0] = 0
    assert np.array_equal(pickle.loads(pickle.dumps(part)).targets, ROWS)


def test_one_label_is_not_several():
    part = array_dataset(pixels(), [0, 2], "abc", identity={"name": "x"})
    assert not part.multi_label
    assert part.known is None
    assert isinstance(part[0][1], int)
    assert not DatasetSettings().multi_label


def test_unknown_labels():
    part = data_set(known=KNOWN)
    assert np.array_equal(part.known, KNOWN)
    with pytest.raises(ValueError):
        part.known[0, 0] = False
    assert data_set(known=np.ones_like(KNOWN)).known is None


@pytest.mark.parametrize(
    "rows, known",
    [
        (ROWS[:, :2], None),
        (ROWS * 2, None),
        (ROWS[:1], None),
        (ROWS[None], None),
        (ROWS, KNOWN[:, :2]),
        (ROWS, KNOWN.astype(int)),
        (ROWS, ~KNOWN),
        (np.array([0, 1]), KNOWN),
    ],
)
def test_labels_that_do_not_fit_are_refused(rows, known):
    with pytest.raises(ValueError):
        ImageDataset(ArrayPixels(pixels()), rows, "abc", identity={"name": "x"}, known=known)


def test_identity_covers_rows_unknown_labels_and_pixels():
    changed = pixels()
    changed[1, 2, 3, 3] ^= 1
    other = ROWS.copy()
    other[1, 1] = 1
    parts = [data_set(), data_set(other), data_set(known=KNOWN), data_set(content=changed)]
    one_label = array_dataset(pixels(), [0, 2], "abc", identity={"name": "x"})
    assert len({part.identity["sha256"] for part in (*parts, one_label)}) == 5
    assert data_set().identity == data_set(known=np.ones_like(KNOWN)).identity


def test_identity_tells_shapes_apart():
    # Without the shape of the labels both would hash sixteen zero bytes.
    wide = array_dataset(np.zeros((2, 3, 1, 2), dtype=np.uint8), np.zeros((2, 2)), "ab", identity={"name": "x"})
    many = array_dataset(np.zeros((2, 3, 1, 1), dtype=np.uint8), np.zeros((2, 5)), "abcde", identity={"name": "x"})
    assert wide.identity["sha256"] != many.identity["sha256"]


ROW_SETS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 6)), elements=st.integers(0, 1))


@given(rows=ROW_SETS, test_pct=st.integers(1, 99), seed=st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_split_is_a_partition_near_the_shares(rows, test_pct, seed):
    names = "abcdef"[: rows.shape[1]]
    counts = class_counts(rows, len(names))
    if (counts == 1).any():
        with pytest.raises(DataError, match="has 1 image"):
            stratified_split(rows, names, test_pct=test_pct, seed=seed)
        return
    train, test = stratified_split(rows, names, test_pct=test_pct, seed=seed)
    assert sorted([*train, *test]) == list(range(len(rows)))
    again = stratified_split(rows, names, test_pct=test_pct, seed=seed)
    assert np.array_equal(test, again[1])
    # The class served first, the rarest, gets exactly its share.
    rarest = min((count, class_id) for class_id, count in enumerate([*counts, len(rows) + 1]) if count)[1]
    if rarest < len(names):
        count = counts[rarest]
        wanted = min(max((2 * count * test_pct + 100) // 200, 1), count - 1)
        assert rows[test][:, rarest].sum() == wanted
    blank = ~rows.any(axis=1)
    assert blank[test].sum() == (2 * blank.sum() * test_pct + 100) // 200


def test_every_class_gets_its_share_of_a_large_set():
    rng = np.random.default_rng(3)
    rows = (rng.random((4000, 12)) < np.geomspace(0.5, 0.01, 12)).astype(np.uint8)
    counts = rows.sum(axis=0)
    _, test = stratified_split(rows, "abcdefghijkl", test_pct=20, seed=0)
    shares = rows[test].sum(axis=0) / counts
    assert np.abs(shares - 0.2).max() < 0.05
    other = stratified_split(rows, "abcdefghijkl", test_pct=20, seed=1)[1]
    assert not np.array_equal(test, other)


def test_rows_of_one_label_each_split_like_class_ids():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    rows = np.eye(5, dtype=np.uint8)[labels]
    expected = stratified_split(labels, "abcde", test_pct=30, seed=4)
    assert np.array_equal(stratified_split(rows, "abcde", test_pct=30, seed=4)[1], expected[1])
    draw = DatasetSettings(train_per_class=7)
    assert np.array_equal(training_subset(rows, "abcde", draw)[0], training_subset(labels, "abcde", draw)[0])


@given(rows=ROW_SETS, count=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_subset_has_so_many_of_each_class_and_nests(rows, count, seed):
    names = "abcdef"[: rows.shape[1]]
    draw = DatasetSettings(train_per_class=count, subset_seed=seed)
    chosen, notes = training_subset(rows, names, draw)
    assert np.array_equal(np.unique(chosen), chosen)
    present = rows.sum(axis=0, dtype=int)
    assert (rows[chosen].sum(axis=0, dtype=int) >= np.minimum(present, count)).all()
    assert len(chosen) <= np.minimum(present, count).sum()
    assert rows[chosen].any(axis=1).all()
    assert bool(notes) == bool((present < count).any())
    larger, _ = training_subset(rows, names, DatasetSettings(train_per_class=count + 1, subset_seed=seed))
    assert set(chosen) <= set(larger)


def test_without_a_subset_unlabelled_images_stay():
    assert training_subset(ROWS, "abc", DatasetSettings())[0].tolist() == [0, 1]
