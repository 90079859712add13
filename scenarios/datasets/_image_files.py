"""What data sets of image files share: how files become arrays, and where these stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from scenarios.datasets._decoding import Decoder, FilePixels, ReadFiles, decode_all
from scenarios.datasets._memory import SHARE, available_bytes
from scenarios.datasets._pixel_cache import cache_folder, check_folder, read_cached
from scenarios.datasets.base import ArrayPixels, DatasetSettings, Progress
from scenarios.errors import DataError

CacheMode = Literal["ram", "mmap", "none"]


class ImageFilesSettings(DatasetSettings):
    """Settings of a data set whose images are decoded from files."""

    size: int | None = Field(
        None, ge=1, le=4096, description="side in pixels to which images are decoded; null: what the backbone wants"
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bicubic", description="filter that resizes the shorter side; the centre is cut out"
    )
    cache: CacheMode = Field(
        "ram",
        description="decoded images stay in memory (ram: at most half of what is free), in a file that later runs and "
        "other processes share (mmap), or are decoded anew at each use (none)",
    )
    cache_folder: str | None = Field(None, description="folder of these files; null: the user's cache folder")

    def check_places(self) -> None:
        """Refuse a folder of decoded images that cannot be written; how much space they need is known later.

        Raises:
            DataError: not writable, no space at all.
        """
        if self.cache == "mmap":
            check_folder(cache_folder(self.cache_folder), 0)


@dataclass(frozen=True)
class FileReader:
    """How the files of a data set are read, the same for all its parts.

    Attributes:
        decoder: file to pixels.
        cache: where pixels stay.
        folder: where `mmap` has its files.
    """

    decoder: Decoder
    cache: CacheMode
    folder: Path

    @property
    def keeps(self) -> bool:
        """Whether pixels are kept, so that every file is read once before the run."""
        return self.cache != "none"

    def read(self, paths: Sequence[Path], report: Progress | None) -> ReadFiles:
        """Read every file once and keep its pixels as `cache` says.

        Args:
            paths: the files.
            report: called with (files done, files in all).

        Raises:
            DataError: `mmap` cannot write its file, or finds another one in its place.
        """
        return _READ[self.cache](self, paths, report)


def plan_reading(settings: ImageFilesSettings, image_size: int, images: int) -> FileReader:
    """How to read, once it is known that there is room for the pixels.

    Args:
        settings: size, interpolation, where pixels stay.
        image_size: side in pixels where `settings.size` is None.
        images: number of images of both parts.

    Raises:
        DataError: too little memory for `ram`, too little space for `mmap` or no right to write.
    """
    reader = FileReader(
        Decoder(settings.size or image_size, settings.interpolation),
        settings.cache,
        cache_folder(settings.cache_folder),
    )
    _REQUIRE_ROOM[settings.cache](reader, images * 3 * reader.decoder.size**2)
    return reader


def _require_memory(reader: FileReader, needed: int) -> None:
    available = available_bytes()
    if available is not None and needed > SHARE * available:
        raise DataError(
            f"dataset.cache=ram: decoded images need {needed / 1e6:,.0f} MB, more than half of the "
            f"{available / 1e6:,.0f} MB of memory that are free; set dataset.cache=mmap, which keeps them in a file, "
            "or dataset.cache=none"
        )


_REQUIRE_ROOM: dict[CacheMode, Callable[[FileReader, int], None]] = {
    "ram": _require_memory,
    "mmap": lambda reader, needed: check_folder(reader.folder, needed),
    "none": lambda reader, needed: None,
}


def _read_to_memory(reader: FileReader, paths: Sequence[Path], report: Progress | None) -> ReadFiles:
    size = reader.decoder.size
    out = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    digests, failures = decode_all(paths, reader.decoder, out=out, report=report)
    kept = [position for position in range(len(paths)) if position not in failures]
    if failures:  # in place, or two sets of pixels would be in memory
        for row, position in enumerate(kept):
            out[row] = out[position]
    return ReadFiles.of(paths, digests, failures, ArrayPixels(out[: len(kept)]))


def _read_to_file(reader: FileReader, paths: Sequence[Path], report: Progress | None) -> ReadFiles:
    return read_cached(paths, reader.decoder, reader.folder, report)


def _read_and_forget(reader: FileReader, paths: Sequence[Path], report: Progress | None) -> ReadFiles:
    digests, failures = decode_all(paths, reader.decoder, out=None, report=report)
    readable = [path for position, path in enumerate(paths) if position not in failures]
    return ReadFiles.of(paths, digests, failures, FilePixels(readable, reader.decoder))


_READ: dict[CacheMode, Callable[[FileReader, Sequence[Path], Progress | None], ReadFiles]] = {
    "ram": _read_to_memory,
    "mmap": _read_to_file,
    "none": _read_and_forget,
}


def shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """A callback for one part that counts files over both."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
