"""`voc2007` and `coco2014` on tiny generated trees in the official layouts, and against what published loaders read."""

import hashlib
import json
import pickle
import socket
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenarios.datasets import check_dataset, load_dataset, read_dataset_settings, voc2007
from scenarios.datasets._decoding import Decoder
from scenarios.datasets._voc_lists import read_voc
from scenarios.errors import DataError

GOLDENS = sorted((Path(__file__).parents[1] / "golden").glob("mlcil_split_case*.json"))
GOLDEN_CASES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in GOLDENS}
COCO_CASES = [name for name, case in GOLDEN_CASES.items() if case["kind"] == "coco"]
VOC_CASES = [name for name, case in GOLDEN_CASES.items() if case["kind"] == "voc"]

Voc = read_dataset_settings("voc2007")
Coco = read_dataset_settings("coco2014")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is read from or written to the cache of the user."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: cache / name)
    return cache / "cl_prompts"


def save(path, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def refused(name, settings, *needles, checked=False):
    """The one line of the refusal; `checked` says that the check before loading finds it, too."""
    with pytest.raises(DataError) as caught:
        load_dataset(name, settings, image_size=8)
    text = str(caught.value)
    assert "\n" not in text
    for needle in needles:
        assert str(needle) in text
    if checked:
        with pytest.raises(DataError) as early:
            check_dataset(name, settings)
        assert str(early.value) == text
    else:
        check_dataset(name, settings)


def one_hot(case, part):
    """Rows as the published loader gave them; where it fails, on images without a label, zeros."""
    blank = [0] * case["num_classes"]
    return [row if isinstance(row, list) else blank for row in case[f"{part}_onehot"]]


def test_goldens_are_there():
    assert COCO_CASES
    assert VOC_CASES


# COCO


def instances(images, annotations, categories):
    return {
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "iscrowd": crowd}
            for i, (image, category, crowd) in enumerate(annotations)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


CATEGORIES = [(90, "zebra"), (3, "Bär"), (17, "apple")]
TRAIN = instances(
    images=[(900, "c.jpg"), (5, "a.jpg"), (70, "Ünï 甲.jpg"), (6, "crowd.jpg")],
    annotations=[(5, 90, 0), (5, 3, 0), (5, 3, 0), (900, 17, 0), (900, 90, 1), (6, 3, 1)],
    categories=CATEGORIES,
)
TEST = instances(images=[(1, "z.jpg")], annotations=[(1, 17, 0)], categories=CATEGORIES)


def write_coco(root, train=TRAIN, test=TEST, names=None, grey=()):
    """A tree in the official layout, with a picture for each image of the lists."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part, content in (("train", train), ("val", test)):
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "annotations" / f"instances_{part}2014.json").write_text(text, encoding="utf-8")
        (root / f"{part}2014").mkdir(exist_ok=True)
        if not isinstance(content, str):
            for seed, image in enumerate(content["images"]):
                save(root / f"{part}2014" / image["file_name"], seed, "L" if image["file_name"] in grey else "RGB")
    return root


def load_coco(root, image_size=6, **values):
    return load_dataset("coco2014", Coco(root=str(root), **values), image_size=image_size)


@pytest.mark.parametrize("name", COCO_CASES)
@pytest.mark.parametrize("cache", ["ram", "mmap", "none"])
def test_coco_labels_are_those_of_the_published_loader(tmp_path, name, cache):
    case = GOLDEN_CASES[name]
    root = write_coco(tmp_path, case["annotations"]["train"], case["annotations"]["val"])
    parts = load_coco(root, cache=cache)
    for part, data in zip(("train", "val"), parts, strict=True):
        assert list(data.class_names) == case["category_names"]
        assert data.targets.tolist() == one_hot(case, part)
        assert [np.flatnonzero(row).tolist() for row in data.targets] == case[f"{part}_targets"]
        for number, file in enumerate(case[f"{part}_files"]):
            expected, _ = Decoder(6, "bicubic")(root / f"{part}2014" / file)
            assert torch.equal(data.images([number])[0], torch.from_numpy(expected.copy()))


def test_coco_columns_rows_and_crowds(tmp_path):
    root = write_coco(tmp_path)
    train, test = load_coco(root)
    assert train.class_names == test.class_names == ("Bär", "apple", "zebra")
    assert train.targets.tolist() == [[0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert train.multi_label
    assert Coco().multi_label
    dropped, _ = load_coco(root, crowd="drop")
    assert dropped.targets.tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert train.identity["rules"] == "instances, crowd=positive"
    assert dropped.identity["sha256"] != train.identity["sha256"]
    assert (train.notes, dropped.notes) == ((), ())  # every stream reports what it never presents
    assert test.notes == ("2 of 3 classes have no test image (first: 'Bär')",)


def test_coco_grey_images_become_rgb(tmp_path):
    train, _ = load_coco(write_coco(tmp_path, grey={"a.jpg"}))
    grey, coloured = train.images([1, 0])
    assert torch.equal(grey[0], grey[2])
    assert not torch.equal(coloured[0], coloured[2])


def test_coco_without_a_cache_is_decoded_at_use(tmp_path):
    root = write_coco(tmp_path)
    cached, _ = load_coco(root)
    lazy, _ = load_coco(root, cache="none")
    assert torch.equal(lazy.images(range(4)), cached.images(range(4)))
    assert lazy.identity == cached.identity
    (root / "train2014" / "a.jpg").write_bytes(b"x" * (root / "train2014" / "a.jpg").stat().st_size)
    damaged, _ = load_coco(root, cache="none")  # nothing is decoded before the run
    with pytest.raises(DataError, match=r"a\.jpg: not an image; restore it"):
        damaged.images([1])
    refused("coco2014", Coco(root=str(root)), root / "train2014" / "a.jpg", "not an image", "unpack")


def test_coco_identity_covers_names_sizes_and_labels(tmp_path):
    seen = {load_coco(write_coco(tmp_path / "1"))[0].identity["sha256"]}
    root = write_coco(tmp_path / "2")
    assert load_coco(root)[0].identity["sha256"] in seen
    assert load_coco(root, image_size=9)[0].identity["sha256"] in seen
    renamed = json.loads(json.dumps(TRAIN).replace("a.jpg", "b.jpg"))
    relabelled = instances([(i["id"], i["file_name"]) for i in TRAIN["images"]], [(5, 90, 0)], CATEGORIES)
    for number, train in enumerate((renamed, relabelled)):
        seen.add(load_coco(write_coco(tmp_path / f"x{number}", train=train))[0].identity["sha256"])
    with (root / "train2014" / "a.jpg").open("ab") as stream:
        stream.write(b"\0")
    seen.add(load_coco(root)[0].identity["sha256"])
    assert len(seen) == 4


def test_coco_subset_of_each_class(tmp_path):
    train, test = load_coco(write_coco(tmp_path), train_per_class=1)
    assert (train.targets.sum(axis=0) >= 1).all()
    assert len(train) <= 3
    assert len(test) == 1


def test_other_folders_and_files(tmp_path):
    root = write_coco(tmp_path)
    for part in ("train", "val"):
        (root / f"{part}2014").rename(root / f"{part}2017")
        (root / "annotations" / f"instances_{part}2014.json").rename(root / f"{part}.json")
    train, _ = load_coco(
        root,
        train_images="train2017",
        test_images="val2017",
        train_annotations="train.json",
        test_annotations="val.json",
    )
    assert len(train) == 4
    assert train.identity["split"] == "train2017, val2017"


def test_coco_json_is_parsed_once(tmp_path, monkeypatch, own_cache):
    root = write_coco(tmp_path)
    first, _ = load_coco(root)
    files = sorted(path for path in own_cache.iterdir() if path.is_file())
    assert len(files) == 2
    assert {path.suffix for path in files} == {".npz"}

    def no_parsing(_):
        raise AssertionError("parsed again")

    with monkeypatch.context() as patched:
        patched.setattr("scenarios.datasets._coco_json._parse", no_parsing)
        assert load_coco(root)[0].identity == first.identity
        assert load_coco(root, crowd="drop")[0].targets.sum() == 3
    files[0].write_bytes(files[0].read_bytes()[:-40])
    files[1].write_bytes(b"")
    assert load_coco(root)[0].identity == first.identity
    with np.load(files[0], allow_pickle=False) as arrays:  # written anew
        assert "crowd" in arrays
    changed = json.loads(json.dumps(TRAIN).replace('"iscrowd": 1', '"iscrowd": 0'))
    write_coco(root, train=changed)
    assert load_coco(root, crowd="drop")[0].targets.sum() == 5
    assert not list(own_cache.glob("*.part"))


def test_coco_without_a_writable_cache(tmp_path, own_cache):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file where the folder should be")
    root = write_coco(tmp_path / "data")
    assert len(load_coco(root, cache="ram")[0]) == 4
    refused("coco2014", Coco(root=str(root)), own_cache / "images", "Not a directory", "dataset.cache_folder")


def test_coco_steps_when_nothing_is_there(tmp_path):
    steps = ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip", "images.cocodataset.org", "dataset.root")
    refused("coco2014", Coco(), "dataset.root is not set", *steps, checked=True)
    refused("coco2014", Coco(root=str(tmp_path / "no")), f"dataset.root={tmp_path / 'no'}", *steps, checked=True)
    root = write_coco(tmp_path)
    for key, place in (
        ("train_images", "train2014"),
        ("test_images", "val2014"),
        ("train_annotations", "annotations/instances_train2014.json"),
        ("test_annotations", "annotations/instances_val2014.json"),
    ):
        (root / place).rename(root / "aside")
        refused("coco2014", Coco(root=str(root)), f"dataset.{key}={place}", root / place, *steps, checked=True)
        (root / "aside").rename(root / place)
    load_coco(root)


def without(content, key):
    return {other: value for other, value in content.items() if other != key}


@pytest.mark.parametrize(
    "train, needles",
    [
        ('{"images": [', ("is not JSON",)),
        ("[" * 99999, ("is not JSON",)),
        ("[]", ("no list 'categories'",)),
        (without(TRAIN, "images"), ("no list 'images'", "instances file")),
        ({**TRAIN, "images": []}, ("no category or no image",)),
        ({**TRAIN, "images": [{"id": "5", "file_name": "a.jpg"}]}, ("images[0] has no 'id' of type int",)),
        ({**TRAIN, "annotations": [{"image_id": 5}]}, ("annotations[0] has no 'category_id'",)),
        ({**TRAIN, "annotations": [{"image_id": 4, "category_id": 3}]}, ("of image 4,",)),
        ({**TRAIN, "annotations": [{"image_id": 5, "category_id": 4}]}, ("of category 4,",)),
        ({**TRAIN, "images": TRAIN["images"] + TRAIN["images"][:1]}, ("image id 900 is there twice",)),
        ({**TRAIN, "categories": [*TRAIN["categories"], {"id": 4, "name": "zebra"}]}, ("'zebra' is there twice",)),
    ],
)
def test_damaged_coco_json(tmp_path, train, needles):
    root = write_coco(tmp_path)
    text = train if isinstance(train, str) else json.dumps(train)
    path = root / "annotations" / "instances_train2014.json"
    path.write_text(text, encoding="utf-8")
    refused("coco2014", Coco(root=str(root)), path, "unpack", *needles)


def test_coco_parts_with_other_categories(tmp_path):
    root = write_coco(tmp_path, test=instances([(1, "z.jpg")], [], [(1, "Bär"), (2, "cat")]))
    refused("coco2014", Coco(root=str(root)), "different categories", "'apple'", "dataset.test_annotations")


def test_missing_images(tmp_path):
    root = write_coco(tmp_path)
    (root / "train2014" / "c.jpg").unlink()
    refused("coco2014", Coco(root=str(root), cache="none"), root / "train2014" / "c.jpg", "is missing; unpack")
    (root / "train2014" / "a.jpg").unlink()
    refused("coco2014", Coco(root=str(root)), "2 of 4 images are missing")


# VOC

STATES = {  # image id -> class -> label; every other class has -1
    "000012": {"person": 1, "dog": 1},
    "000007": {"person": 0},
    "000009": {},
    "Ünï": {"aeroplane": 1, "tvmonitor": 0, "dog": 0},
}


def write_voc(root, parts=None, classes=voc2007.CLASS_NAMES):
    """A tree in the official layout, with a picture for each image."""
    kit = root / "VOCdevkit" / "VOC2007"
    lists = kit / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    for split, states in (parts or {"trainval": STATES, "test": {"000001": {"dog": 1}}}).items():
        for name in classes:
            lines = [f"{image} {labels.get(name, -1):2d}\n" for image, labels in states.items()]
            (lists / f"{name}_{split}.txt").write_text("".join(lines), encoding="utf-8")
        for seed, image in enumerate(states):
            save(kit / "JPEGImages" / f"{image}.jpg", seed)
    return root


def load_voc(root, image_size=6, **values):
    return load_dataset("voc2007", Voc(root=str(root), download=False, **values), image_size=image_size)


def column(name):
    return voc2007.CLASS_NAMES.index(name)


@pytest.mark.parametrize("name", VOC_CASES)
def test_voc_labels_are_those_of_the_published_loader(tmp_path, name):
    case = GOLDEN_CASES[name]
    for file, text in case["image_sets"].items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    for part, split in (("train", "trainval"), ("val", "test")):
        labels = read_voc(tmp_path, split, case["category_names"], advice="")
        targets, known = labels.targets("negative")
        assert [f"{image}.jpg" for image in labels.ids] == case[f"{part}_files"]
        assert targets.tolist() == one_hot(case, part)
        assert known is None
        assert (labels.states == 0).any()


def test_voc_order_columns_and_difficult_objects(tmp_path):
    root = write_voc(tmp_path)
    parts = {difficult: load_voc(root, difficult=difficult)[0] for difficult in ("negative", "positive", "ignore")}
    ids = sorted(STATES)
    assert ids == ["000007", "000009", "000012", "Ünï"]
    for difficult, train in parts.items():
        assert train.class_names == voc2007.CLASS_NAMES
        for number, image in enumerate(ids):
            for name in voc2007.CLASS_NAMES:
                state = STATES[image].get(name, -1)
                assert train.targets[number, column(name)] == (state == 1 or (state == 0 and difficult == "positive"))
                if difficult == "ignore":
                    assert train.known[number, column(name)] == (state != 0)
    assert parts["negative"].known is None
    assert parts["positive"].known is None
    assert parts["negative"].notes == ()  # every stream reports training images that it never presents
    assert parts["ignore"].notes == ("3 labels of train images are neither positive nor negative",)
    assert len({train.identity["sha256"] for train in parts.values()}) == 3
    assert parts["ignore"].identity["rules"] == "class lists, difficult=ignore"
    assert load_dataset("voc2007", Voc(root=str(root)), image_size=6)[1].targets[0, column("dog")] == 1
    expected, _ = Decoder(6, "bicubic")(root / "VOCdevkit" / "VOC2007" / "JPEGImages" / "Ünï.jpg")
    assert torch.equal(parts["negative"].images([3])[0], torch.from_numpy(expected.copy()))


def test_unknown_labels_survive_a_subset_and_a_pickle(tmp_path):
    train, _ = load_voc(write_voc(tmp_path), difficult="ignore", train_per_class=1)
    assert train.known.shape == train.targets.shape
    assert train.known.sum() < train.known.size
    copy = pickle.loads(pickle.dumps(train))
    assert np.array_equal(copy.known, train.known)


def test_other_files_beside_the_class_lists_are_not_read(tmp_path):
    root = write_voc(tmp_path)
    before, _ = load_voc(root)
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("nonsense 1 2 3\n")
    (lists / "dog_trainval_old.txt").write_text("nonsense\n")
    (lists / "dog_train.txt").write_text("nonsense\n")
    (lists / "unicorn_trainval.txt").write_text("000012 1\n")
    assert load_voc(root)[0].identity == before.identity


def test_archives_are_those_of_torchvision():
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    for file, key in zip(voc2007.VOC2007.files, ("2007", "2007-test"), strict=True):
        official = DATASET_YEAR_DICT[key]
        assert (file.url, file.name, file.md5) == (official["url"], official["filename"], official["md5"])
    assert list(voc2007.CLASS_NAMES) == sorted(set(voc2007.CLASS_NAMES))
    assert len(voc2007.CLASS_NAMES) == 20


def test_voc_missing_without_download(tmp_path):
    needles = ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar", "https://", tmp_path, "dataset.download=true")
    refused("voc2007", Voc(root=str(tmp_path), download=False), "aeroplane_trainval.txt", *needles, checked=True)
    root = write_voc(tmp_path)
    missing = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "sofa_test.txt"
    missing.unlink()
    refused("voc2007", Voc(root=str(root), download=False), missing, *needles, checked=True)


def test_voc_offline(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    refused("voc2007", Voc(root=str(tmp_path)), "could not be downloaded", "Name or service", "VOCtest_06-Nov-2007.tar")


@pytest.mark.parametrize("unpacked_before", [False, True])
def test_voc_is_unpacked_from_archives_put_there(tmp_path, monkeypatch, unpacked_before):
    source = write_voc(tmp_path / "source")
    root = tmp_path / "root"
    if unpacked_before:  # one class list of it was lost
        write_voc(root)
        (root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "sofa_test.txt").unlink()
    root.mkdir(exist_ok=True)
    files = []
    for file, split in zip(voc2007.VOC2007.files, voc2007.SPLITS, strict=True):
        with tarfile.open(root / file.name, "w") as archive:
            for path in sorted(source.rglob("*")):
                if path.suffix == ".jpg" or path.name.endswith(f"_{split}.txt"):
                    archive.add(path, path.relative_to(source))
        files.append(replace(file, md5=hashlib.md5((root / file.name).read_bytes()).hexdigest()))
    monkeypatch.setattr(voc2007, "VOC2007", replace(voc2007.VOC2007, files=tuple(files)))
    train, test = load_dataset("voc2007", Voc(root=str(root)), image_size=6)
    assert (len(train), len(test)) == (4, 1)
    assert train.identity["sha256"] == load_voc(source)[0].identity["sha256"]


def test_voc_archive_with_wrong_checksum(tmp_path):
    archive = tmp_path / "VOCtrainval_06-Nov-2007.tar"
    archive.write_bytes(b"<html>")
    refused("voc2007", Voc(root=str(tmp_path)), archive, "md5", "an HTML page", f"put it into {tmp_path}")


@pytest.mark.parametrize(
    "text, needles",
    [
        ("", ("is empty",)),
        ("000012 1\n", ("name different images", "'000007'")),
        ("000007 2\n", ("line 1", "'000007 2'", "-1, 0 or 1")),
        ("000007 1\n\n000009\n", ("line 3", "'000009'")),
        ("000007 1\n000007 1\n", ("line 2", "is there twice")),
        (b"\xff\xfe", ("cannot be read",)),
    ],
)
def test_damaged_class_lists(tmp_path, text, needles):
    root = write_voc(tmp_path)
    path = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "dog_trainval.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("voc2007", Voc(root=str(root), download=False), path, "unpack the official archives again", *needles)


def test_missing_and_damaged_voc_images(tmp_path):
    root = write_voc(tmp_path)
    path = root / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000009.jpg"
    path.write_bytes(b"x")
    refused("voc2007", Voc(root=str(root)), f"{path}: not an image; delete", "unpack the official archives again")
    path.unlink()
    refused("voc2007", Voc(root=str(root)), f"image {path} is missing; delete")
