"""`tiny_imagenet`, `imagenet_r` and `cub200` on tiny generated trees in the official layouts."""

import shutil
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from scenarios.datasets import check_data, check_dataset, cub200, imagenet_r, load_dataset, tiny_imagenet
from scenarios.datasets import read_dataset_settings as settings_of
from scenarios.datasets._decoding import Decoder
from scenarios.datasets._split_lists import read_split_list
from scenarios.errors import DataError
from scenarios.pins import Pins

WNIDS = ("n01", "n02", "n10")


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")  # decoded by content, whatever the name says


def write_tiny(root):
    folder = root / "tiny-imagenet-200"
    for number, wnid in enumerate(reversed(WNIDS)):
        for image in range(number + 1):
            save(folder / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", 10 * number + image)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
    lines = []
    for image, wnid in enumerate(("n10", "n01", "n02", "n01")):
        save(folder / "val" / "images" / f"val_{image}.JPEG", 100 + image)
        lines.append(f"val_{image}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    words = "n01\tfish, water animal\nn02\tbird\nn10\tbird\nn99\tother\n"
    (folder / "words.txt").write_text(words)
    return root


def write_imagenet_r(root, parts=("",), images=5):
    for part in parts:
        for number, wnid in enumerate(WNIDS):
            for image in range(images):
                save(root / "imagenet-r" / part / wnid / f"art_{image}.jpg", 10 * number + image)
    (root / "imagenet-r" / "README.txt").write_text("about")
    return root


def write_cub(root):
    folder = root / "CUB_200_2011"
    classes = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Wren")
    images = [(1, 0, 1), (2, 2, 0), (3, 0, 0), (4, 1, 1), (5, 2, 1), (6, 1, 0)]
    tables = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number, label, train in images:
        name = f"{classes[label]}/bird_{number}.jpg"
        save(folder / "images" / name, number)
        tables["images"].append(f"{number} {name}")
        tables["image_class_labels"].append(f"{number} {label + 1}")
        tables["train_test_split"].append(f"{number} {train}")
    tables["classes"] = [f"{number} {name}" for number, name in enumerate(classes, start=1)]
    for name, lines in tables.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


TREES = {
    "tiny_imagenet": (write_tiny, "tiny-imagenet-200", tiny_imagenet, "TINY_IMAGENET"),
    "imagenet_r": (write_imagenet_r, "imagenet-r", imagenet_r, "IMAGENET_R"),
    "cub200": (write_cub, "CUB_200_2011", cub200, "CUB200"),
}


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Nothing is read from or written to the folders of the user."""
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_, **__: tmp_path / "user")


def load(name, root, **values):
    return load_dataset(name, settings_of(name)(root=str(root), **values), image_size=6)


def refused(name, root, *needles, checked=False, **values):
    settings = settings_of(name)(root=str(root), **values)
    actions = [lambda: load_dataset(name, settings, image_size=6)]
    if checked:
        actions.append(lambda: check_dataset(name, settings))
    for action in actions:
        with pytest.raises(DataError) as caught:
            action()
        assert "\n" not in str(caught.value)
        for needle in needles:
            assert str(needle) in str(caught.value)


def pixels(path):
    return torch.from_numpy(Decoder(6, "bicubic")(path)[0].copy())


def test_tiny_imagenet(tmp_path):
    train, test = load("tiny_imagenet", write_tiny(tmp_path))
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 2]
    assert train.class_names == ("fish", "n02", "n10")  # two birds: their ids tell them apart
    assert test.targets.tolist() == [2, 0, 1, 0]
    folder = tmp_path / "tiny-imagenet-200"
    assert torch.equal(train.images([4])[0], pixels(folder / "train/n02/images/n02_1.JPEG"))
    assert torch.equal(test.images([3])[0], pixels(folder / "val/images/val_3.JPEG"))
    assert train.normalisation == tiny_imagenet.NORMALISATION
    small, _ = load("tiny_imagenet", tmp_path, train_per_class=1)
    assert small.targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "text, needles",
    [
        ("val_0.JPEG\tn77\n", ("val_annotations.txt line 1",)),
        ("val_0.JPEG\tn01\nval_1.JPEG\tn01\n", ("differ", "val_2.JPEG")),
        (None, ("val_annotations.txt", "tiny-imagenet-200.zip", "md5 90528d7c", "dataset.download=true")),
    ],
)
def test_damaged_annotations_of_tiny_imagenet(tmp_path, text, needles):
    path = write_tiny(tmp_path) / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    path.unlink() if text is None else path.write_text(text)
    refused("tiny_imagenet", tmp_path, *needles, download=False)


def test_cub200(tmp_path):
    train, test = load("cub200", write_cub(tmp_path))
    assert train.targets.tolist() == [0, 1, 2]
    assert test.targets.tolist() == [2, 0, 1]
    assert train.class_names == ("Black footed Albatross", "Laysan Albatross", "Wren")
    image = tmp_path / "CUB_200_2011/images/010.Wren/bird_2.jpg"
    assert torch.equal(test.images([0])[0], pixels(image))
    image.unlink()
    refused("cub200", tmp_path, image, "is missing", "unpack the official archive")


@pytest.mark.parametrize(
    "name, text, needle",
    [
        ("train_test_split", "1 1\n", "list different images (first: 2)"),
        ("image_class_labels", "1 1\n2 9\n3 1\n4 1\n5 1\n6 1\n", "class 9 is not in classes.txt"),
        ("images", "1 a\n1 b\n", "images.txt line 2"),
        ("classes", "\n", "classes.txt is empty"),
    ],
)
def test_damaged_tables_of_cub200(tmp_path, name, text, needle):
    write_cub(tmp_path)
    (tmp_path / "CUB_200_2011" / f"{name}.txt").write_text(text)
    refused("cub200", tmp_path, needle)


def every_image_once(train, test):
    seen = [part.images([number])[0].numpy().tobytes() for part in (train, test) for number in range(len(part))]
    assert len(seen) == len(set(seen)) == 15


@pytest.mark.parametrize("values, seed", [({}, 0), ({"split": "random_seed", "split_seed": 3}, 3)])
def test_random_splits_of_imagenet_r_are_those_of_the_rule(tmp_path, values, seed):
    train, test = load("imagenet_r", write_imagenet_r(tmp_path), **values)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(seed)).tolist()
    assert train.targets.tolist() == [position // 5 for position in sorted(order[:12])]
    assert test.targets.tolist() == [position // 5 for position in sorted(order[12:])]
    first = sorted(order[12:])[0]
    assert torch.equal(
        test.images([0])[0], pixels(tmp_path / "imagenet-r" / WNIDS[first // 5] / f"art_{first % 5}.jpg")
    )
    every_image_once(train, test)
    assert train.class_names == WNIDS
    assert f"seed {seed}" in train.identity["rules"]


@pytest.mark.parametrize("kind", ["txt", "yaml"])
def test_lists_of_imagenet_r(tmp_path, kind):
    write_imagenet_r(tmp_path)
    names = [f"{wnid}/art_{image}.jpg" for wnid in WNIDS for image in range(5)]
    chosen = {"train": names[3:], "test": names[:3]}
    for part, entries in chosen.items():
        prefixed = [f"data/imagenet-r/{part}/{entry}" for entry in reversed(entries)]
        text = yaml.safe_dump({"data": prefixed, "targets": [0]}) if kind == "yaml" else "\n".join(prefixed) + "\n\n"
        (tmp_path / f"{part}.{kind}").write_text(text)
    lists = {f"{part}_list": str(tmp_path / f"{part}.{kind}") for part in chosen}
    train, test = load("imagenet_r", tmp_path, split="file_list", **lists)
    assert test.targets.tolist() == [0, 0, 0]
    assert train.targets.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    every_image_once(train, test)
    assert train.identity["rules"] == "lists of 12 and 3 files, other numbers than the usual 24,000 and 6,000"
    (tmp_path / f"test.{kind}").write_text((tmp_path / f"train.{kind}").read_text())
    refused("imagenet_r", tmp_path, "share 12 images", "n01/art_3.jpg", split="file_list", **lists)
    shutil.rmtree(tmp_path / "imagenet-r" / "n10")
    refused("imagenet_r", tmp_path, "dataset.train_list", "n10/art_4.jpg", split="file_list", **lists)


@pytest.mark.parametrize(
    "name, content, needle",
    [
        ("a.txt", "n01/a.jpg\nx/n01/a.jpg\n", "entry 2: 'x/n01/a.jpg' is there twice"),
        ("a.txt", "a.jpg\n", "names no class folder"),
        ("a.txt", " \n", "is empty"),
        ("a.yaml", "data: 3\n", "no list 'data'"),
        ("a.yaml", "data: [\n", "is no YAML"),
        ("a.yml", "[]", "no list 'data'"),
    ],
)
def test_damaged_lists(tmp_path, name, content, needle):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_split_list(path)
    assert needle in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prepared_folders_of_imagenet_r(tmp_path):
    refused("imagenet_r", tmp_path, "imagenet-r/train", "dataset.split=folders", split="folders", checked=True)
    write_imagenet_r(tmp_path, parts=("train",))
    write_imagenet_r(tmp_path, parts=("test",), images=2)
    train, test = load("imagenet_r", tmp_path, split="folders")
    assert (len(train), test.targets.tolist()) == (15, [0, 0, 1, 1, 2, 2])
    save(tmp_path / "imagenet-r/test/n77/x.jpg", 1)
    refused("imagenet_r", tmp_path, "n77", split="folders")


@pytest.mark.parametrize(
    "values, needles",
    [
        ({"split_seed": 1}, ("dataset.split_seed=1 has no effect", "random_fixed")),
        ({"split": "file_list"}, ("dataset.train_list=/path", "24,000")),
        ({"train_list": "a"}, ("dataset.train_list=a has no effect",)),
        ({"split": "file_list", "train_list": "/nowhere/a", "test_list": "b"}, ("/nowhere/a is no file",)),
    ],
)
def test_keys_of_imagenet_r_that_do_not_fit(tmp_path, values, needles):
    refused("imagenet_r", write_imagenet_r(tmp_path), *needles, checked=True, **values)


@pytest.mark.parametrize("name", TREES)
def test_archives_put_there_are_unpacked_and_pinned_where_no_hash_is_known(name, tmp_path, monkeypatch):
    write, folder, module, constant = TREES[name]
    record = getattr(module, constant)
    file = record.files[0]
    write(tmp_path / "source")
    archive = tmp_path / "root" / file.name
    archive.parent.mkdir()
    paths = sorted((tmp_path / "source").rglob("*"))
    if file.name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w") as target:
            for path in paths:
                target.write(path, path.relative_to(tmp_path / "source"))
    else:
        with tarfile.open(archive, "w:gz" if file.name.endswith("gz") else "w") as target:
            for path in paths:
                target.add(path, path.relative_to(tmp_path / "source"), recursive=False)
    monkeypatch.setattr(module, constant, replace(record, files=(replace(file, md5=None),)))
    parts = load(name, archive.parent)
    expected = load(name, tmp_path / "source")
    assert [part.identity["sha256"] for part in parts] == [part.identity["sha256"] for part in expected]
    assert Pins().get(f"dataset/{name}/{file.name}") is not None
    shutil.rmtree(archive.parent / folder)
    archive.write_bytes(archive.read_bytes() + b"\0" * 512)
    refused(name, archive.parent, "seen the first time", archive)


@pytest.mark.parametrize("name", TREES)
def test_numbers_are_compared_with_the_official_ones(name, tmp_path):
    write, _, module, constant = TREES[name]
    rows = check_data(name, settings_of(name)(root=str(write(tmp_path))), pins=Pins(tmp_path / "pins"))
    assert [row.state for row in rows] == ["absent", "wrong", "wrong"]
    for row, (part, count) in zip(rows[1:], getattr(module, constant).images.items(), strict=True):
        assert row.part == part
        assert row.expected == f"{count:,} images"


@pytest.mark.parametrize("name", TREES)
def test_what_is_missing_is_said_at_once_with_everything_needed(name, tmp_path):
    file = getattr(TREES[name][2], TREES[name][3]).files[0]
    refused(name, tmp_path, file.url, file.name, tmp_path, TREES[name][1], download=False, checked=True)


def test_checksums_are_those_that_others_check():
    """Avalanche has the same checksums; its addresses are older for CUB."""
    from avalanche.benchmarks.datasets import CUB200, TinyImagenet

    assert tiny_imagenet.TINY_IMAGENET.files[0].url == TinyImagenet.filename[1]
    assert tiny_imagenet.TINY_IMAGENET.files[0].md5 == TinyImagenet.md5
    assert cub200.CUB200.files[0].md5 == CUB200.tgz_md5
    assert cub200.CUB200.files[0].name == CUB200.filename
