"""File lists: CSV or JSON lines that name image files, their labels and their part, read without opening an image.

CSV has the header `path,label` or `path,label,split`; several labels stand in one cell, with semicolons between, and
the header may then say `labels`. A file whose name ends in `.jsonl` has lines like `{"path": "a.jpg", "labels": ["x"],
"split": "train"}`, the split left out in all lines or in none; `"label": "x"` says the same as `"labels": ["x"]`.
"""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from scenarios.errors import DataError

PARTS = ("train", "test")

_LINE = '{"path": "a.jpg", "labels": ["x", "y"], "split": "train"}'
_SEPARATOR = ";"


@dataclass(frozen=True)
class Row:
    """One image of a file list.

    Attributes:
        path: as written, relative or absolute.
        labels: class names in composed Unicode, each once.
        split: `train` or `test`; None where the list has no split.
        line: number of the line, from 1.
    """

    path: str
    labels: tuple[str, ...]
    split: str | None
    line: int


@dataclass(frozen=True)
class _Place:
    """A line of a list, as a message names it."""

    table: Path
    line: int

    def __str__(self) -> str:
        return f"{self.table} line {self.line}"


def composed(name: str) -> str:
    """One spelling of accented letters: systems disagree on how a file name stores them."""
    return unicodedata.normalize("NFC", name)


def read_table(table: Path, *, several: bool) -> list[Row]:
    """Rows of a file list in its order; every row or none has a split.

    Args:
        table: JSON lines where its name ends in `.jsonl`, else CSV.
        several: whether an image may have no label or more than one; else it must have one.

    Raises:
        DataError: missing, not readable, not in one of the two forms, an image named twice.
    """
    if table.suffix.lower() == ".json":
        raise DataError(f"dataset.file_list={table}: JSON is read line by line, each like {_LINE}; name it *.jsonl")
    read = _json_lines if table.suffix.lower() == ".jsonl" else _csv_lines
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(read(stream, table, several))
    except FileNotFoundError:
        raise DataError(
            f"dataset.file_list={table} does not exist; give a CSV file of path,label[,split] or a .jsonl file"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        kind = "JSON lines" if read is _json_lines else "CSV"
        raise DataError(f"dataset.file_list={table} is not {kind} in UTF-8 ({error}); save it as such") from error
    if not rows:
        raise DataError(f"dataset.file_list={table} names no file; add lines of path,label")
    _refuse_doubles(table, rows)
    if several and not any(row.labels for row in rows):
        raise DataError(f"dataset.file_list={table} has no label in any line; add labels")
    return rows


def _csv_lines(stream: TextIO, table: Path, several: bool) -> Iterator[Row]:
    reader = csv.DictReader(stream, strict=True)
    columns = [column.strip() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    has_split = "split" in columns
    label_column = "labels" if "labels" in columns else "label"
    expected = {"path", label_column} | ({"split"} if has_split else set())
    if set(columns) != expected or len(expected) != len(columns):
        raise DataError(
            f"dataset.file_list={table}: the first line must be path,label or path,label,split, "
            f"it is {','.join(columns)!r}"
        )
    if label_column == "labels" and not several:
        raise DataError(
            f"dataset.file_list={table} has a column labels; set dataset.labels=several, or call it label where each "
            "image has one"
        )
    for row in reader:
        where = _Place(table, reader.line_num)
        values = {key: (value or "").strip() for key, value in row.items() if key is not None}
        if None in row or not values["path"] or not (several or values["label"]):
            raise DataError(
                f"{where}: needs a path and a label and nothing more; put paths with a comma in double quotes"
            )
        text = values[label_column]
        if not several and _SEPARATOR in text:
            raise DataError(
                f"{where}: {text!r} where an image has one label; set dataset.labels=several (of dataset=image_folder) "
                "if these are several, or name the class in a .jsonl list"
            )
        labels = [label.strip() for label in text.split(_SEPARATOR)] if several and text else [text] if text else []
        yield _row(values["path"], labels, values["split"] if has_split else None, where)


def _json_lines(stream: TextIO, table: Path, several: bool) -> Iterator[Row]:
    first_has_split: bool | None = None
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        where = _Place(table, number)
        path, labels, split = _json_values(line, where)
        if first_has_split is None:
            first_has_split = split is not None
        if (split is not None) != first_has_split:
            raise DataError(f"{where}: split must be in all lines or in none; add it to or remove it from the others")
        if not several and len(labels) != 1:
            raise DataError(f"{where}: {len(labels)} labels where dataset.labels=one; set dataset.labels=several")
        yield _row(path, labels, split, where)


def _json_values(line: str, where: _Place) -> tuple[str, list[str], str | None]:
    """Path, labels and split of one JSON line, of the right types."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); each line must be like {_LINE}") from None
    keys = set(value) if isinstance(value, dict) else set()
    if keys - {"split"} not in ({"path", "labels"}, {"path", "label"}):
        raise DataError(
            f"{where}: needs the keys path and labels (or label), perhaps split, and no others, like {_LINE}"
        )
    path, split = value["path"], value.get("split")
    labels = value["labels"] if "labels" in keys else [value["label"]]
    texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not isinstance(path, str) or not path or not texts or not isinstance(split, str | None):
        raise DataError(f"{where}: path must be text, label one text and labels a list of texts, like {_LINE}")
    if "label" in keys and _SEPARATOR in labels[0]:
        parts = json.dumps([part.strip() for part in labels[0].split(_SEPARATOR)], ensure_ascii=False)
        raise DataError(f'{where}: {labels[0]!r} is one label; write several as "labels": {parts}')
    return path, [label.strip() for label in labels], split


def _row(path: str, labels: list[str], split: str | None, where: _Place) -> Row:
    if split is not None and split not in PARTS:
        raise DataError(f"{where}: split is {split!r}; allowed are train and test")
    names = tuple(composed(label) for label in labels)
    if "" in names:
        raise DataError(f"{where}: an empty label among others; write labels like cat{_SEPARATOR}dog")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{where}: label {twice[0]!r} is there twice; an image has a label or has it not")
    return Row(path, names, split, where.line)


def _refuse_doubles(table: Path, rows: list[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        normal = os.path.normpath(row.path)
        if normal in seen:
            raise DataError(
                f"dataset.file_list={table} names {row.path!r} twice; an image has one line with its labels and part"
            )
        seen.add(normal)
