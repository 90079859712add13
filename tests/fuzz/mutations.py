"""Strategies that spoil valid data: bytes, and trees of lists and dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = (
    *("", " ", "\0", "\n", "a\nb", "\r", "\t", "\x1b[31m", "\x85", "\u2028", "\ud800", "\udcff", "\ufeff", "\u202e"),
    *(
        "é",
        "e\u0301",
        "ß",
        "甲",
        "🜲",
        "İ",
        "x" * 300,
        "x" * 5000,
        "../..",
        "../x",
        "/",
        "/x",
        "~",
        "~nobody",
        ".",
        "..",
    ),
    *("null", "None", "true", "nan", "inf", "1", "-1", "1e5", "0x1F", "1_000", "9" * 30, "9" * 5000, "2001-99-99"),
    *("${x}", "${seed}", "${oc.env:HOME}", "${oc.env:NO_SUCH}", "${", "${}", "${${x}}", "???", "%s", "{}", "{0}", "\\"),
    *(
        "name",
        "__class__",
        "os.system",
        "a.b",
        "a/b",
        "a=b",
        "a,b",
        "a;b",
        "[",
        "]",
        "{",
        "'",
        '"',
        "#",
        "!x",
        "&a",
        "*a",
    ),
)
ODD_NUMBERS = (
    *(0, 1, -1, 2, 7, 255, 256, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**64)),
    *(10**18, 10**40, 10**400, 0.0, -0.0, 0.5, -0.5, 1.0, 3.7, 1e-320, 1e19, 1e308, float("nan"), float("inf")),
    *(-float("inf"),),
)
ODD_VALUES = (
    *(None, True, False, [], {}, [[]], [{}], {"": None}, {"a": 1}, {"name": "x"}, [None], [0] * 40, ["a", 1, None]),
    *ODD_TEXTS,
    *ODD_NUMBERS,
)


def odd_values() -> st.SearchStrategy[Any]:
    """Values of every kind that a file can hold and few expect."""
    return st.sampled_from(ODD_VALUES).map(copy.deepcopy) | st.text(max_size=6) | st.integers() | st.floats()


def paths_of(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value of a tree, its root first."""
    found = [before]
    for key, value in _entries(tree):
        found += paths_of(value, (*before, key))
    return found


def _entries(tree: Any) -> list[tuple[Any, Any]]:
    if isinstance(tree, dict):
        return list(tree.items())
    return list(enumerate(tree)) if isinstance(tree, (list, tuple)) else []


def at(tree: Any, path: Sequence[Any]) -> Any:
    """The value at a place."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Any, path: Sequence[Any], value: Any) -> Any:
    """The tree, changed in place where it can be, with another value at a place."""
    if not path:
        return value
    parent = at(tree, path[:-1])
    if isinstance(parent, tuple):
        changed = list(parent)
        changed[path[-1]] = value
        return put(tree, path[:-1], tuple(changed))
    parent[path[-1]] = value
    return tree


def _without(tree: Any, path: Sequence[Any], value: Any, other: Any) -> Any:
    parent = at(tree, path[:-1]) if path else None
    if isinstance(parent, (dict, list)):
        del parent[path[-1]]
    return tree


def _renamed(tree: Any, path: Sequence[Any], value: Any, other: Any) -> Any:
    parent = at(tree, path[:-1]) if path else None
    if isinstance(parent, dict):
        key = path[-1]
        name = value if isinstance(value, str) else f"{key}s" if isinstance(value, bool) else str(key)[:-1]
        parent[name] = parent.pop(key)
    return tree


def _added(tree: Any, path: Sequence[Any], value: Any, other: Any) -> Any:
    place = at(tree, path)
    if isinstance(place, dict):
        place[value if isinstance(value, str) else "strange"] = copy.deepcopy(other)
    elif isinstance(place, list):
        place.append(copy.deepcopy(place[0]) if place and value is None else value)
    return tree


_EDITS: tuple[Callable[[Any, Sequence[Any], Any, Any], Any], ...] = (
    lambda tree, path, value, other: put(tree, path, value),
    lambda tree, path, value, other: put(tree, path, value),
    _without,
    _renamed,
    _added,
    lambda tree, path, value, other: put(tree, path, copy.deepcopy(other)),
    lambda tree, path, value, other: put(tree, path, [at(tree, path)]),
    lambda tree, path, value, other: put(tree, path, str(at(tree, path))[:2000]),
)


@st.composite
def spoilt_trees(draw: st.DrawFn, trees: Sequence[Any], values: st.SearchStrategy[Any] | None = None) -> Any:
    """One of the trees with one to four edits: values replaced, taken out, renamed, added, copied elsewhere, wrapped.

    Args:
        draw: of hypothesis.
        trees: valid ones, which stay as they are.
        values: what may come in.
    """
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    for _ in range(draw(st.integers(1, 4))):
        paths = paths_of(tree)
        path = draw(st.sampled_from(paths))
        other = at(tree, draw(st.sampled_from(paths)))
        value = draw(odd_values() if values is None else values)
        tree = draw(st.sampled_from(_EDITS))(tree, path, value, other)
    return tree


ODD_BYTES = (
    b"\0",
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b"-1",
    b"1e999",
    b"PK",
    b"\xef\xbb\xbf",
)


@st.composite
def spoilt_bytes(draw: st.DrawFn, contents: Sequence[bytes]) -> bytes:
    """One of the contents with one to four edits: bits flipped, cut, bytes put in, taken out, copied, overwritten."""
    data = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        size = len(data)
        # Headers and ends of files matter most.
        place = draw(st.integers(0, size) | st.integers(0, min(size, 64)) | st.integers(max(0, size - 64), size))
        length = draw(st.integers(1, 16) | st.integers(1, max(1, size)))
        kind = draw(st.integers(0, 6))
        if kind == 0 and place < size:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=12))
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            odd = draw(st.sampled_from(ODD_BYTES) | st.binary(min_size=1, max_size=8))
            data[place : place + len(odd)] = odd
        else:
            data[place : place + length] = bytes(len(data[place : place + length]))
    return bytes(data)


def hostile_bytes(contents: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Spoilt contents, and some bytes that were never a file of this kind."""
    return st.one_of(spoilt_bytes(contents), spoilt_bytes(contents), spoilt_bytes(contents), st.binary(max_size=200))
