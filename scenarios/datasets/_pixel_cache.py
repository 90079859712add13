"""Decoded images in a file that later runs and other processes use again, found by the content of the image files.

The name of a file is a hash of the bytes of every image file, of size, filter and decoding software: a changed image
never gives old pixels, whatever its name and date. Files in the folder can be deleted at any time between runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scenarios._atomic_files import atomic_file
from scenarios._locks import locked
from scenarios.datasets._decoding import Decoder, ReadFiles, decode_all, digest_all
from scenarios.datasets._pixel_file import MAGIC, DamagedPixelFile, ForeignPixelFile, MappedPixels, PixelFileWriter
from scenarios.datasets.base import Progress
from scenarios.errors import DataError

SUFFIX = ".pixels"
"""End of the name of each file of decoded images."""

_BLOCK_BYTES = 64_000_000
"""Pixels held in memory before they are written."""

_SPARE_BYTES = 50_000_000
"""Space left free on the disk, which holds the checksums, too."""


def cache_folder(setting: str | None) -> Path:
    """`dataset.cache_folder`, else the user's cache folder."""
    if setting is not None:
        return Path(setting).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("cl_prompts", appauthor=False) / "images"


def check_folder(folder: Path, needed: int) -> None:
    """Refuse at once a folder that cannot hold the decoded images.

    Args:
        folder: where they will be.
        needed: their bytes; whether these are free is only known here where the folder has no such images yet.

    Raises:
        DataError: not writable, or too little space.
    """
    with _clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission to write")
        if not any(folder.glob(f"*{SUFFIX}")):
            _require_space(folder, needed)


def read_cached(paths: Sequence[Path], decoder: Decoder, folder: Path, report: Progress | None) -> ReadFiles:
    """Pixels of the files, mapped from the cache, which is filled first where it lacks them.

    Args:
        paths: the files; every one is read and hashed, none is decoded where the cache has them.
        decoder: how.
        folder: where the cache is.
        report: called with (files done, files in all), for the hashes and again for the pixels.

    Raises:
        DataError: a folder that cannot be written, a foreign file, too little space, an image changed while it is read.
    """
    digests, failures = digest_all(paths, report=report)
    key = _key(digests, decoder)
    place = folder / (key + SUFFIX)
    notes: list[str] = []
    with _clear_errors(folder):
        pixels = _opened(place, key, [])
        if pixels is None:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(place.with_suffix(".lock"), purpose=f"decoding the same images into {place.name}"):
                pixels = _opened(place, key, notes)  # another process may have filled it meanwhile
                if pixels is None:
                    _fill(place, key, _Files(paths, digests, tuple(failures)), decoder, report)
                    pixels = MappedPixels(place, key)
    undecodable = {int(position): reason for position, reason in pixels.details["unreadable"].items()}
    return ReadFiles.of(paths, digests, {**failures, **undecodable}, pixels, notes)


def _key(digests: Sequence[str], decoder: Decoder) -> str:
    """Hash of everything that decides about the pixels."""
    from PIL import Image, features

    software = [f"Pillow {Image.__version__}", f"JPEG {features.version_codec('jpg')}", str(features.version("webp"))]
    lines = [MAGIC.decode(), *software, str(decoder.size), decoder.interpolation, *digests]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _opened(place: Path, key: str, notes: list[str]) -> MappedPixels | None:
    """The verified pixels; None where there are none, or, with a note, where they are damaged."""
    try:
        pixels = MappedPixels(place, key)
        pixels.verify()
    except FileNotFoundError:
        return None
    except DamagedPixelFile as error:
        notes.append(f"decoded images were damaged and have been made again ({error})")
        return None
    except ForeignPixelFile as error:
        raise ForeignPixelFile(
            f"{error}; delete it, or name another folder in dataset.cache_folder, or set dataset.cache=ram"
        ) from None
    return pixels


class _Files:
    """The files to decode: those that could be read, and what they held then."""

    def __init__(self, paths: Sequence[Path], digests: Sequence[str], unread: Sequence[int]) -> None:
        missing = set(unread)
        self.positions = [position for position in range(len(paths)) if position not in missing]
        self.paths = [paths[position] for position in self.positions]
        self.digests = [digests[position] for position in self.positions]


def _fill(place: Path, key: str, files: _Files, decoder: Decoder, report: Progress | None) -> None:
    """Decode into the file; only one process at a time comes here."""
    image_bytes = 3 * decoder.size**2
    _require_space(place.parent, len(files.paths) * image_bytes)
    for left_over in place.parent.glob(f".{place.name}.*"):  # of a process that was killed
        left_over.unlink()
    unreadable: dict[int, str] = {}
    with atomic_file(place) as stream:
        writer = PixelFileWriter(stream, key, decoder.size)
        for block in _blocks(len(files.paths), max(_BLOCK_BYTES // image_bytes, 1)):
            images, reasons = _decoded(files, block, decoder, report)
            writer.append(images)
            unreadable |= {files.positions[position]: reason for position, reason in reasons.items()}
        writer.finish({"unreadable": unreadable})


def _decoded(
    files: _Files, block: range, decoder: Decoder, report: Progress | None
) -> tuple[np.ndarray, dict[int, str]]:
    """Pixels of the images of a block, and the reasons for those that are none, by position among the files."""
    out = np.empty((len(block), 3, decoder.size, decoder.size), dtype=np.uint8)
    total = len(files.paths)
    counted: Progress | None = None if report is None else lambda done, _: report(block.start + done, total)
    digests, failures = decode_all(files.paths[block.start : block.stop], decoder, out=out, report=counted)
    for position, digest in zip(block, digests, strict=True):
        if digest != files.digests[position]:
            raise DataError(f"{files.paths[position]} changed while it was read; start again when it no longer does")
    kept = [position for position in range(len(block)) if position not in failures]
    return out[kept] if failures else out, {block[position]: reason for position, reason in failures.items()}


def _blocks(total: int, length: int) -> Iterator[range]:
    """0..total-1 in consecutive ranges of at most `length`."""
    return (range(start, min(start + length, total)) for start in range(0, total, length))


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise DataError(
            f"dataset.cache=mmap: decoded images need {needed / 1e6:,.0f} MB, {folder} has {free / 1e6:,.0f} MB free; "
            "delete what it no longer needs, name another folder in dataset.cache_folder, or set dataset.cache=none"
        )


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"dataset.cache=mmap: {error.filename or folder}: {error.strerror or error}; "
            "name a folder that can be written in dataset.cache_folder, or set dataset.cache=ram"
        ) from error
