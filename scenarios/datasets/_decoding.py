"""Image files to arrays of one size, in parallel, with a reason in plain words for each file that cannot be read."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scenarios.datasets.base import PixelSource, Progress
from scenarios.errors import DataError, as_line

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_CHUNK = 32
"""Files a thread takes at once."""

_DEEP_MODES = ("I", "F")
"""Pillow modes with more than 8 bits a channel, whose conversion to RGB would cut off instead of scale."""


_LONGEST = 16
"""Images longer than so many times their width lose their far ends, which lie outside the central square anyway."""


_LARGEST_SIDE = 65_535
"""What a JPEG can have at most; a file of a hundred bytes may promise millions of rows, whose reading takes minutes."""


class UnreadableImage(Exception):
    """Why one file is no usable image: a phrase in plain words."""


@dataclass(frozen=True)
class Decoder:
    """Decodes one file to RGB: shorter side resized to `size`, central square cut out.

    The same pixels as torchvision's `Resize(size)` and `CenterCrop(size)` on a Pillow image. The orientation that a
    camera notes in the file is applied, transparency is dropped, of an animation the first picture is taken.

    Attributes:
        size: side of the result in pixels.
        interpolation: Pillow filter, `bilinear`, `bicubic` or `lanczos`, antialiased when shrinking.
    """

    size: int
    interpolation: str

    def __call__(self, path: Path) -> tuple[np.ndarray, str]:
        """Pixels uint8 `(3, size, size)` and the sha256 of the file's bytes.

        Raises:
            UnreadableImage: missing, not allowed, not an image, damaged.
        """
        data = _read(path)
        return self.pixels(data), hashlib.sha256(data).hexdigest()

    def pixels(self, data: bytes) -> np.ndarray:
        """Pixels uint8 `(3, size, size)` of the bytes of a file.

        Raises:
            UnreadableImage: not an image, damaged.
        """
        return np.asarray(self._square(data)).transpose(2, 0, 1)

    def _square(self, data: bytes) -> PillowImage:
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data)) as opened:
                if opened.mode.split(";")[0] in _DEEP_MODES:
                    raise UnreadableImage(f"more than 8 bits a channel (mode {opened.mode}), convert it to 8 bits")
                if max(opened.size) > _LARGEST_SIDE:
                    raise UnreadableImage(
                        f"a side of {max(opened.size):,} pixels, too many for an honest image, shrink it"
                    )
                opened.load()
                upright = ImageOps.exif_transpose(opened)
                if upright.mode == "P":  # a palette may hold transparency in a form that only RGBA understands
                    upright = upright.convert("RGBA")
                image = upright.convert("RGB")
        except (UnreadableImage, MemoryError):
            raise
        except UnidentifiedImageError:
            raise UnreadableImage("not an image") from None
        except Image.DecompressionBombError:
            raise UnreadableImage("too many pixels for an honest image, shrink it") from None
        except Exception as error:  # Pillow's readers raise many types on damaged bytes
            raise UnreadableImage(f"damaged image ({' '.join(str(error).split())})") from error
        return self._resize_and_crop(image)

    def _resize_and_crop(self, image: PillowImage) -> PillowImage:
        from PIL import Image

        image = _without_far_ends(image)
        shorter, longer = sorted(image.size)
        resized = self.size * longer // shorter
        shape = (resized, self.size) if image.width > image.height else (self.size, resized)
        large = image.resize(shape, Image.Resampling[self.interpolation.upper()])
        left, top = (round((length - self.size) / 2) for length in shape)
        return large.crop((left, top, left + self.size, top + self.size))


def _without_far_ends(image: PillowImage) -> PillowImage:
    """Cut a strip to `_LONGEST` times its width, or one of 1 x 60,000 pixels would be resized to gigabytes."""
    width, height = image.size
    kept_width, kept_height = min(width, _LONGEST * height), min(height, _LONGEST * width)
    if image.size == (kept_width, kept_height):
        return image
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return image.crop((left, top, left + kept_width, top + kept_height))


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise UnreadableImage("not a file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except PermissionError:
        raise UnreadableImage("no permission to read it") from None
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not data:
        raise UnreadableImage("empty file")
    return data


def decode_all(
    paths: Sequence[Path], decoder: Decoder, *, out: np.ndarray | None, report: Progress | None = None
) -> tuple[list[str], dict[int, str]]:
    """Read and decode every file once, on all processor cores.

    Args:
        paths: the files.
        decoder: how.
        out: uint8 `(files, 3, size, size)` that gets the pixels; None only checks and hashes.
        report: called with (files done, files in all) from the calling thread.

    Returns:
        The sha256 of each file's bytes ("" where there were none to read), and the reason for each unreadable position.
    """
    digests = [""] * len(paths)

    def work(position: int) -> None:
        data = _read(paths[position])
        digests[position] = hashlib.sha256(data).hexdigest()
        pixels = decoder.pixels(data)
        if out is not None:
            out[position] = pixels

    return digests, _for_each(len(paths), work, report)


def digest_all(paths: Sequence[Path], *, report: Progress | None = None) -> tuple[list[str], dict[int, str]]:
    """What `decode_all` returns, decoding nothing: a file that is no image counts as readable.

    Args:
        paths: the files.
        report: called with (files done, files in all) from the calling thread.
    """
    digests = [""] * len(paths)

    def work(position: int) -> None:
        digests[position] = hashlib.sha256(_read(paths[position])).hexdigest()

    return digests, _for_each(len(paths), work, report)


def _for_each(count: int, work: Callable[[int], None], report: Progress | None) -> dict[int, str]:
    """Do the work for each position in threads; the reasons where it raised `UnreadableImage`, by position."""
    failures: dict[int, str] = {}

    def chunk(start: int) -> int:
        stop = min(start + _CHUNK, count)
        for position in range(start, stop):
            try:
                work(position)
            except UnreadableImage as error:
                failures[position] = str(error)
        return stop - start

    pool = ThreadPoolExecutor(available_threads(), thread_name_prefix="decode")
    done = 0
    try:
        for finished in pool.map(chunk, range(0, count, _CHUNK)):
            done += finished
            if report is not None:
                report(done, count)
    finally:  # after Ctrl-C, too: drop what waits
        pool.shutdown(wait=True, cancel_futures=True)
    return dict(sorted(failures.items()))


@dataclass(frozen=True)
class ReadFiles:
    """What came of reading files once.

    Attributes:
        kept: int64 positions of the readable files.
        digests: sha256 of the bytes of each readable file.
        pixels: of the readable files.
        skipped: the others, as `path: reason`.
        notes: what a reader of the results should know, one sentence each.
    """

    kept: np.ndarray
    digests: list[str]
    pixels: PixelSource
    skipped: list[str]
    notes: list[str]

    @classmethod
    def of(
        cls,
        paths: Sequence[Path],
        digests: Sequence[str],
        failures: dict[int, str],
        pixels: PixelSource,
        notes: Sequence[str] = (),
    ) -> ReadFiles:
        """From the results of `decode_all` and the pixels of the readable files."""
        kept = np.array([position for position in range(len(paths)) if position not in failures], dtype=np.int64)
        skipped = [as_line(f"{paths[position]}: {reason}") for position, reason in sorted(failures.items())]
        return cls(kept, [digests[position] for position in kept], pixels, skipped, list(notes))


class FilePixels:
    """Pixels decoded anew at each access.

    Args:
        paths: the files.
        decoder: how.
        checked: whether every file was decoded once before.
    """

    def __init__(self, paths: Sequence[Path], decoder: Decoder, *, checked: bool = True) -> None:
        self._paths = tuple(paths)
        self._decoder = decoder
        self._checked = checked

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels (3), height, width."""
        return len(self._paths), 3, self._decoder.size, self._decoder.size

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 `(len(indices), 3, size, size)`.

        Raises:
            DataError: a file cannot be read, or no longer.
        """
        paths = [self._paths[int(index)] for index in indices]
        out = np.empty((len(paths), *self.shape[1:]), dtype=np.uint8)
        _, failures = decode_all(paths, self._decoder, out=out)
        advice = "it was readable when the run started, restore it" if self._checked else "restore it"
        for position, reason in failures.items():
            raise DataError(f"{paths[position]}: {reason}; {advice}")
        return out


def available_threads() -> int:
    """Threads that read files at once: as many as this process may use processor cores, at most 32."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, available)
