"""What the kinds of plans share: identity by content hash, equality, and the way to disk and back."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from scenarios import _plan_files
from scenarios.errors import PlanError


class HashedPlan(ABC):
    """Base of the plans: frozen, equal if the hashes are, saved as `plan.npz` beside `plan.json`."""

    FORMAT: ClassVar[int | str]
    """Kind and version of the hashed content and of the saved files."""

    sha256: str
    requested: Mapping[str, Any]
    provenance: Mapping[str, Any]
    class_names: tuple[str, ...] | None

    @property
    @abstractmethod
    def header(self) -> dict[str, Any]:
        """The hashed part beside the arrays, JSON-ready."""

    @property
    @abstractmethod
    def effective(self) -> dict[str, Any]:
        """Measures of the realised stream, JSON-ready."""

    @property
    @abstractmethod
    def warnings(self) -> tuple[str, ...]:
        """One sentence for every way in which the stream falls short of what was requested."""

    @abstractmethod
    def saved_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays of `plan.npz` from which `from_saved` rebuilds the plan."""

    @classmethod
    @abstractmethod
    def from_saved(cls, arrays: Mapping[str, npt.NDArray[Any]], **described: Any) -> Self:
        """The plan of these arrays; `described` holds `requested`, `provenance` and `class_names`."""

    def save(self, folder: str | Path) -> Path:
        """Write `plan.npz` and `plan.json` into `folder` (created if missing), each file whole or not at all.

        Returns:
            The folder.
        """
        return _plan_files.write_plan(self, Path(folder))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a saved plan and recompute its hash.

        Args:
            path: the folder holding `plan.npz` and `plan.json`, or one of the two files.

        Raises:
            PlanError: missing or damaged file, another format, or a content that does not match its hash.
        """
        return _plan_files.read_plan((cls,), Path(path))

    def __eq__(self, other: object) -> bool:
        return self.sha256 == other.sha256 if isinstance(other, HashedPlan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.sha256)

    def _freeze(self, arrays: Mapping[str, npt.NDArray[Any] | None]) -> None:
        """Set read-only arrays: no caller can change a plan after it was hashed (give private copies)."""
        for name, array in arrays.items():
            if array is not None:
                array.flags.writeable = False
            object.__setattr__(self, name, array)

    def _digest(self, parts: Iterable[npt.NDArray[Any]]) -> str:
        """sha256 of the canonical header, then of every part: its length as little-endian int64 and its bytes."""
        header = json.dumps(self.header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(header.encode("utf-8"))
        for part in parts:
            digest.update(np.array(len(part), dtype="<i8").tobytes())
            little = part.astype(part.dtype.newbyteorder("<"), copy=False)
            digest.update(np.ascontiguousarray(little).data)
        return digest.hexdigest()


def require(condition: bool, contradiction: str) -> None:
    """Refuse a plan whose parts contradict each other.

    Raises:
        PlanError: `condition` does not hold.
    """
    if not condition:
        raise PlanError(f"invalid stream plan: {contradiction}")
