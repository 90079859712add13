"""Mosaics of several labels: what is stated about the composition holds, and the parts share no source image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from scenarios.datasets import check_dataset, load_dataset, read_dataset_settings
from scenarios.datasets._digit_scans import read_scans, split_scans
from scenarios.datasets._mosaics import MosaicSettings, co_occurrence, compose, partner
from scenarios.datasets.base import ArrayPixels
from scenarios.errors import DataError

Digits = read_dataset_settings("digit_mosaics")


@pytest.fixture(scope="module")
def mosaics():
    return load_dataset("digit_mosaics", image_size=224)


def numbered_images(classes: int, each: int) -> tuple[ArrayPixels, np.ndarray]:
    """Source images of one pixel whose red is the class + 1 and whose green is the number within the class + 1."""
    targets = np.repeat(np.arange(classes), each)
    pixels = np.zeros((len(targets), 3, 1, 1), dtype=np.uint8)
    pixels[:, 0, 0, 0] = targets + 1
    pixels[:, 1, 0, 0] = np.tile(np.arange(each), classes) + 1
    return ArrayPixels(pixels), targets


def test_content_is_pinned(mosaics):
    train, test = mosaics
    assert train.identity["sha256"] == "a77d26cf433afa99b2ba94edf1957a39fd9952a4e8355fc38128fe71af1b20f3"
    assert test.identity["sha256"] == "71e0687846045fea3f6855887538c0d090f211cd039e0e6db234c4391b92cb4f"
    assert "1500 mosaics, cardinality_pct=[25, 40, 25, 10], attraction_pct=40" in train.identity["mosaics"]
    assert (train.identity["part"], test.identity["part"]) == ("train", "test")
    assert train.class_names[3] == "three"
    assert train.multi_label
    assert Digits().multi_label


def test_normalisation_is_that_of_the_training_mosaics(mosaics):
    pixels = mosaics[0].images(range(len(mosaics[0]))).double() / 255
    mean, std = mosaics[0].normalisation
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=5e-5)
    assert std == pytest.approx(pixels.std((0, 2, 3), unbiased=False).tolist(), abs=5e-5)


def test_cells_are_scans_of_their_own_pool_and_of_the_labels(mosaics):
    pixels, targets = read_scans(16)
    pools = split_scans(targets, 20)
    assert not set(pools[0]) & set(pools[1])
    for part, pool in zip(mosaics, pools, strict=True):
        known: dict[bytes, set[int]] = {}
        for scan in pool:
            known.setdefault(pixels[scan].tobytes(), set()).add(targets[scan])
        cells = part.images(range(len(part))).numpy().reshape(len(part), 3, 2, 16, 2, 16).transpose(0, 2, 4, 1, 3, 5)
        for row, image in zip(part.targets, cells.reshape(len(part), 4, 3, 16, 16), strict=True):
            filled = [cell.tobytes() for cell in image if cell.any()]
            assert len(filled) == row.sum()
            assert set().union(*(known[cell] for cell in filled)) >= set(np.flatnonzero(row))


def test_cardinality_is_exact(mosaics):
    for part in mosaics:
        numbers = np.bincount(part.targets.sum(axis=1), minlength=5)
        assert numbers.tolist() == [0, *(len(part) * np.array([25, 40, 25, 10]) // 100)]
        assert part.targets.sum() / len(part) == pytest.approx(2.2)
    assert "2.20 labels an image" in mosaics[0].notes[0]


def test_attraction_is_measurable(mosaics):
    pairs = [(class_id, partner(class_id, 10)) for class_id in range(10)]
    together = {}
    for attraction in (0, 40, 100):
        train, _ = load_dataset("digit_mosaics", Digits(attraction_pct=attraction), image_size=32)
        shares = co_occurrence(train.targets)
        together[attraction] = np.mean([shares[pair] for pair in pairs])
    # Without attraction a pair is like any other: the share of images with another given class.
    chance = np.mean([number * (number - 1) for number in mosaics[0].targets.sum(axis=1)]) / 9 / 2.2
    assert together[0] == pytest.approx(chance, abs=0.03)
    assert together[40] > together[0] + 0.2
    assert together[100] > together[40] + 0.2


def test_settings_change_content_and_identity(mosaics):
    values = [{"mosaic_seed": 1}, {"attraction_pct": 41}, {"cardinality_pct": (30, 30, 30, 10)}, {"images_train": 1501}]
    parts = [load_dataset("digit_mosaics", Digits(**value), image_size=32) for value in values]
    assert len({pair[0].identity["sha256"] for pair in (*parts, mosaics)}) == 5
    assert len({pair[0].identity["mosaics"] for pair in (*parts, mosaics)}) == 5
    assert parts[3][1].identity == mosaics[1].identity


def test_a_subset_of_each_class(mosaics):
    train, test = load_dataset("digit_mosaics", Digits(train_per_class=20), image_size=32)
    assert (train.targets.sum(axis=0) >= 20).all()
    assert len(train) <= 200
    assert train.identity["subset"] == "20 a class, seed 0"
    whole = {image.tobytes() for image, _, _ in mosaics[0]}
    assert {image.tobytes() for image, _, _ in train} <= whole
    assert test.identity == mosaics[1].identity


@given(
    classes=st.integers(4, 9),
    each=st.integers(1, 5),
    images=st.integers(10, 60),
    attraction=st.integers(0, 100),
    cuts=st.tuples(*[st.integers(0, 100)] * 3),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_composition_keeps_its_promises(classes, each, images, attraction, cuts, seed):
    shares = tuple(np.diff([0, *sorted(cuts), 100]).tolist())
    how = MosaicSettings(cardinality_pct=shares, attraction_pct=attraction)
    pixels, targets = numbered_images(classes, each)
    made, rows = compose(pixels, targets, classes, how, images=images, seed=(seed,))
    assert (made.shape, made.dtype, rows.shape, rows.dtype) == (
        (images, 3, 2, 2),
        np.uint8,
        (images, classes),
        np.uint8,
    )
    numbers = np.bincount(rows.sum(axis=1), minlength=5)[1:]
    assert numbers.sum() == images
    assert np.abs(numbers - np.array(shares) * images / 100).max() < 1
    uses = np.zeros((classes, each), dtype=int)
    for image, row in zip(made, rows, strict=True):
        reds = image[0].ravel()
        present = reds[reds > 0]
        assert sorted(present - 1) == np.flatnonzero(row).tolist()  # each label once and nothing else
        np.add.at(uses, (present - 1, image[1].ravel()[reds > 0] - 1), 1)
    assert (uses.max(axis=1) - uses.min(axis=1) <= 1).all()
    assert (rows.sum(axis=0) >= images // classes).all()
    again = compose(pixels, targets, classes, how, images=images, seed=(seed,))
    assert np.array_equal(again[0], made)


def test_every_cell_is_used_alike():
    pixels, targets = numbered_images(8, 3)
    made, rows = compose(pixels, targets, 8, MosaicSettings(), images=2000, seed=(0,))
    filled = (made[:, 0] > 0).mean(axis=0)
    assert np.abs(filled - rows.sum() / 2000 / 4).max() < 0.04


@pytest.mark.parametrize("classes", [1, 2, 5, 10, 11])
def test_partners_are_mutual(classes):
    partners = [partner(class_id, classes) for class_id in range(classes)]
    assert partners.count(None) == classes % 2
    for class_id, other in enumerate(partners):
        assert other is None or (other != class_id and partners[other] == class_id)


def test_what_cannot_be_composed():
    pixels, targets = numbered_images(12, 1)
    with pytest.raises(DataError, match=r"dataset\.images_train=11: so few mosaics cannot show 12 classes"):
        compose(pixels, targets, 12, MosaicSettings(), images=11, seed=(0,))
    pixels, targets = numbered_images(3, 1)
    with pytest.raises(DataError, match=r"dataset\.cardinality_pct=\[25, 40, 25, 10\] wants 4 labels .* 3 classes"):
        compose(pixels, targets, 3, MosaicSettings(), images=20, seed=(0,))
    few = MosaicSettings(cardinality_pct=(50, 50, 0, 0))
    assert compose(pixels, targets, 3, few, images=20, seed=(0,))[1].sum() == 30


def test_classes_without_a_source_are_in_no_mosaic():
    pixels, targets = numbered_images(8, 2)
    made, rows = compose(
        ArrayPixels(pixels.read(np.arange(10))), targets[:10], 8, MosaicSettings(), images=50, seed=(1,)
    )
    assert rows.shape == (50, 8)
    assert np.array_equal(rows.any(axis=0), [True] * 5 + [False] * 3)
    assert made[:, 0].max() == 5


@pytest.mark.parametrize(
    "values",
    [
        {"cardinality_pct": (25, 40, 25, 11)},
        {"cardinality_pct": (50, 50)},
        {"cardinality_pct": (-10, 110, 0, 0)},
        {"attraction_pct": 101},
        {"images_train": 9},
        {"mosaic_seed": -1},
    ],
)
def test_settings_refuse_what_is_not_allowed(values):
    with pytest.raises(ValidationError):
        Digits(**values)
    assert Digits(cardinality_pct=[100, 0, 0, 0]).cardinality_pct == (100, 0, 0, 0)


# image_mosaics

Own = read_dataset_settings("image_mosaics")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five classes, three training and two test images each, whose one colour is class, part and number."""
    root = tmp_path_factory.mktemp("images")
    for part, count in ((1, 3), (2, 2)):
        for class_id in range(5):
            for number in range(count):
                path = root / ("train", "test")[part - 1] / f"class {class_id}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 7), (10 * (class_id + 1), 10 * part, 10 * (number + 1))).save(path)
    return root


def load_own(folder, image_size=8, **values):
    return load_dataset("image_mosaics", Own(root=str(folder), **values), image_size=image_size)


def test_own_images_fill_cells_of_their_own_part(folder):
    for part, data in enumerate(load_own(folder, images_train=60, images_test=40), start=1):
        assert data.class_names == tuple(f"class {class_id}" for class_id in range(5))
        assert data.image_shape == (8, 8)
        cells = data.images(range(len(data))).reshape(len(data), 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        assert torch.equal(cells, cells[..., :1, :1].expand_as(cells))  # one colour a cell, the image whole
        for row, image in zip(data.targets, cells[..., 0, 0], strict=True):
            filled = image[image[:, 0] > 0]
            assert sorted((filled[:, 0] // 10 - 1).tolist()) == np.flatnonzero(row).tolist()
            assert (filled[:, 1] == 10 * part).all()


def test_own_mosaics_do_not_depend_on_the_cache(folder, tmp_path):
    values = ({"cache": "none"}, {"cache": "mmap", "cache_folder": str(tmp_path / "cache")})
    cached, *others = load_own(folder), *(load_own(folder, **value) for value in values)
    for other in others:
        assert [part.identity for part in other] == [part.identity for part in cached]
        assert [part.notes for part in other] == [part.notes for part in cached]
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2
    assert Own().multi_label
    assert cached[0].identity["image_size"] == 8
    assert load_own(folder, size=20)[0].image_shape == (20, 20)
    assert load_own(folder, image_size=9)[0].image_shape == (8, 8)
    assert load_own(folder, mosaic_seed=1)[0].identity["sha256"] != cached[0].identity["sha256"]


@pytest.mark.parametrize(
    "values, text, others",
    [
        ({"images_train": 10}, "dataset.images_train=10: so few mosaics cannot show 12 classes; set", "images_test"),
        ({"images_test": 11}, "dataset.images_test=11: so few mosaics cannot show 12 classes; set", "images_train"),
        ({"file_list": "three.csv"}, "dataset.cardinality_pct=[25, 40, 25, 10] wants 4 labels", "images_"),
    ],
)
def test_own_mosaics_that_cannot_be_composed_open_no_image(tmp_path, monkeypatch, values, text, others):
    rows = [f"{number}.png,class {number % 12}" for number in range(24)]
    for number in range(24):
        (tmp_path / f"{number}.png").touch()
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    (tmp_path / "three.csv").write_text(
        "path,label\n" + "\n".join(row for row in rows if row[-2:] in (" 0", " 1", " 2"))
    )
    monkeypatch.setattr("scenarios.datasets._decoding._read", lambda path: pytest.fail("an image was opened"))
    values = {"file_list": "list.csv"} | values
    chosen = Own(**values | {"file_list": str(tmp_path / values["file_list"]), "test_pct": 50})
    for refused in (
        lambda: check_dataset("image_mosaics", chosen),
        lambda: load_dataset("image_mosaics", chosen, image_size=8),
    ):
        with pytest.raises(DataError) as refusal:
            refused()
        assert text in str(refusal.value)
        assert others not in str(refusal.value)


def test_own_mosaics_refuse_what_image_folder_refuses(folder, tmp_path):
    for settings_, text in (
        (Own(), r"dataset\.root is not set"),
        (Own(root=str(tmp_path / "no")), "does not exist"),
        (Own(root=str(folder), test_pct=10), "no effect"),
    ):
        with pytest.raises(DataError, match=text):
            check_dataset("image_mosaics", settings_)
        with pytest.raises(DataError, match=text):
            load_dataset("image_mosaics", settings_, image_size=8)
