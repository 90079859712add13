"""Numbers of classes that are known before anything is loaded."""

import numpy as np
import pytest
from PIL import Image

from scenarios.datasets import dataset_names, known_num_classes, load_dataset, read_dataset_settings
from scenarios.errors import DataError

FIXED = {
    "digits": 10,
    "digit_mosaics": 10,
    "cifar10": 10,
    "cifar100": 100,
    "cub200": 200,
    "five_datasets": 50,
    "imagenet_r": 200,
    "tiny_imagenet": 200,
    "voc2007": 20,
    "coco2014": 80,
}


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        path = tmp_path / f"class {number % 4}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(path)
    return tmp_path


@pytest.mark.parametrize("name", dataset_names())
def test_every_data_set_answers_without_its_files(name):
    assert known_num_classes(name) == FIXED.get(name)


@pytest.mark.parametrize("name", ["digits", "digit_mosaics"])
def test_what_is_said_is_what_comes(name):
    train, _ = load_dataset(name, image_size=32)
    assert known_num_classes(name, read_dataset_settings(name)()) == train.num_classes


@pytest.mark.parametrize("name", ["image_folder", "image_mosaics"])
def test_own_images_are_counted_without_opening_one(folder, name, monkeypatch):
    settings = read_dataset_settings(name)(root=str(folder))
    assert load_dataset(name, settings, image_size=4)[0].num_classes == 4
    monkeypatch.setattr("scenarios.datasets._decoding._read", lambda path: pytest.fail("an image was opened"))
    assert known_num_classes(name, settings) == 4
    table = folder / "list.csv"
    table.write_text("path,label\nclass 0/0.png,x\nclass 1/1.png,y\n")
    assert known_num_classes(name, read_dataset_settings(name)(file_list=str(table))) == 2
    table.write_text("faulty\n")
    assert known_num_classes(name, read_dataset_settings(name)(file_list=str(table))) is None


def test_other_annotations_than_those_of_coco_are_not_guessed(tmp_path):
    settings = read_dataset_settings("coco2014")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2014.json").write_text("{}")
    assert known_num_classes("coco2014", settings(root=str(tmp_path))) is None
    assert known_num_classes("coco2014", settings(train_annotations="mine.json")) is None


def test_unknown_data_sets_are_refused():
    with pytest.raises(DataError, match=r"dataset=digit is unknown; .* did you mean digits\?"):
        known_num_classes("digit")
