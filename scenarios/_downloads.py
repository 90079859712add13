"""Files from the network, fetched once and compared with what is known of them: a size, a hash, or a pin.

A file that is there is read and compared, without any connection. One that is not is received into `<name>.part`,
compared and renamed. Of two processes that want the same file one waits for the other.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scenarios._locks import locked
from scenarios._looks import looks_like
from scenarios._transfer import Progress, TransferError, discard, transfer
from scenarios.errors import DataError
from scenarios.pins import Pins

SPARE_BYTES = 50_000_000
"""Space left free on the disk."""

_REPORT_SECONDS = 10.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """An official file and what is known of it.

    Attributes:
        url: where it is; None where no address is certain, so that a user has to put the file there.
        name: its name on disk.
        bytes: length.
        sha256: lower-case hexadecimal digits; None: not known.
        md5: the same; where neither is known, the sha256 seen first is pinned.
    """

    url: str | None
    name: str
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def hash_words(self) -> str:
        """The strongest known hash in words."""
        if self.sha256 is not None:
            return f"sha256 {self.sha256}"
        return "no official hash is known, the first one seen is pinned" if self.md5 is None else f"md5 {self.md5}"

    @property
    def words(self) -> str:
        """Name, size and hash."""
        size = "" if self.bytes is None else f"{self.bytes:,} bytes, "
        return f"{self.name} ({size}{self.hash_words})"


@dataclass(frozen=True)
class Wish:
    """Who wants a file, and what to tell the user about it.

    Attributes:
        owner: word for messages, such as `dataset=cifar10`.
        pin_key: key of the pin where no hash is known.
        by_hand: what to do on a machine without network, an order.
        room: bytes needed beside the file itself, such as those of its content unpacked.
        accept: looks into a file of unknown hash before that is pinned; raises `DataError` for a bad one.
    """

    owner: str
    pin_key: str
    by_hand: str
    room: int = 0
    accept: Callable[[Path], None] | None = None


def fetch(
    file: RemoteFile, folder: Path, wish: Wish, *, pins: Pins | None = None, progress: Progress | None = None
) -> Path:
    """The verified file in `folder`, downloaded where it is missing.

    Args:
        file: which.
        folder: where it is or comes to; made where it is missing.
        wish: who wants it.
        pins: None: those of the user.
        progress: called with (bytes done, bytes in all or None); None: a line in the log every few seconds.

    Raises:
        DataError: not reachable, another size or hash, too little space, not writable, a file of another kind.
    """
    place = folder / file.name
    pins = Pins() if pins is None else pins
    try:
        if place.is_file():
            return _verified(place, place, file, wish, pins)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{file.name}.lock", purpose=f"downloading {place}"):
            if not place.is_file():  # another process may have fetched it meanwhile
                _download(place, file, wish, pins, progress or _LogLines(place))
                return place
        return _verified(place, place, file, wish, pins)
    except OSError as error:
        raise cannot_use(wish.owner, folder, error) from error


def cannot_use(owner: str, folder: Path, error: OSError) -> DataError:
    """The one line for a folder of data that cannot be read or written."""
    return DataError(
        f"{owner}: {error.filename or folder}: {error.strerror or error}; "
        "set dataset.root to a folder that can be read and written"
    )


def require_space(owner: str, folder: Path, needed: int) -> None:
    """Refuse a download or an unpacking that would fill the disk.

    Raises:
        DataError: less than `needed` and `SPARE_BYTES` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise DataError(
            f"{owner} needs {(needed + SPARE_BYTES) / 1e6:,.0f} MB, {folder} has {free / 1e6:,.0f} MB free; "
            "free space there, or set dataset.root to a folder on another disk"
        )


def _download(place: Path, file: RemoteFile, wish: Wish, pins: Pins, progress: Progress) -> None:
    part = place.with_name(place.name + ".part")
    if file.url is None:
        raise DataError(f"{wish.owner}: {place} is missing and no address of it is certain; {wish.by_hand}")
    if file.bytes is not None:
        require_space(wish.owner, place.parent, file.bytes + wish.room)
    size = "" if file.bytes is None else f" ({file.bytes / 1e6:,.1f} MB)"
    _LOG.warning("%s: downloading %s%s to %s", wish.owner, file.url, size, place)
    try:
        transfer(
            file.url,
            part,
            expected=file.bytes,
            progress=progress,
            reserve=lambda missing: require_space(wish.owner, place.parent, missing + wish.room),
        )
    except TransferError as error:
        raise DataError(f"{wish.owner}: {file.url} could not be downloaded ({error}); {wish.by_hand}") from error
    try:
        _verified(part, place, file, wish, pins)
    except DataError:
        discard(part)  # nothing can go on from it
        raise
    part.replace(place)


def _verified(path: Path, place: Path, file: RemoteFile, wish: Wish, pins: Pins) -> Path:
    """`path`, if its content is that of the official file."""
    found = measure(path)
    downloaded = path != place
    advice = wish.by_hand if downloaded else f"delete {place}, which is then fetched again, or {wish.by_hand}"
    where = f"{wish.owner}: what came from {file.url}" if downloaded else f"{wish.owner}: {place}"
    wrong = found.differences(file)
    if wrong:
        raise DataError(f"{where} is not the official file ({wrong}, it looks like {found.kind}); {advice}")
    if file.sha256 is None and file.md5 is None:
        if wish.accept is not None and pins.get(wish.pin_key) is None:
            wish.accept(path)
        pins.check(wish.pin_key, found.sha256, what=where, advice=advice)
    return path


@dataclass(frozen=True)
class Measured:
    """What a file on disk is.

    Attributes:
        bytes: length.
        md5: lower-case hexadecimal digits.
        sha256: the same.
        kind: in words, by its first bytes.
    """

    bytes: int
    md5: str
    sha256: str
    kind: str

    def differences(self, file: RemoteFile) -> str:
        """What differs from the record, in words; empty where nothing does."""
        pairs = {
            "bytes": (self.bytes, file.bytes),
            "sha256": (self.sha256, file.sha256),
            "md5": (self.md5, file.md5),
        }
        wrong = [f"{word} {found}, not {known}" for word, (found, known) in pairs.items() if known not in (None, found)]
        return "; ".join(wrong)


def measure(path: Path) -> Measured:
    """Length and hashes of a file, from reading it once.

    Raises:
        OSError: it cannot be read.
    """
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    head, length = b"", 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            head = head or block[:512]
            length += len(block)
            md5.update(block)
            sha256.update(block)
    return Measured(length, md5.hexdigest(), sha256.hexdigest(), looks_like(head))


class _LogLines:
    """A line in the log every few seconds, which reads well in a terminal and in a file."""

    def __init__(self, place: Path) -> None:
        self._name = place.name
        self._last = self._start = time.monotonic()
        self._before: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._before is None:
            self._before = done
        if now - self._last < _REPORT_SECONDS:
            return
        self._last = now
        rate = (done - self._before) / (now - self._start) / 1e6
        of = "" if total is None else f" of {total / 1e6:,.0f}"
        _LOG.warning("%s: %s%s MB, %.1f MB/s", self._name, f"{done / 1e6:,.0f}", of, rate)
