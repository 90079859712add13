"""Labels of PASCAL VOC from its class lists: one text file a class and split, with a label for every image.

Format: M. Everingham et al., The PASCAL Visual Object Classes Challenge 2007 development kit, section on image sets:
lines of `<image id> <label>`, 1 for an object of the class, -1 for none, 0 for objects marked difficult only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.errors import DataError

_LABELS = {"1": 1, "0": 0, "-1": -1}


@dataclass(frozen=True)
class VocLabels:
    """Labels of one split.

    Attributes:
        ids: image ids, sorted by character.
        states: int8 `(images, classes)`: 1, 0 (difficult only) or -1, as written.
    """

    ids: tuple[str, ...]
    states: np.ndarray

    def targets(self, difficult: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Multi-hot uint8 `(images, classes)` and which labels are known, bool of that shape or None for all.

        Args:
            difficult: what a label 0 means: `negative`, `positive`, or `ignore` for neither.
        """
        positive = self.states == 1
        if difficult == "positive":
            positive = self.states >= 0
        known = self.states != 0 if difficult == "ignore" else None
        return positive.astype(np.uint8), known


def class_list(folder: Path, class_name: str, split: str) -> Path:
    """The file of one class and split, exactly `<class>_<split>.txt`."""
    return folder / f"{class_name}_{split}.txt"


def read_voc(folder: Path, split: str, class_names: Sequence[str], *, advice: str) -> VocLabels:
    """Labels of all images of a split, columns in the order of `class_names`.

    Args:
        folder: `ImageSets/Main`.
        split: `trainval` or `test`.
        class_names: the classes.
        advice: what to do when a list is missing or damaged, an order.

    Raises:
        DataError: a missing or damaged list, or lists that name different images.
    """
    lists = [_read_list(class_list(folder, name, split), advice) for name in class_names]
    ids = sorted(lists[0])
    for name, labels in zip(class_names, lists, strict=True):
        if labels.keys() != lists[0].keys():
            strange = min(labels.keys() ^ lists[0].keys())
            first = class_list(folder, class_names[0], split).name
            raise DataError(
                f"{class_list(folder, name, split)} and {first} name different images (first: {strange!r} is in one of "
                f"them); {advice}"
            )
    states = np.array([[labels[image] for labels in lists] for image in ids], dtype=np.int8)
    return VocLabels(tuple(ids), states)


def _read_list(path: Path, advice: str) -> dict[str, int]:
    """Label of each image id."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"class list {path} is missing; {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"class list {path} cannot be read ({error}); {advice}") from error
    labels: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        words = line.split()
        if len(words) != 2 or words[1] not in _LABELS:
            raise DataError(f"{path} line {number}: {line.strip()!r} is no image id and label -1, 0 or 1; {advice}")
        if words[0] in labels:
            raise DataError(f"{path} line {number}: image {words[0]!r} is there twice; {advice}")
        labels[words[0]] = _LABELS[words[1]]
    if not labels:
        raise DataError(f"class list {path} is empty; {advice}")
    return labels
