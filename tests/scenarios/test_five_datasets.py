"""`five_datasets` on tiny generated files in the official formats."""

import gzip
import hashlib
import pickle
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from scenarios.datasets import _five_sources, check_data, check_dataset, five_datasets, load_dataset
from scenarios.datasets import read_dataset_settings as settings_of
from scenarios.datasets._idx import read_idx
from scenarios.errors import DataError
from scenarios.pins import Pins

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 3], dtype=np.uint8)


def idx(values):
    return gzip.compress(
        struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes(), mtime=0
    )


def put(root, record, contents):
    """Write files and give the record their checksums."""
    record.place(root).mkdir(parents=True)
    files = []
    for file, data in zip(record.files, contents, strict=True):
        (record.place(root) / file.name).write_bytes(data)
        files.append(replace(file, md5=hashlib.md5(data).hexdigest()))
    return replace(record, files=tuple(files))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """All five, four images a part; letters have one image a class."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    contents = {
        "train": {"data": COLOUR.reshape(4, -1), "labels": LABELS.tolist()},
        "test": {"data": COLOUR[:1].reshape(1, -1), "labels": [5]},
        "meta": {"label_names": list("0123456789")},
    }
    sums = {}
    for name, content in contents.items():
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = (name, hashlib.md5(data).hexdigest())
    cifar = replace(_five_sources.CIFAR, train=(sums["train"],), test=(sums["test"],), names=sums["meta"])
    grey = [idx(GREY), idx(LABELS), idx(GREY[:1]), idx(LABELS[:1])]
    mnist = put(tmp_path, _five_sources.MNIST, grey)
    fashion = put(tmp_path, _five_sources.FASHION_MNIST, grey)
    mats = []
    for count in (4, 1):
        path = tmp_path / "x.mat"
        savemat(path, {"X": COLOUR[:count].transpose(2, 3, 1, 0), "y": np.array([[10], [1], [9], [10]][:count])})
        mats.append(path.read_bytes())
        path.unlink()
    svhn = put(tmp_path, _five_sources.SVHN, mats)
    for part in ("train", "test"):
        for number, letter in enumerate("ABCDEFGHIJ"):
            path = tmp_path / "notMNIST" / part / letter / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((28, 28), 10 * number, dtype=np.uint8)).save(path)
    for name, value in (("CIFAR", cifar), ("SVHN", svhn)):
        monkeypatch.setattr(_five_sources, name, value)
    sources = list(_five_sources.SOURCES)
    for position, record in ((1, mnist), (2, fashion)):
        sources[position] = replace(sources[position], read=_five_sources._idx_reader(record))
    monkeypatch.setattr(five_datasets, "SOURCES", tuple(sources))
    records = (cifar.official, mnist, fashion, svhn, _five_sources.NOT_MNIST)
    monkeypatch.setattr(five_datasets, "OFFICIAL", records)
    return tmp_path


def load(root, **values):
    return load_dataset("five_datasets", settings_of("five_datasets")(root=str(root), **values), image_size=224)


def enlarged(grey):
    return np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC))


def test_classes_and_pixels_are_in_the_documented_order(root):
    train, test = load(root)
    first = [3, 0, 9, 3]
    assert train.targets.tolist() == [
        *first, *(10 + x for x in first), *(20 + x for x in first), 30, 31, 39, 30, *range(40, 50)
    ]  # fmt: skip
    assert test.targets.tolist() == [5, 13, 23, 30, *range(40, 50)]
    images = train.images(range(26)).numpy()
    assert np.array_equal(images[:4], COLOUR)
    for row, grey in enumerate(GREY):
        for start in (4, 8):
            assert np.array_equal(images[start + row], np.repeat(enlarged(grey)[None], 3, axis=0))
    assert np.array_equal(images[12:16], COLOUR)
    assert [int(image.max()) for image in images[16:]] == [10 * number for number in range(10)]
    assert len(train.class_names) == len(set(train.class_names)) == 50
    assert [train.class_names[i] for i in (0, 10, 20, 30, 49)] == [
        "CIFAR-10 airplane", "MNIST 0", "Fashion-MNIST T-shirt/top", "SVHN 0", "notMNIST J"
    ]  # fmt: skip


def test_a_subset_is_drawn_from_every_class(root):
    whole, _ = load(root)
    train, test = load(root, train_per_class=1)
    assert sorted(train.targets.tolist()) == sorted(set(whole.targets.tolist()))
    assert len(test) == 14
    rows = {image.tobytes() for image in whole.images(range(len(whole))).numpy()}
    assert {image.tobytes() for image in train.images(range(len(train))).numpy()} <= rows


def test_unreadable_letters_are_left_out_and_said(root):
    (root / "notMNIST/train/A/damaged.png").write_bytes(b"x")
    train, _ = load(root)
    assert len(train) == 26
    assert any("1 unreadable files were left out" in note for note in train.notes)


@pytest.mark.parametrize("name", ["MNIST/raw/train-labels-idx1-ubyte.gz", "SVHN/test_32x32.mat"])
def test_other_files_than_the_official_ones_are_refused(root, name):
    path = root / name
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="is not the official file") as caught:
        load(root)
    assert str(path) in str(caught.value)


def test_what_is_missing_is_said_before_anything_is_downloaded(tmp_path):
    settings = settings_of("five_datasets")(root=str(tmp_path))
    for action in (lambda: check_dataset("five_datasets", settings), lambda: load(tmp_path)):
        with pytest.raises(DataError, match="notMNIST") as caught:
            action()
        assert "no address of it is certain" in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "notMNIST/train").mkdir(parents=True)
    (tmp_path / "notMNIST/test").mkdir()
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz"):
        check_dataset("five_datasets", settings_of("five_datasets")(root=str(tmp_path), download=False))


def test_check_data_reads_all_five(root):
    rows = check_data("five_datasets", settings_of("five_datasets")(root=str(root)), pins=Pins(root / "pins"))
    assert [row.state for row in rows] == ["absent", *["ok"] * 10, "ok", "ok"]
    shutil.rmtree(root / "notMNIST" / "test")
    rows = check_data("five_datasets", settings_of("five_datasets")(root=str(root)), pins=Pins(root / "pins"))
    assert (rows[-1].state, rows[-1].part) == ("missing", str(root / "notMNIST" / "test"))
    assert "Y. Bulatov" in rows[-1].advice


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        idx(GREY)[:-9],
        gzip.compress(b"", mtime=0),
        idx(LABELS),
        gzip.compress(gzip.decompress(idx(GREY))[:-1], mtime=0),
        gzip.compress(gzip.decompress(idx(GREY)) + b"\0", mtime=0),
        idx(np.zeros((9, 200, 200), dtype=np.uint8)),
    ],
)
def test_damaged_arrays(tmp_path, data):
    path = tmp_path / "a.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match="get it again") as caught:
        read_idx(path, dimensions=3, max_bytes=10_000, advice="get it again")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_are_read(tmp_path):
    (tmp_path / "a.gz").write_bytes(idx(GREY))
    assert np.array_equal(read_idx(tmp_path / "a.gz", dimensions=3, max_bytes=10_000, advice=""), GREY)


def test_records_are_those_of_torchvision():
    from torchvision.datasets import MNIST, SVHN, FashionMNIST

    for record, official in ((_five_sources.MNIST, MNIST), (_five_sources.FASHION_MNIST, FashionMNIST)):
        assert [(file.name, file.md5) for file in record.files] == official.resources
        assert {file.url.removesuffix(file.name) for file in record.files} <= set(official.mirrors)
    for file, split in zip(_five_sources.SVHN.files, ("train", "test"), strict=True):
        assert [file.url, file.name, file.md5] == SVHN.split_list[split]
