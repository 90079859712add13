"""Checks that a weight file fits a model to the last key; every fault of a file is named in one line. Light."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cl_prompts.errors import BackboneError
from scenarios._looks import looks_like

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

_KINDS_OF_WEIGHTS = ("a zip archive", "something unknown")
"""How the first bytes of weight files look."""


def file_sha256(path: Path | str) -> str:
    """SHA-256 of the file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_misfits(path: Path, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compare names and shapes of a file with those of a model.

    Raises:
        BackboneError: some are missing, unexpected or of another shape.
    """
    misshaped = [
        f"{key} {found[key]} instead of {expected[key]}"
        for key in sorted(expected.keys() & found.keys())
        if found[key] != expected[key]
    ]
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": misshaped,
    }
    text = "; ".join(f"{kind}: {shortened(keys)}" for kind, keys in faults.items() if keys)
    if text:
        raise misfit(path, text)


def refuse_broken_numbers(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Check that every weight is a finite floating number.

    Raises:
        BackboneError: names the tensors that are not.
    """
    broken = [key for key, value in weights.items() if not _is_sound(value)]
    if broken:
        raise BackboneError(
            f"{path.name} holds values that are not finite floating numbers in {shortened(broken)}; get the file again"
        )


def _is_sound(tensor: Tensor) -> bool:
    """Plain floating numbers, all of them there and finite."""
    plain = tensor.is_floating_point() and not tensor.is_meta and not tensor.is_sparse
    return plain and bool(tensor.isfinite().all())


def misfit(path: Path, reason: str) -> BackboneError:
    """The error for a file that belongs to another model."""
    return BackboneError(f"{path.name} does not fit this backbone ({reason}); choose the model this file was made for")


def unreadable(path: Path, error: Exception) -> BackboneError:
    """The error for a file that is damaged, or no weight file at all."""
    with suppress(OSError), path.open("rb") as file:
        kind = looks_like(file.read(512))
        if kind not in _KINDS_OF_WEIGHTS:  # more use to a person than what a reader of tensors says about it
            return BackboneError(f"{path.name} cannot be read as weights (it looks like {kind}); get the file again")
    return BackboneError(f"{path.name} cannot be read as weights ({one_line(error)}); get the file again")


def one_line(error: Exception, most: int = 300) -> str:
    """The text of an error without line breaks, cut to `most` characters."""
    return " ".join(str(error).split())[:most] or "it ends too early"


def shortened(names: list[str], most: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
