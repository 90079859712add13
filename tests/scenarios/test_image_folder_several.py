"""`image_folder` with several labels an image: CSV and JSON lines, and one clear line for each fault."""

import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenarios.datasets import check_dataset, load_dataset, read_dataset_settings
from scenarios.datasets._file_tables import read_table
from scenarios.errors import DataError

Settings = read_dataset_settings("image_folder")


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate("abcdefgh"):
        save(tmp_path / f"{name}.png", number)
    return tmp_path


def write(folder, text, name="list.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def lines(*rows):
    """JSON lines of (path, labels[, split])."""
    return "".join(json.dumps(dict(zip(("path", "labels", "split"), row, strict=False))) + "\n" for row in rows)


def load(table, **values):
    values.setdefault("labels", "several")
    return load_dataset("image_folder", Settings(file_list=str(table), **values), image_size=8)


def refused(*needles, table=None, **values):
    settings = Settings(**{"labels": "several", "file_list": None if table is None else str(table), **values})
    texts = []
    for action in (
        lambda: check_dataset("image_folder", settings),
        lambda: load_dataset("image_folder", settings, image_size=8),
    ):
        with pytest.raises(DataError) as caught:
            action()
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "\n" not in texts[0]
    for needle in needles:
        assert str(needle) in texts[0]


TABLE = "path,label,split\na.png,x;y,train\nb.png,y,train\nc.png,,train\nd.png,x ; y,test\ne.png,,test\n"


@pytest.mark.parametrize("header", ["label", "labels"])
def test_csv(images, header):
    train, test = load(write(images, TABLE.replace("label", header)))
    assert train.class_names == ("x", "y")
    assert train.targets.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert test.targets.tolist() == [[1, 1], [0, 0]]
    assert (train.multi_label, train.targets.dtype, train.known) == (True, np.uint8, None)
    assert train.notes == ()  # every stream reports training images that it never presents
    assert test.notes == ("1 test images have no label",)
    assert Settings(labels="several").multi_label
    assert not Settings().multi_label


def test_json_lines_are_the_same_data_set(images):
    rows = [
        ("a.png", ["x", "y"], "train"),
        ("b.png", ["y"], "train"),
        ("c.png", [], "train"),
        ("d.png", ["y", "x"], "test"),
        ("e.png", [], "test"),
    ]
    text = lines(*rows[:3]) + "\n" + lines(*rows[3:])
    from_lines = load(write(images, text, "list.jsonl"))
    from_csv = load(write(images, TABLE))
    for one, other in zip(from_lines, from_csv, strict=True):
        assert one.identity == other.identity
        assert np.array_equal(one.targets, other.targets)


def test_labels_may_hold_anything_and_numbers_sort_by_value(images):
    name = "Käfer, 甲虫"
    text = lines(("a.png", ["10", "9"]), ("b.png", ["9"]), ("c.png", ["10"]), ("d.png", ["9"]), ("e.png", ["10"]))
    train, test = load(write(images, text, "numbers.jsonl"), test_pct=40)
    assert train.class_names == ("9", "10")
    decomposed = unicodedata.normalize("NFD", name)
    text = lines(("a.png", [name, "x;y"], "train"), ("b.png", [decomposed, "x;y"], "test"))
    train, test = load(write(images, text, "unicode.jsonl"))
    assert train.class_names == (name, "x;y")
    assert test.targets.tolist() == [[1, 1]]


def test_identity_covers_labels(images):
    first, _ = load(write(images, TABLE))
    changed, _ = load(write(images, TABLE.replace("b.png,y", "b.png,x;y")))
    assert first.identity["sha256"] != changed.identity["sha256"]


def test_without_a_split_each_class_is_split(tmp_path):
    rows = []
    for number in range(60):
        save(tmp_path / f"{number}.png", number)
        labels = [name for name, every in (("two", 2), ("three", 3), ("five", 5)) if number % every == 0]
        rows.append((f"{number}.png", labels))
    train, test = load(write(tmp_path, lines(*rows), "list.jsonl"), test_pct=50)
    assert len(train) + len(test) == 60
    names = list(train.class_names)
    for name, count in (("two", 30), ("three", 20), ("five", 12)):
        assert abs(int(test.targets[:, names.index(name)].sum()) - count // 2) <= 2
    assert "about 50 % of each class" in train.notes[0]
    small, _ = load(tmp_path / "list.jsonl", test_pct=50, train_per_class=3)
    assert (small.targets.sum(axis=0) >= 3).all()
    assert len(small) <= 9


def test_json_lines_with_one_label(images):
    text = lines(("a.png", ["x"], "train"), ("b.png", ["x"], "test"))
    train, _ = load(write(images, text, "list.jsonl"), labels="one")
    assert train.targets.tolist() == [0]
    assert not train.multi_label
    for labels in ([], ["x", "y"]):
        text = lines(("a.png", labels, "train"))
        refused(
            f"line 1: {len(labels)} labels where dataset.labels=one",
            table=write(images, text, "list.jsonl"),
            labels="one",
        )


def test_several_labels_never_become_one_class(images):
    table = write(images, "path,label,split\na.png,x,train\nb.png,x;y,test\n")
    refused(f"{table} line 3: 'x;y'", "set dataset.labels=several", ".jsonl", table=table, labels="one")
    table = write(images, lines(("a.png", ["x"])) + '{"path": "b.png", "label": "x;y"}\n', "list.jsonl")
    for labels in ("one", "several"):
        refused(f"{table} line 2: 'x;y'", '"labels": ["x", "y"]', table=table, labels=labels)
    text = lines(("a.png", ["x;y"], "train"), ("b.png", ["x;y"], "test"))
    train, _ = load(write(images, text, "list.jsonl"), labels="one")
    assert train.class_names == ("x;y",)


@pytest.mark.parametrize("separator", ["|", ",", "/"])
@pytest.mark.parametrize("split", [("", "", ""), (",train", ",train", ",test")])
def test_other_separators_are_hinted_at(images, separator, split):
    labels = ["x", "x", f'"x{separator}y"']
    rows = [f"{name}.png,{label}{part}" for name, label, part in zip("abc", labels, split, strict=True)]
    table = write(images, "\n".join(["path,label,split" if split[0] else "path,label", *rows]))
    refused(f"dataset.file_list={table}: class 'x{separator}y'", "labels are separated with ;", table=table)


def test_json_lines_have_no_separators_to_hint_at(images):
    table = write(images, lines(("a.png", ["x|y"], "train"), ("b.png", ["x"], "test")), "list.jsonl")
    with pytest.raises(DataError, match=r"dataset\.file_list=.*no training image") as refusal:
        load(table)
    assert "separated" not in str(refusal.value)


def test_json_lines_take_a_label_beside_labels(images):
    text = '{"path": "a.png", "label": "x", "split": "train"}\n' + lines(("b.png", ["x"], "test"))
    train, test = load(write(images, text, "list.jsonl"), labels="one")
    assert (train.targets.tolist(), test.targets.tolist()) == ([0], [0])
    train, _ = load(tmp_list := write(images, text, "list.jsonl"))
    assert train.targets.tolist() == [[1]]
    refused("line 1", "empty label", table=write(images, '{"path": "a.png", "label": ""}\n', tmp_list.name))


def test_folders_cannot_say_several_labels(images):
    refused("dataset.labels=several needs a list", "dataset.file_list=", root=str(images))


@pytest.mark.parametrize(
    "text, needles",
    [
        ("path;label\na.png;x\n", ("first line must be path,label", "path;label")),
        ("path,label,labels\na.png,x,y\n", ("first line must be path,label",)),
        ("path,label\n", ("names no file",)),
        ("path,label\n,x\n", ("line 2", "needs a path")),
        ("path,label\na.png,x,y\n", ("line 2", "double quotes")),
        ("path,label\na.png,x;;y\n", ("line 2", "empty label", "cat;dog")),
        ("path,label\na.png,x;y;x\n", ("line 2", "'x' is there twice")),
        ("path,label,split\na.png,x,dev\n", ("line 2", "'dev'", "train and test")),
        ("path,label\na.png,x\n./a.png,y\n", ("'./a.png' twice",)),
        ("path,label\na.png,\nb.png,\n", ("has no label in any line",)),
        ("path,label\na.png,x\nb.png,x;y\nc.png,x\n", ("'y' has 1 image",)),
        ("path,label,split\na.png,x;y,train\nb.png,x,test\n", ("'y'", "no test image")),
        ("path,label,split\na.png,x,train\nb.png,x;y,test\n", ("'y'", "no training image")),
    ],
)
def test_faulty_csv(images, text, needles):
    refused(*needles, table=write(images, text))


@pytest.mark.parametrize(
    "text, needles",
    [
        ("", ("names no file",)),
        ("{'path': 'a.png'}\n", ("line 1: not JSON", '"labels": ["x", "y"]')),
        ("[" * 9999, ("line 1: not JSON",)),
        ("[]\n", ("line 1", "keys path and labels")),
        ('{"path": "a.png", "label": ["x"]}\n', ("line 1", "label one text")),
        ('{"path": "a.png"}\n', ("line 1", "keys path and labels (or label)")),
        ('{"path": "a.png", "label": "x", "labels": ["x"]}\n', ("line 1", "no others")),
        ('{"path": "a.png", "labels": ["x"], "part": "x"}\n', ("line 1", "no others")),
        ('{"path": "a.png", "labels": "x"}\n', ("line 1", "a list of texts")),
        ('\n{"path": "a.png", "labels": [3]}\n', ("line 2", "a list of texts")),
        ('{"path": "", "labels": ["x"]}\n', ("line 1", "path must be text")),
        ('{"path": "a.png", "labels": ["x"], "split": 1}\n', ("line 1", "text")),
        ('{"path": "a.png", "labels": [" "]}\n', ("line 1", "empty label")),
        ('{"path": "a.png", "labels": ["x", "x"]}\n', ("line 1", "'x' is there twice")),
        (lines(("a.png", ["x"], "train"), ("b.png", ["x"], "dev")), ("line 2", "'dev'")),
        (lines(("a.png", ["x"], "train"), ("b.png", ["x"])), ("line 2", "in all lines or in none")),
        (lines(("a.png", ["x"]), ("a.png", ["x"])), ("'a.png' twice",)),
        (lines(("a.png", [])), ("has no label in any line",)),
    ],
)
def test_faulty_json_lines(images, text, needles):
    refused(*needles, table=write(images, text, "list.jsonl"))


def test_missing_files_are_found_before_anything_is_decoded(images):
    text = "path,label\na.png,x\nb.png,x\n\nnowhere/q.png,x\nz.png,x\n"
    table = write(images, text)
    needles = (f"{table} line 5: no file {images / 'nowhere' / 'q.png'} (2 of 4 files are missing)", "dataset.root")
    refused(*needles, "dataset.skip_unreadable=true", table=table)
    check_dataset("image_folder", Settings(labels="several", file_list=str(table), skip_unreadable=True))
    text = lines(*((f"{name}.png", ["x"]) for name in "abz"))
    table = write(images, text, "list.jsonl")
    refused(f"{table} line 3: no file {images / 'z.png'};", table=table)
    (images / "b.png").unlink()
    (images / "b.png").symlink_to("gone.png")
    refused(f"{table} line 2: no file {images / 'b.png'} (2 of 3", table=table)


def test_files_of_a_list_are_found_by_looking_into_folders(images, monkeypatch):
    """A question for each of many files would take minutes on a network drive."""
    asked = []
    exists = os.path.exists
    monkeypatch.setattr("os.path.exists", lambda path: asked.append(str(path)) or exists(path))
    check_dataset("image_folder", Settings(file_list=str(write(images, "path,label\na.png,x\n./b.png,x\n"))))
    assert not [path for path in asked if path.endswith(".png")]


def test_the_lists_of_the_manual_are_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "own_images.md").read_text(encoding="utf-8")
    samples = [sample for sample in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "path" in sample]
    for number in range(1, 5):
        save(tmp_path / "photos" / f"{number}.jpg", number)
    save(tmp_path / "photos" / "a, b.jpg", 5)
    one, several, as_lines = samples
    assert [row.labels for row in read_table(write(tmp_path, one), several=False)] == [("cat",), ("dog",)]
    from_csv, from_lines = load(write(tmp_path, several)), load(write(tmp_path, as_lines, "list.jsonl"))
    for part, same in zip(from_csv, from_lines, strict=True):
        assert part.identity == same.identity
    assert [part.targets.tolist() for part in from_csv] == [[[1, 1], [0, 0]], [[0, 1], [1, 0]]]


def test_wrong_kinds_of_file(images):
    refused("name it *.jsonl", table=write(images, "[]", "list.json"))
    refused("does not exist", table=images / "nowhere.jsonl")
    (images / "latin.jsonl").write_bytes('{"path": "ä.png", "labels": ["x"]}'.encode("latin-1"))
    refused("is not JSON lines in UTF-8", table=images / "latin.jsonl")
    refused("column labels", "dataset.labels=several", table=write(images, "path,labels\na.png,x\n"), labels="one")


def test_unreadable_files_are_left_out_with_their_rows(images):
    (images / "b.png").write_bytes(b"no picture")
    table = write(images, TABLE.replace("c.png,,", "c.png,y,"))
    with pytest.raises(DataError, match=r"b\.png: not an image; .* dataset\.skip_unreadable=true"):
        load(table)
    train, _ = load(table, skip_unreadable=True)
    assert train.targets.tolist() == [[1, 1], [0, 1]]
    assert len(train.skipped) == 1
    (images / "a.png").unlink()
    with pytest.raises(DataError, match="'x' has no readable training image"):
        load(table, skip_unreadable=True)
