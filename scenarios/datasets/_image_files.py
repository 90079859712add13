"""What data sets of image files share: how files become arrays, and whether these stay in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from scenarios.datasets._decoding import Decoder, FilePixels, decode_all
from scenarios.datasets.base import ArrayPixels, DatasetSettings, PixelSource, Progress


class ImageFilesSettings(DatasetSettings):
    """Settings of a data set whose images are decoded from files."""

    size: int | None = Field(
        None, ge=1, le=4096, description="side in pixels to which images are decoded; null: what the backbone wants"
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bicubic", description="filter that resizes the shorter side; the centre is cut out"
    )
    cache_mb: int = Field(
        2048, ge=0, description="decoded images stay in memory up to so many MB in all, else they are decoded anew"
    )


def plan_decoding(settings: ImageFilesSettings, image_size: int, images: int) -> tuple[Decoder, bool, list[str]]:
    """How to decode, whether all decoded images may stay in memory, and a note where they may not.

    Args:
        settings: size, interpolation and memory allowed.
        image_size: side in pixels where `settings.size` is None.
        images: number of images of both parts.
    """
    decoder = Decoder(settings.size or image_size, settings.interpolation)
    megabytes = images * 3 * decoder.size**2 / 1e6
    if megabytes <= settings.cache_mb:
        return decoder, True, []
    note = (
        f"decoded images need {megabytes:,.0f} MB, more than dataset.cache_mb={settings.cache_mb}: "
        "they are decoded anew at each use"
    )
    return decoder, False, [note]


@dataclass(frozen=True)
class ReadFiles:
    """What came of decoding files once.

    Attributes:
        kept: int64 positions of the readable files.
        digests: sha256 of the bytes of each readable file.
        pixels: of the readable files.
        skipped: the others, as `path: reason`.
    """

    kept: np.ndarray
    digests: list[str]
    pixels: PixelSource
    skipped: list[str]


def read_files(paths: Sequence[Path], decoder: Decoder, *, cached: bool, report: Progress | None) -> ReadFiles:
    """Decode every file once, and keep the pixels in memory where `cached`.

    Args:
        paths: the files.
        decoder: how.
        cached: whether pixels stay in memory; else they are decoded anew at each access.
        report: called with (files done, files in all).
    """
    out = np.empty((len(paths), 3, decoder.size, decoder.size), dtype=np.uint8) if cached else None
    digests, failures = decode_all(paths, decoder, out=out, report=report)
    kept = np.array([number for number in range(len(paths)) if number not in failures], dtype=np.int64)
    pixels: PixelSource
    if out is None:
        pixels = FilePixels([paths[number] for number in kept], decoder)
    else:
        pixels = ArrayPixels(out[kept] if failures else out)
    skipped = [f"{paths[number]}: {reason}" for number, reason in failures.items()]
    return ReadFiles(kept, [digests[number] for number in kept], pixels, skipped)


def shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """A callback for one part that counts files over both."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
