"""Lists and annotations: CSV and JSON lines, COCO JSON, class lists of VOC, split lists, tables, arrays of MNIST."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzed_images import pictures
from harness import Target
from hypothesis import strategies as st
from mutations import ODD_TEXTS, hostile_bytes, spoilt_trees

from scenarios.datasets import check_dataset, load_dataset, read_dataset_settings
from scenarios.datasets._class_files import table
from scenarios.datasets._idx import read_idx
from scenarios.datasets._image_files import ImageFilesSettings
from scenarios.datasets._listed_files import LabelledFiles, file_datasets
from scenarios.datasets._split_lists import read_split_list
from scenarios.datasets._voc_lists import class_list, read_voc

ADVICE = "unpack it again"
IMAGES = ("a.png", "b.png", "c.png", "d.png", "sub/e.png", "é 甲.png")


def write_images(folder: Path) -> None:
    """The images that valid lists name."""
    for name in IMAGES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures()[0])


# File lists of image_folder

_TABLES = (
    "path,label,split\n"
    + "".join(f'"{name}",{"cat" if i % 2 else "dog"},train\n' for i, name in enumerate(IMAGES[:4]))
    + "sub/e.png,cat,test\né 甲.png,dog,test\n",
    "path,label\n" + "".join(f"{name},{'cat' if i % 2 else 'dog'}\n" for i, name in enumerate(IMAGES)),
    "path,labels,split\na.png,cat;dog,train\nb.png,dog,train\nc.png,,train\nd.png,cat;dog,test\n",
)
_LINES = (
    [
        {"path": name, "labels": ["x", "y"] if i % 2 else ["x"], "split": "train" if i < 4 else "test"}
        for i, name in enumerate(IMAGES)
    ],
    [{"path": name, "label": "x" if i % 2 else "y"} for i, name in enumerate(IMAGES)],
)
_CELLS = st.sampled_from(
    (*ODD_TEXTS, *IMAGES, "cat", "dog", "train", "test", "cat;dog", ";", "cat;cat", "/etc/passwd", "sub", "./a.png")
)


@st.composite
def _lists(draw: st.DrawFn) -> tuple[str, bytes, dict[str, Any]]:
    kind = draw(st.integers(0, 3))
    values = {"labels": draw(st.sampled_from(("one", "several"))), "skip_unreadable": draw(st.booleans())}
    if draw(st.booleans()):
        values["test_pct"] = draw(st.sampled_from((1, 50, 99)))
    if kind == 0:
        return "list.csv", draw(hostile_bytes([text.encode() for text in _TABLES])), values
    if kind == 1:
        rows = draw(st.lists(st.lists(_CELLS, min_size=1, max_size=4), max_size=5))
        text = draw(st.sampled_from(_TABLES)) + "\n".join(",".join(row) for row in rows)
        return "list.csv", text.encode("utf-8", "surrogatepass" if draw(st.booleans()) else "replace"), values
    if kind == 2:
        text = "\n".join(json.dumps(line) for line in draw(st.sampled_from(_LINES)))
        return "list.jsonl", draw(hostile_bytes([text.encode()])), values
    entries = draw(spoilt_trees(_LINES))
    lines = [json.dumps(entry) for entry in entries] if isinstance(entries, (list, tuple)) else [json.dumps(entries)]
    return draw(st.sampled_from(("list.jsonl", "list.jsonl", "list.json"))), "\n".join(lines).encode(), values


@contextmanager
def opened_lists(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Check and load the images that a list names."""
    write_images(folder)
    Settings = read_dataset_settings("image_folder")

    def attempt(drawn: tuple[str, bytes, dict[str, Any]]) -> None:
        name, content, values = drawn
        (folder / name).write_bytes(content)
        settings = Settings(root=str(folder), file_list=str(folder / name), **values)
        check_dataset("image_folder", settings)
        for part in load_dataset("image_folder", settings, image_size=8):
            assert part.images(range(len(part))).shape[0] == len(part)

    yield attempt


# COCO

_COCO = {
    "images": [{"id": number + 3, "file_name": name} for number, name in enumerate(IMAGES)],
    "annotations": [
        {"id": number, "image_id": number % 5 + 3, "category_id": (7, 90)[number % 2], "iscrowd": number % 3 == 0}
        for number in range(8)
    ],
    "categories": [{"id": 90, "name": "zebra"}, {"id": 7, "name": "apple"}],
}


@st.composite
def _coco(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 2)):
        return json.dumps(draw(spoilt_trees([_COCO]))).encode()
    return draw(hostile_bytes([json.dumps(_COCO).encode()]) | st.sampled_from((b"[" * 50_000, b'{"images":' * 50_000)))


@contextmanager
def opened_coco(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Load training images by the annotations; the test part is sound."""
    write_images(folder / "train2014")
    write_images(folder / "val2014")
    Settings = read_dataset_settings("coco2014")
    places = {"train_annotations": "train.json", "test_annotations": "val.json"}
    (folder / "val.json").write_text(json.dumps(_COCO))
    caches = folder / "caches"

    def attempt(content: bytes) -> None:
        (folder / "train.json").write_bytes(content)
        settings = Settings(root=str(folder), cache="ram", **places)
        check_dataset("coco2014", settings)
        train, _ = load_dataset("coco2014", settings, image_size=8)
        assert len(train.targets) == len(train)
        for parsed in caches.rglob("*.npz"):
            parsed.unlink()

    with mock.patch("platformdirs.user_cache_path", lambda name, appauthor: caches / name):
        yield attempt


# VOC

_CLASSES = ("bird", "boat", "cat")
_VOC = "000005 -1\n000007  1\n000009  0\n"
_VOC_LINES = st.sampled_from(
    ("000005 -1", "000007 1", "000009 0", "x 1", "../x 1", "a\0b 1", "000005", "1 2 3", "é 1", "/x -1", "", "\udcff 1")
)


@st.composite
def _voc(draw: st.DrawFn) -> tuple[list[bytes], str]:
    difficult = draw(st.sampled_from(("negative", "positive", "ignore")))
    if draw(st.integers(0, 2)) == 0:  # the same strange lines in every list
        lines = draw(st.lists(_VOC_LINES, max_size=5))
        return ["\n".join(lines).encode("utf-8", "surrogateescape")] * 3, difficult
    return [draw(st.one_of(st.just(_VOC.encode()), hostile_bytes([_VOC.encode()]))) for _ in _CLASSES], difficult


@contextmanager
def opened_voc(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Read the class lists of a split and the images that they name."""
    for name in ("000005", "000007", "000009"):
        (folder / f"{name}.jpg").write_bytes(pictures()[0])

    def attempt(drawn: tuple[list[bytes], str]) -> None:
        lists, difficult = drawn
        for name, content in zip(_CLASSES, lists, strict=True):
            class_list(folder, name, "trainval").write_bytes(content)
        labels = read_voc(folder, "trainval", _CLASSES, advice=ADVICE)
        part = LabelledFiles(folder, tuple(f"{one}.jpg" for one in labels.ids), *labels.targets(difficult))
        file_datasets(
            part,
            part,
            _CLASSES,
            ImageFilesSettings(),
            identity={"name": "voc"},
            advice=ADVICE,
            image_size=8,
            progress=None,
        )

    yield attempt


# Split lists, tables and arrays

_SPLITS = (
    b"data:\n- a/n01/x.jpg\n- a/n01/y.jpg\n- n02\\z.jpg\ntargets: [0, 0, 1]\n",
    b"n01/x.jpg\nn02/y.jpg\n\nb/c/n03/z.jpg\n",
)
_YAML = (
    *(
        b"data: &a [*a]\n",
        b"data: [!!int '']\n",
        b"data: [1, null, [2], {a: b}, 2001-99-99]\n",
        b"data: " + b"[" * 700,
        b"- a/b\n",
    ),
    *(
        b"data: [!!python/object/apply:os.getcwd []]\n",
        b"data: [9" + b"9" * 5000 + b"]\n",
        b"? [1]\n: 2\n",
        b"data: [!!timestamp x]\n",
    ),
    *(b"data: [!!binary a]\n", b"<<: 3\n", b"data: [a/b, a/b]\n", b"data: ['a\\0/b']\n", b"data: [a/b]\n---\nx: 1\n"),
)


@st.composite
def _tables(draw: st.DrawFn) -> tuple[str, bytes]:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return "list.txt", draw(hostile_bytes(_SPLITS))
    if kind == 1:
        return "list.yaml", draw(st.one_of(hostile_bytes(_SPLITS), st.sampled_from(_YAML)))
    if kind == 2:
        return "table", draw(hostile_bytes([b"1 001.Albatross/a b.jpg\n2 x\n", "n01\tgold fish\né\tx\n".encode()]))
    return "array.gz", draw(hostile_bytes(_arrays()))


@cache
def _arrays() -> tuple[bytes, ...]:
    plain = bytes((0, 0, 8, 1, 0, 0, 0, 5)) + bytes(range(5))
    huge = bytes((0, 0, 8, 1)) + b"\xff" * 4 + bytes(5)
    return gzip.compress(plain), gzip.compress(huge), gzip.compress(bytes(10**6)), plain


@contextmanager
def opened_tables(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Read a text list, a YAML list, a table or a packed array."""

    def attempt(drawn: tuple[str, bytes]) -> None:
        name, content = drawn
        path = folder / name
        path.write_bytes(content)
        if name == "array.gz":
            assert read_idx(path, dimensions=1, max_bytes=100_000, advice=ADVICE).ndim == 1
        elif name == "table":
            assert all(words is not None for _, words in table(path, ADVICE))
        else:
            assert read_split_list(path)

    yield attempt


TARGETS = (
    Target("file lists", st.deferred(_lists), opened_lists, lambda drawn: ("list.", "dataset."), share=70),
    Target("COCO annotations", st.deferred(_coco), opened_coco, lambda content: ("train.json", "train2014"), share=60),
    Target(
        "VOC class lists",
        st.deferred(_voc),
        opened_voc,
        lambda drawn: ("trainval.txt", ".jpg", "folder "),
        share=50,
    ),
    Target("split lists, tables, arrays", st.deferred(_tables), opened_tables, lambda drawn: (drawn[0],), share=60),
)
