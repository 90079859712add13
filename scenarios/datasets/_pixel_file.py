"""A file of decoded images that processes map into memory and share.

Layout: a first page with what it is as one line of JSON, the pixels, then a trailer in JSON with the checksums of the
pixels. The first page holds length and checksum of the trailer, so that whatever was cut off or changed is noticed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from scenarios.datasets._decoding import available_threads
from scenarios.errors import DataError

MAGIC = b"cl_prompts decoded images 1\n"
"""First bytes of every such file; the number is that of the layout."""

_PAGE = 4096
_BLOCK_BYTES = 1 << 20


class ForeignPixelFile(DataError):
    """A file of another kind lies where decoded images should."""


class DamagedPixelFile(DataError):
    """A file of decoded images that is not what was written."""


class PixelFileWriter:
    """Writes images one after another; `finish` makes the file valid.

    Args:
        stream: an empty binary file, open for writing.
        key: what the images were made of, kept in the file.
        size: side of each image in pixels.
    """

    def __init__(self, stream: IO[bytes], key: str, size: int) -> None:
        self._stream = stream
        self._key = key
        self._size = size
        self._images = 0
        self._checks: list[int] = []
        self._rest = b""
        stream.write(bytes(_PAGE))

    def append(self, images: np.ndarray) -> None:
        """Add images uint8 `(n, 3, size, size)`."""
        data = images.tobytes()
        self._stream.write(data)
        self._images += len(images)
        pending = self._rest + data
        whole = len(pending) - len(pending) % _BLOCK_BYTES
        self._checks += [zlib.crc32(pending[at : at + _BLOCK_BYTES]) for at in range(0, whole, _BLOCK_BYTES)]
        self._rest = pending[whole:]

    def finish(self, details: dict[str, Any]) -> None:
        """Add the trailer and, last of all, the first page.

        Args:
            details: JSON-ready, read back as `PixelFile.details`.
        """
        checks = [*self._checks, zlib.crc32(self._rest)] if self._rest else self._checks
        trailer = json.dumps({"checks": checks, "details": details}).encode()
        self._stream.write(trailer)
        head = {
            "key": self._key,
            "images": self._images,
            "size": self._size,
            "trailer_bytes": len(trailer),
            "trailer_crc32": zlib.crc32(trailer),
        }
        self._stream.seek(0)
        self._stream.write(_first_page(head))


class MappedPixels:
    """Images in a file, mapped into memory; a copy for another process holds the path, never the pixels.

    Args:
        path: the file.
        key: what the images must have been made of.

    Raises:
        FileNotFoundError: no such file.
        ForeignPixelFile: a file of another kind.
        DamagedPixelFile: cut off, changed in its description, or made of other images.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        with path.open("rb") as stream:
            head = _head(stream, path, key)
            images, side = head["images"], head["size"]
            length = images * 3 * side**2
            actual = stream.seek(0, 2)
            expected = _PAGE + length + head["trailer_bytes"]
            if actual != expected:
                raise DamagedPixelFile(f"{path}: {actual:,} bytes long instead of {expected:,}")
            stream.seek(_PAGE + length)
            trailer = stream.read()
        if zlib.crc32(trailer) != head["trailer_crc32"]:
            raise DamagedPixelFile(f"{path}: its list of checksums is damaged")
        content = json.loads(trailer)
        self._checks: list[int] = content["checks"]
        self.details: dict[str, Any] = content["details"]
        shape = (images, 3, side, side)
        # An empty range cannot be mapped.
        self._array = np.memmap(path, np.uint8, "r", _PAGE, shape) if images else np.empty(shape, np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels (3), height, width."""
        count, channels, height, width = self._array.shape
        return count, channels, height, width

    def read(self, indices: np.ndarray) -> np.ndarray:
        """A copy in memory of the chosen images, uint8 `(len(indices), 3, size, size)`."""
        return np.asarray(self._array)[indices]

    def verify(self) -> None:
        """Read every image once and compare with the checksums.

        Raises:
            DamagedPixelFile: a pixel is not the one written.
        """
        data = np.asarray(self._array).reshape(-1)
        blocks = (data[at : at + _BLOCK_BYTES] for at in range(0, len(data), _BLOCK_BYTES))
        with ThreadPoolExecutor(available_threads(), thread_name_prefix="verify") as pool:
            checks = list(pool.map(zlib.crc32, blocks))
        if checks != self._checks:
            raise DamagedPixelFile(f"{self._path}: its pixels are not those that were written")

    def __reduce__(self) -> tuple[Callable[[Path, str], MappedPixels], tuple[Path, str]]:
        return _reopened, (self._path, self._key)


def _reopened(path: Path, key: str) -> MappedPixels:
    """The images in a worker process, which the first process has verified."""
    try:
        return MappedPixels(path, key)
    except OSError as error:
        raise DataError(f"{path}: decoded images of this run cannot be read ({error.strerror}); restart it") from error


def _first_page(head: dict[str, Any]) -> bytes:
    return (MAGIC + json.dumps(head).encode()).ljust(_PAGE)


def _head(stream: IO[bytes], path: Path, key: str) -> dict[str, Any]:
    """The description in the first page."""
    page = stream.read(_PAGE)
    if len(page) < _PAGE and MAGIC.startswith(page[: len(MAGIC)]):
        raise DamagedPixelFile(f"{path}: only {len(page)} bytes long")
    if not page.startswith(MAGIC):
        raise ForeignPixelFile(f"{path}: not a file of decoded images of this project and version")
    try:
        head: dict[str, Any] = json.loads(page[len(MAGIC) :])
        fields = [head[name] for name in ("images", "size", "trailer_bytes", "trailer_crc32")]
    except (ValueError, KeyError, TypeError):
        raise DamagedPixelFile(f"{path}: its first page is damaged") from None
    if page != _first_page(head) or not all(isinstance(field, int) and field >= 0 for field in fields):
        raise DamagedPixelFile(f"{path}: its first page is damaged")
    if head.get("key") != key:
        raise DamagedPixelFile(f"{path}: made of other images or by other software")
    return head
