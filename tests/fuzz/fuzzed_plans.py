"""Plans on disk: `plan.json` as a tree and as bytes, `plan.npz` as arrays and as bytes, files of two plans mixed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from harness import Target
from hypothesis import strategies as st
from mutations import hostile_bytes, spoilt_trees

from scenarios import load_plan, ml_si_blurry_plan, mlcil_plan, si_blurry_plan


@cache
def plans() -> tuple[tuple[dict[str, np.ndarray], dict[str, Any]], ...]:
    """Arrays and JSON of valid plans of both kinds."""
    one = np.arange(40) % 5
    several = np.zeros((30, 6), dtype=np.uint8)
    several[np.arange(30), np.arange(30) % 6] = 1
    several[np.arange(30), np.arange(30) // 2 % 6] = 1
    made = (
        si_blurry_plan(one, n_sessions=3, seed=1, class_names=list("abcdé")),
        mlcil_plan(several, seed=2),
        ml_si_blurry_plan(several, n_sessions=2, stream_batch=4, seed=3),
    )
    found = []
    for plan in made:
        with TemporaryDirectory() as name:
            plan.save(name)
            with np.load(Path(name) / "plan.npz") as arrays:
                content = json.loads((Path(name) / "plan.json").read_text(encoding="utf-8"))
                found.append(({key: arrays[key] for key in arrays.files}, content))
    return tuple(found)


def packed(arrays: dict[str, Any]) -> bytes:
    """The content of an `.npz` file."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


_TYPES = ("<i8", ">i8", "int8", "uint64", "float64", "float16", "complex64", "bool", "S3", "U2", "datetime64[s]", "V4")


@st.composite
def _array(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    """An array that differs from a valid one."""
    kind = draw(st.integers(0, 6))
    if kind == 0:
        return array.astype(draw(st.sampled_from(_TYPES[:8])))
    if kind == 1:
        return np.zeros(
            draw(st.sampled_from(((), (0,), (1,), (40,), (3, 2), (0, 6), (2, 2, 2)))), draw(st.sampled_from(_TYPES))
        )
    if kind == 2:
        return array[: draw(st.integers(0, max(0, len(array) - 1)))]
    if kind == 3:
        return array.reshape(draw(st.sampled_from(((-1, 1), (1, -1), (-1,), (1, 1, -1)))))
    changed = np.array(array).astype(np.int64)
    flat = changed.reshape(-1)
    if flat.size:
        odd = draw(st.sampled_from((-1, 0, 1, 5, 40, 2**31, 2**62, 2**63 - 1, -(2**63))) | st.integers(-3, 50))
        flat[draw(st.integers(0, flat.size - 1))] = odd
    if kind == 4 and array.dtype != np.bool_:
        return changed
    with np.errstate(all="ignore"):
        return changed.astype(array.dtype)


@st.composite
def _arrays(draw: st.DrawFn) -> tuple[bytes, Any]:
    arrays, content = draw(st.sampled_from(plans()))
    changed = dict(arrays)
    for name in draw(st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=2)):
        kind = draw(st.integers(0, 5))
        if kind == 0:
            changed.pop(name, None)
        elif kind == 1:
            changed[name + "s"] = changed.pop(name, arrays[name])
        else:
            changed[name] = draw(_array(arrays[name]))
    return packed(changed), content


@st.composite
def _trees(draw: st.DrawFn) -> tuple[bytes, Any]:
    arrays, content = draw(st.sampled_from(plans()))
    return packed(arrays), draw(spoilt_trees([content]))


@st.composite
def _bytes(draw: st.DrawFn) -> tuple[bytes, Any]:
    arrays, content = draw(st.sampled_from(plans()))
    other_arrays, other = draw(st.sampled_from(plans()))
    # Not packed, so that flipped bits reach the arrays and not only a checksum.
    plain = io.BytesIO()
    np.savez(plain, **arrays)  # type: ignore[arg-type]
    text = json.dumps(content).encode()
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(hostile_bytes([packed(arrays), plain.getvalue()])), text
    if kind == 1:
        return packed(arrays), draw(hostile_bytes([text]))
    if kind == 2:
        return packed(other_arrays), text
    return packed(arrays), {**content, "header": other["header"]}


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Read, measure and describe the plan."""

    def attempt(files: tuple[bytes, Any]) -> None:
        arrays, content = files
        (folder / "plan.npz").write_bytes(arrays)
        (folder / "plan.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        plan = load_plan(folder)
        assert plan.describe()
        assert plan.warnings is not None
        json.dumps(plan.effective, allow_nan=False)
        plan.save(folder)
        assert load_plan(folder) == plan

    yield attempt


def _named(files: Any) -> tuple[str, ...]:
    return ("plan.npz", "plan.json", "stream plan")


def _found() -> tuple[Any, ...]:
    arrays, content = plans()[0]
    return (
        (packed(arrays), {**content, "header": {**content["header"], "format": {}}}),  # TypeError: no key
        (
            packed(arrays),
            {**content, "provenance": {**content["provenance"], "pooled_samples": "x"}},
        ),  # told when shown
    )


TARGETS = (
    Target("plans: arrays", st.deferred(_arrays), opened, _named, share=60),
    Target("plans: JSON", st.deferred(_trees), opened, _named, 60, _found),
    Target("plans: bytes", st.deferred(_bytes), opened, _named, share=60),
)
