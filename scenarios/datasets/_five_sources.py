"""The five data sets of `five_datasets`: official files, and how each is read.

Addresses and checksums of the first four are those of torchvision. notMNIST has no official split and no address that
is certain, so a user brings it as folders of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scenarios._downloads import RemoteFile
from scenarios.datasets._cifar import SIDE, CifarReader
from scenarios.datasets._decoding import Decoder, decode_all
from scenarios.datasets._folder_listing import list_images
from scenarios.datasets._idx import read_idx
from scenarios.datasets._official import Official, first_missing
from scenarios.datasets.cifar10 import CIFAR10
from scenarios.errors import DataError

_NAME = "five_datasets"
_DIGITS = tuple("0123456789")
_LETTERS = tuple("ABCDEFGHIJ")
_CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IDX_BYTES = 50_000_000


@dataclass(frozen=True)
class Part:
    """Images of one part of one of the five.

    Attributes:
        pixels: uint8 `(images, 3, 32, 32)`, or grey `(images, height, width)`.
        labels: int64 `(images,)`, 0..9.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def at_side(self, positions: np.ndarray) -> np.ndarray:
        """Images at these positions, uint8 `(positions, 3, 32, 32)`."""
        from PIL import Image

        chosen = self.pixels[positions]
        if chosen.ndim == 4:
            return chosen
        size, bicubic = (SIDE, SIDE), Image.Resampling.BICUBIC
        out = np.empty((len(chosen), SIDE, SIDE), dtype=np.uint8)
        for row, image in enumerate(chosen):
            out[row] = np.asarray(Image.fromarray(image).resize(size, bicubic))
        return np.repeat(out[:, None], 3, axis=1)


@dataclass(frozen=True)
class Source:
    """One of the five.

    Attributes:
        label: its name before those of its classes.
        class_names: ten, by label.
        read: both parts from the root, and notes for a reader of the results.
    """

    label: str
    class_names: Sequence[str]
    read: Callable[[Path], tuple[tuple[Part, Part], list[str]]]


def _idx_record(folder: str, host: str, sums: Sequence[str]) -> Official:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return Official(
        name=_NAME,
        files=tuple(RemoteFile(host + name, name, md5=md5) for name, md5 in zip(names, sums, strict=True)),
        tree=f"{folder}/ with {', '.join(names)}",
        missing=first_missing(*(f"{folder}/{name}" for name in names)),
        images={"train": 60_000, "test": 10_000},
        folder=folder,
    )


MNIST = _idx_record(
    "MNIST/raw",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)
FASHION_MNIST = _idx_record(
    "FashionMNIST/raw",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
)
SVHN = Official(
    name=_NAME,
    files=tuple(
        RemoteFile(f"http://ufldl.stanford.edu/housenumbers/{name}", name, md5=md5)
        for name, md5 in (
            ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        )
    ),
    tree="SVHN/ with train_32x32.mat and test_32x32.mat",
    missing=first_missing("SVHN/train_32x32.mat", "SVHN/test_32x32.mat"),
    images={"train": 73_257, "test": 26_032},
    folder="SVHN",
)
NOT_MNIST = Official(
    name=_NAME,
    files=(),
    tree="notMNIST/train/A ... notMNIST/train/J and notMNIST/test/A ... notMNIST/test/J with the images of the letters",
    missing=first_missing("notMNIST/train", "notMNIST/test"),
    page="Y. Bulatov's notMNIST or the code of Adversarial Continual Learning (ECCV 2020)",
)
CIFAR = replace(CIFAR10, name=_NAME)

OFFICIAL = (CIFAR.official, MNIST, FASHION_MNIST, SVHN, NOT_MNIST)
"""Records in the order of the classes."""


def _read_cifar(root: Path) -> tuple[tuple[Part, Part], list[str]]:
    reader = CifarReader(CIFAR, root)
    return (Part(*reader.part(CIFAR.train)), Part(*reader.part(CIFAR.test))), []


def _idx_reader(record: Official) -> Callable[[Path], tuple[tuple[Part, Part], list[str]]]:
    def read(root: Path) -> tuple[tuple[Part, Part], list[str]]:
        advice = record.advice(root)
        arrays = [
            read_idx(record.verified(file, root), dimensions=size, max_bytes=_IDX_BYTES, advice=advice)
            for file, size in zip(record.files, (3, 1, 3, 1), strict=True)
        ]
        parts = [Part(images, labels.astype(np.int64)) for images, labels in (arrays[:2], arrays[2:])]
        for part in parts:
            _require_labels(part, record, root)
        return (parts[0], parts[1]), []

    return read


def _read_svhn(root: Path) -> tuple[tuple[Part, Part], list[str]]:
    from scipy.io import loadmat

    parts = []
    for file in SVHN.files:
        content = loadmat(SVHN.verified(file, root))
        # Images lie along the last axis; the digit 0 is written as 10.
        labels = content["y"].reshape(-1).astype(np.int64) % 10
        parts.append(Part(np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)), labels))
        _require_labels(parts[-1], SVHN, root)
    return (parts[0], parts[1]), []


def _read_not_mnist(root: Path) -> tuple[tuple[Part, Part], list[str]]:
    listing = list_images(str(root / "notMNIST"), None)
    if listing.is_test is None or listing.class_names != _LETTERS:
        raise DataError(f"dataset={_NAME}: {listing.root} is not laid out as needed; {NOT_MNIST.by_hand(root)}")
    parts, skipped = [], []
    decoder = Decoder(SIDE, "bicubic")
    for positions in (np.flatnonzero(~listing.is_test), np.flatnonzero(listing.is_test)):
        paths = [listing.root / listing.paths[position] for position in positions]
        pixels = np.empty((len(paths), 3, SIDE, SIDE), dtype=np.uint8)
        _, failures = decode_all(paths, decoder, out=pixels)
        kept = np.array([row for row in range(len(paths)) if row not in failures], dtype=np.int64)
        skipped += [str(paths[row]) for row in failures]
        parts.append(Part(pixels[kept], listing.targets[positions][kept]))
    # The collection is known to have files that no program can read.
    notes = [f"notMNIST: {len(skipped)} unreadable files were left out (first: {skipped[0]})"] if skipped else []
    return (parts[0], parts[1]), notes


def _require_labels(part: Part, record: Official, root: Path) -> None:
    if len(part.labels) != len(part.pixels) or (part.labels.size and part.labels.max() > 9):
        raise DataError(
            f"dataset={_NAME}: images and labels in {record.place(root)} do not belong together; {record.advice(root)}"
        )


SOURCES = (
    Source("CIFAR-10", _OBJECTS, _read_cifar),
    Source("MNIST", _DIGITS, _idx_reader(MNIST)),
    Source("Fashion-MNIST", _CLOTHES, _idx_reader(FASHION_MNIST)),
    Source("SVHN", _DIGITS, _read_svhn),
    Source("notMNIST", _LETTERS, _read_not_mnist),
)
"""The five in the order of the classes."""
