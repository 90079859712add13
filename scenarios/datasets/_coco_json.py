"""Labels of COCO from an `instances` file: the classes of each image's objects, parsed once and then read from a cache.

Format: T.-Y. Lin et al., Microsoft COCO: common objects in context, ECCV 2014; lists `images`, `annotations`,
`categories`. The cache holds arrays only, under the sha256 of the file, so that a changed file is parsed again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenarios._atomic_files import atomic_file
from scenarios.errors import DataError

_CACHE_FORMAT = 1
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class CocoLabels:
    """Labels of one `instances` file.

    Attributes:
        class_names: all categories, sorted by character; the column of a class is its place here.
        file_names: in the order of the list `images`.
        single: multi-hot uint8 `(images, classes)` of annotations of single objects.
        crowd: the same of annotations of crowds.
    """

    class_names: tuple[str, ...]
    file_names: tuple[str, ...]
    single: np.ndarray
    crowd: np.ndarray

    def targets(self, crowd: str) -> np.ndarray:
        """Multi-hot uint8 `(images, classes)`; an image without annotation has a row of zeros.

        Args:
            crowd: whether crowds count, `positive`, or not, `drop`.
        """
        return self.single | self.crowd if crowd == "positive" else self.single.copy()


def read_coco(path: Path, *, advice: str) -> CocoLabels:
    """Labels of an `instances` file.

    Args:
        path: the JSON file.
        advice: what to do when it is missing or damaged, an order.

    Raises:
        DataError: missing, not readable, not of that form, or at odds with itself.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    cache = _cache_folder() / f"coco-{hashlib.sha256(data).hexdigest()}-{_CACHE_FORMAT}.npz"
    cached = _load(cache)
    if cached is not None:
        return cached
    try:
        labels = _parse(json.loads(data))
    except _Fault as fault:
        raise DataError(f"{path}: {fault}; {advice}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); {advice}") from None
    _save(cache, labels)
    return labels


class _Fault(Exception):
    """What is wrong with the content, in words."""


def _parse(content: Any) -> CocoLabels:
    categories = _entries(content, "categories", {"id": int, "name": str})
    images = _entries(content, "images", {"id": int, "file_name": str})
    annotations = _entries(content, "annotations", {"image_id": int, "category_id": int})
    if not categories or not images:
        raise _Fault("it names no category or no image")
    _refuse_doubles("category name", (category["name"] for category in categories))
    _refuse_doubles("category id", (category["id"] for category in categories))
    _refuse_doubles("image id", (image["id"] for image in images))
    _refuse_doubles("file name", (image["file_name"] for image in images))
    by_name = sorted(categories, key=lambda category: category["name"])
    columns = {category["id"]: column for column, category in enumerate(by_name)}
    rows = {image["id"]: row for row, image in enumerate(images)}
    found = np.zeros((2, len(rows), len(columns)), dtype=np.uint8)
    for annotation in annotations:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in rows or category not in columns:
            word, number = ("image", image) if image not in rows else ("category", category)
            raise _Fault(f"an annotation is of {word} {number}, which the list of {word} ids lacks")
        found[1 if annotation.get("iscrowd", 0) else 0, rows[image], columns[category]] = 1
    return CocoLabels(
        tuple(category["name"] for category in by_name), tuple(image["file_name"] for image in images), *found
    )


def _entries(content: Any, key: str, kinds: dict[str, type]) -> list[dict[str, Any]]:
    """The list `key`, whose records have these keys of these types."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise _Fault(f"it has no list {key!r}; an instances file of COCO is wanted")
    for number, entry in enumerate(entries):
        for name, kind in kinds.items():
            if not isinstance(entry, dict) or type(entry.get(name)) is not kind:
                raise _Fault(f"{key}[{number}] has no {name!r} of type {kind.__name__}")
    return entries


def _refuse_doubles(word: str, values: Iterable[Any]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise _Fault(f"{word} {value!r} is there twice")
        seen.add(value)


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("cl_prompts", appauthor=False)


def _load(cache: Path) -> CocoLabels | None:
    """Labels from the cache; None where it is absent or damaged: the file of the user is then parsed again."""
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            names, files, single, crowd = (arrays[key] for key in ("class_names", "file_names", "single", "crowd"))
    except _DAMAGE:
        return None
    if not single.shape == crowd.shape == (len(files), len(names)):
        return None
    return CocoLabels(tuple(names.tolist()), tuple(files.tolist()), single, crowd)


def _save(cache: Path, labels: CocoLabels) -> None:
    """Write the cache whole or not at all; where that is not possible, every run parses."""
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(cache) as file:
            np.savez_compressed(
                file,
                class_names=np.array(labels.class_names),
                file_names=np.array(labels.file_names),
                single=labels.single,
                crowd=labels.crowd,
            )
