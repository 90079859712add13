"""Unpacking of archives that nobody vouches for: nothing is written outside the target, nothing without an end.

Tar files, plain or packed by gzip, bzip2 or xz, and zip files. Only plain files and folders are taken; every byte is
read and compared with the checksums that the format has, so that a truncated archive is found. What the archive is
called does not matter, its first bytes do.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from scenarios._looks import looks_like
from scenarios.errors import DataError

_BLOCK = 1 << 20
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    UnicodeError,
    NotImplementedError,
)
_ERRORS_OF_READERS = (None, errno.EINVAL)
"""bz2 raises a bare `OSError` for bad bytes, zipfile looks for its list before the start of what was cut off."""

_ERRORS_OF_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


@dataclass(frozen=True)
class Limits:
    """What an archive may at most become on disk.

    Attributes:
        max_files: files and folders.
        max_bytes: bytes of all files together.
    """

    max_files: int
    max_bytes: int


class _Refused(Exception):
    """Why an archive is not unpacked, in words that follow its name."""


@dataclass(frozen=True)
class _Member:
    """One file of an archive, or a folder, which has nothing to read."""

    parts: tuple[str, ...]
    source: IO[bytes] | None


def verify(archive: Path, limits: Limits, *, advice: str) -> None:
    """Read an archive to its end as `unpack` does, writing nothing.

    Args:
        archive: the file.
        limits: what it may become.
        advice: what to do where it is refused, an order.

    Raises:
        DataError: what `unpack` refuses.
    """
    _walk(archive, limits, advice, lambda member: None if member.source is None else _Sink())


def unpack(archives: Sequence[Path], folder: Path, limits: Limits, *, advice: str) -> None:
    """Unpack archives into a folder, which has all of them afterwards, or after an error nothing new.

    They go to a temporary folder inside `folder` first, where a later archive replaces files of an earlier one. What
    they have at their top is then renamed; where `folder` has such a folder already, its files are replaced one by one.

    Args:
        archives: the files.
        folder: an existing folder on the disk where the content stays.
        limits: what each may become.
        advice: what to do where one is refused, an order.

    Raises:
        DataError: no archive, damaged or truncated, a path that leaves the folder, a link or device, too much.
        OSError: no space, no permission.
    """
    temporary = folder / f".unpacking-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    together = temporary / "together"
    together.mkdir(parents=True)
    try:
        for number, archive in enumerate(archives):
            alone = temporary / str(number)
            alone.mkdir()
            _walk(archive, limits, advice, partial(_open_target, alone))
            _move_into(alone, together)
        _move_into(together, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Sink:
    """Where bytes go that are only counted."""

    def write(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        """Nothing to close."""


def _walk(archive: Path, limits: Limits, advice: str, target: Callable[[_Member], Any]) -> None:
    """Read every member; `target` gives what the bytes of a file are written to, None for a folder."""
    try:
        seen: set[tuple[str, ...]] = set()
        left = limits.max_bytes
        for count, member in enumerate(_members(archive, limits), start=1):
            if count > limits.max_files:
                raise _Refused(f"holds more than {limits.max_files:,} files, which this data set has not")
            output = target(member)
            if member.source is None or output is None:
                continue
            if member.parts in seen:
                raise _Refused(f"holds {'/'.join(member.parts)!r} twice")
            seen.add(member.parts)
            with closing(output):
                while block := member.source.read(_BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise _too_large(limits)
                    output.write(block)
    except _Refused as error:
        raise DataError(f"{archive} {error}; {advice}") from error
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _ERRORS_OF_READERS:  # the disk's
            raise
        reason = str(error) or "it ends too early"
        raise DataError(f"{archive} is damaged or truncated ({reason}); {advice}") from error


def _open_target(folder: Path, member: _Member) -> IO[bytes] | None:
    path = folder.joinpath(*member.parts)
    try:
        if member.source is None:
            path.mkdir(parents=True, exist_ok=True)
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _Refused(f"holds {'/'.join(member.parts)!r} twice, once as a folder or in another case") from None
    except OSError as error:
        if error.errno not in _ERRORS_OF_NAMES:  # the disk's
            raise
        raise _Refused(f"holds {'/'.join(member.parts)!r}, a name that this disk cannot hold") from error


def _move_into(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        place = folder / path.name
        if path.is_dir() and place.is_dir():
            _move_into(path, place)
        else:
            os.replace(path, place)


def _members(archive: Path, limits: Limits) -> Iterator[_Member]:
    with archive.open("rb") as file:
        head = file.read(512)
    kind = looks_like(head)
    if kind not in _READERS:
        raise _Refused(f"is no archive, it looks like {kind}")
    return _READERS[kind](archive, limits)


def _safe_parts(name: str) -> tuple[str, ...]:
    """Components of a member's path."""
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in windows.parts or "\0" in name:
        raise _Refused(f"holds {name!r}, which leads out of the folder it is unpacked to")
    if not path.parts:
        raise _Refused("holds a file without a name")
    return path.parts


def _too_large(limits: Limits) -> _Refused:
    return _Refused(f"unpacks to more than {limits.max_bytes / 1e6:,.0f} MB, which this data set has not")


class _Bounded:
    """A stream that refuses to give more than so many bytes: nothing else bounds the headers of a packed tar file."""

    def __init__(self, stream: Any, limit: int, limits: Limits) -> None:
        self._stream, self._left, self._limits = stream, limit, limits

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._limits)
        return data


def _tar_members(open_stream: Callable[[Path], Any], archive: Path, limits: Limits) -> Iterator[_Member]:
    end_seen = False

    class Header(tarfile.TarInfo):
        """Notices the block of zeros that ends an archive: tarfile takes an archive that stops early for complete."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
            nonlocal end_seen
            end_seen = len(buf) == tarfile.BLOCKSIZE and not any(buf)
            return super().frombuf(buf, encoding, errors)

    with closing(open_stream(archive)) as stream:
        bounded = _Bounded(stream, limits.max_bytes + 4 * tarfile.BLOCKSIZE * (limits.max_files + 10), limits)
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=Header) as tar:  # type: ignore[call-overload]
            for header in tar:
                if not (header.isreg() or header.isdir()) or header.issparse():
                    raise _Refused(f"holds {header.name!r}, which is a link, a device or the like")
                parts = _safe_parts(header.name)
                yield _Member(parts, None if header.isdir() else tar.extractfile(header))
        if not end_seen:
            raise tarfile.ReadError("it stops without an end mark")
        while bounded.read(_BLOCK):  # the checksum of gzip stands behind the last byte
            pass


def _zip_members(archive: Path, limits: Limits) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _Refused(f"holds {info.filename!r}, which is a link, a device or the like")
            if info.flag_bits & 1:
                raise _Refused(f"holds {info.filename!r}, which is encrypted")
            parts = _safe_parts(info.filename)
            if info.filename.endswith("/"):
                yield _Member(parts, None)
                continue
            try:
                with file.open(info) as source:
                    yield _Member(parts, source)
            except NotImplementedError as error:
                raise _Refused(f"holds {info.filename!r}, which is packed in an unknown way ({error})") from error


_READERS: dict[str, Callable[[Path, Limits], Iterator[_Member]]] = {
    "a tar archive": lambda archive, limits: _tar_members(lambda path: path.open("rb"), archive, limits),
    "a gzip file": lambda archive, limits: _tar_members(gzip.open, archive, limits),
    "a bzip2 file": lambda archive, limits: _tar_members(bz2.open, archive, limits),
    "an xz file": lambda archive, limits: _tar_members(lzma.open, archive, limits),
    "a zip archive": _zip_members,
}
