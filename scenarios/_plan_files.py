"""A plan on disk: `plan.npz` (arrays) beside `plan.json` (header, measures, hash)."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from scenarios._atomic_files import atomic_file
from scenarios.errors import PlanError

if TYPE_CHECKING:
    from scenarios._hashed_plan import HashedPlan

PlanT = TypeVar("PlanT", bound="HashedPlan")

_FLAGS = ("allow_empty_sessions", "allow_home", "varying")  # written as 0 and 1
_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error),
    *(RuntimeError, MemoryError),  # too deep, encrypted, in an unknown compression; arrays of absurd shapes
)


def write_plan(plan: HashedPlan, folder: Path) -> Path:
    """Write both files, each through a temporary file and a rename; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = plan.saved_arrays()
    content = {
        "sha256": plan.sha256,
        "effective": plan.effective,
        "warnings": list(plan.warnings),
        "provenance": plan.provenance,
        "class_names": None if plan.class_names is None else list(plan.class_names),
        "header": plan.header,
    }
    # One line a key: readable, and a thousand classes stay a few lines.
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items())
    with atomic_file(folder / "plan.npz") as file:
        np.savez_compressed(file, **arrays)
    with atomic_file(folder / "plan.json") as file:
        file.write(f"{{\n{lines}\n}}\n".encode("utf-8", "backslashreplace"))
    return folder


def read_plan(kinds: Sequence[type[PlanT]], path: Path) -> PlanT:
    """Read a plan of one of these kinds and compare the recomputed hash and header with the stored ones.

    Raises:
        PlanError: missing or damaged file, another format, or a content that does not match its hash.
    """
    base = path / "plan.npz" if path.is_dir() else path
    arrays_path, content_path = base.with_suffix(".npz"), base.with_suffix(".json")
    for needed in (arrays_path, content_path):
        if not needed.is_file():
            raise PlanError(f"plan file {needed} does not exist: give a folder that holds plan.npz and plan.json")
    try:
        content = json.loads(content_path.read_text(encoding="utf-8"))
        header, names = content["header"], content["class_names"]
        stored, requested = content["sha256"], _as_requested(header["requested"])
        provenance, version = dict(content["provenance"]), header["format"]
    except _DAMAGE as error:
        raise PlanError(f"plan file {content_path} cannot be read ({error}): generate the plan again") from error
    readers = {kind.FORMAT: kind for kind in kinds}
    if not isinstance(version, int | str) or version not in readers:
        raise PlanError(
            f"plan file {content_path} has format {version}, but format {' or '.join(map(str, readers))} is read here:"
            " read it with scenarios.load_plan, or generate the plan again with this version"
        )
    try:
        with np.load(arrays_path, allow_pickle=False) as arrays:
            plan = readers[version].from_saved(
                arrays,
                requested=requested,
                provenance=provenance,
                class_names=None if names is None else tuple(names),
            )
    except _DAMAGE as error:
        raise PlanError(f"plan file {arrays_path} cannot be read ({error}): generate the plan again") from error
    if plan.sha256 != stored or plan.header != header:
        raise PlanError(
            f"plan files {arrays_path} and {content_path.name} do not match: the content hashes to"
            f" {plan.sha256[:12]}, the stored sha256 is {str(stored)[:12]}; generate the plan again"
        )
    return plan


def _as_requested(stored: dict[str, Any]) -> dict[str, Any]:
    return {key: bool(value) if key in _FLAGS else value for key, value in stored.items()}
