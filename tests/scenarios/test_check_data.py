"""`check_data`: what is on disk against the records."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenarios._archives import Limits
from scenarios._downloads import RemoteFile
from scenarios.datasets import check_data, cifar100, dataset_names, read_dataset_settings
from scenarios.datasets._official import first_missing
from scenarios.pins import Pins


@pytest.fixture
def pins(tmp_path):
    return Pins(tmp_path / "pins.json")


def test_bundled_digits_have_no_files_and_both_parts(pins):
    train, test = check_data("digits", read_dataset_settings("digits")(train_per_class=1), pins=pins)
    assert (train.part, test.part) == ("train", "test")
    assert train.found.startswith("1,438 images of 10 classes, sha256 ")  # all of them, whatever the subset
    assert train.good
    assert test.good


@pytest.mark.parametrize("name", sorted({"cifar10", "cifar100", "voc2007"} & set(dataset_names())))
def test_what_is_missing_is_a_row_with_what_to_do(name, tmp_path, pins):
    rows = check_data(name, read_dataset_settings(name)(root=str(tmp_path / "data")), pins=pins)
    assert {row.state for row in rows} == {"missing"}
    for row in rows:
        assert not row.good
        assert str(tmp_path / "data") in row.advice
        assert "https://" in row.advice
        assert "md5" in row.expected
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("known", [True, False])
def test_files_are_compared_with_record_or_pin(tmp_path, monkeypatch, pins, known):
    content = b"archive"
    path = tmp_path / "data" / "a.tar"
    path.parent.mkdir()
    path.write_bytes(content)
    (path.parent / "tree").mkdir()
    record = replace(
        cifar100.CIFAR100.official,
        files=(RemoteFile("http://x", "a.tar", md5=hashlib.md5(content).hexdigest() if known else None),),
        missing=first_missing("tree"),
        limits=Limits(1, 1),
    )
    monkeypatch.setattr(cifar100, "official", lambda settings: [record])
    settings = read_dataset_settings("cifar100")(root=str(path.parent))

    def state():
        return check_data("cifar100", settings, pins=pins)[0].state

    assert state() == ("ok" if known else "unpinned")
    assert not pins.path.exists()  # looking pins nothing
    pins.check("dataset/cifar100/a.tar", hashlib.sha256(content).hexdigest(), what="", advice="")
    assert state() == ("ok" if known else "pinned")
    path.write_bytes(b"another")
    assert state() == "wrong"
    assert str(path) == check_data("cifar100", settings, pins=pins)[0].part
    path.unlink()
    assert state() == "absent"


def test_own_images_are_all_opened(tmp_path, pins):
    for number in range(8):
        path = tmp_path / "data" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), number, dtype=np.uint8)).save(path)
    settings = read_dataset_settings("image_folder")(root=str(tmp_path / "data"), cache="none")
    assert [row.state for row in check_data("image_folder", settings, pins=pins)] == ["ok", "ok"]
    path.write_bytes(path.read_bytes()[:40])
    (row,) = check_data("image_folder", settings, pins=pins)
    assert row.state == "wrong"
    assert str(path) in row.found


def test_the_pins_of_the_user_are_the_default(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("scenarios.datasets.Pins", lambda: seen.append("made") or Pins(Path(tmp_path / "p")))
    check_data("digits")
    assert seen == ["made"]
