"""One file over HTTP into a part file that a later attempt goes on with.

Rules: RFC 9110, sections 13.1.5 (If-Range) and 14 (range requests). Beside `<name>.part` lies `<name>.part.json`: the
address, the validator and the length that the part belongs to. A part without them, or of which the server says
something else, is thrown away.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 10.0
"""How long a server may take to answer to a connection."""

STALL_SECONDS = 30.0
"""A download that receives less than `STALL_BYTES` in so long is given up: better one clear line than a run that seems
to hang."""

STALL_BYTES = 1024

_ATTEMPTS_WITHOUT_GAIN = 2
_BLOCK = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all or None where the server does not say)."""


class TransferError(Exception):
    """Why a file could not be received, in words."""


class _Interrupted(Exception):
    """The connection broke or stalled; another attempt may go on."""


@dataclass(frozen=True)
class _Origin:
    """What a part file is a part of."""

    url: str
    validator: str | None
    total: int | None


def transfer(url: str, part: Path, *, expected: int | None, progress: Progress, reserve: Callable[[int], None]) -> None:
    """Receive a file into `part`, going on where an earlier attempt ended.

    A connection that breaks is opened again as long as attempts bring at least `STALL_BYTES`: twice less ends it.

    Args:
        url: address, http or https.
        part: where the bytes go; complete when the function returns.
        expected: length in bytes; None: what the server says.
        progress: called after each block.
        reserve: called with the bytes still to come before the first one is received; may raise.

    Raises:
        TransferError: the server cannot be reached, refuses, stalls, or gives a file of another length.
        OSError: the part cannot be written.
    """
    fruitless, most = 0, 0
    while not _complete(url, part, expected):
        try:
            _attempt(url, part, expected, progress, reserve)
            break
        except _Interrupted as error:
            fruitless = 0 if _size(part) - most >= STALL_BYTES else fruitless + 1
            most = max(most, _size(part))
            if fruitless >= _ATTEMPTS_WITHOUT_GAIN:
                raise TransferError(f"{error}; {_size(part):,} bytes are kept in {part}") from error
    _origin_path(part).unlink(missing_ok=True)


def discard(part: Path) -> None:
    """Throw a part and what is noted about it away."""
    part.unlink(missing_ok=True)
    _origin_path(part).unlink(missing_ok=True)


def _attempt(url: str, part: Path, expected: int | None, progress: Progress, reserve: Callable[[int], None]) -> None:
    have = _resumable(url, part, expected)
    with _open(url, part, have) as response:
        have, total = _agree(response, part, have)
        if expected is not None and total not in (None, expected):
            raise TransferError(f"the server offers {total:,} bytes, the official file has {expected:,}")
        total = total if expected is None else expected
        if have == 0:
            _note(part, _Origin(url, _validator(response), total))
        reserve((total or have) - have)
        _receive(response, part, have, total, progress)


def _resumable(url: str, part: Path, expected: int | None) -> int:
    """Bytes of the part that can be kept; one of another origin is thrown away."""
    origin = _noted(part)
    size = _size(part)
    limit = None if origin is None else origin.total or expected
    if origin is None or origin.url != url or origin.validator is None or limit is None or size > limit:
        discard(part)
        return 0
    return size


def _complete(url: str, part: Path, expected: int | None) -> bool:
    """Whether an earlier attempt received everything and only did not come to rename it."""
    origin = _noted(part)
    total = None if origin is None or origin.url != url else origin.total or expected
    return total is not None and _resumable(url, part, expected) == total


def _open(url: str, part: Path, have: int) -> http.client.HTTPResponse:
    headers = {"Accept-Encoding": "identity", "User-Agent": "cl_prompts"}
    origin = _noted(part)
    if have and origin is not None and origin.validator is not None:
        headers |= {"Range": f"bytes={have}-", "If-Range": origin.validator}
    opener = urllib.request.build_opener(_Http, _Https)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=CONNECT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            discard(part)
            raise _Interrupted("the server does not know the part that was received before") from error
        raise TransferError(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        # A name that does not exist or a port that refuses will do so a moment later, too.
        raise TransferError(str(error.reason)) from error
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _agree(response: http.client.HTTPResponse, part: Path, have: int) -> tuple[int, int | None]:
    """Bytes to keep and length of the whole file, as the server answers to the request for the rest."""
    length = response.headers.get("Content-Length")
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the whole file, from its start
        part.unlink(missing_ok=True)
        return 0, None if length is None else int(length)
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    origin = _noted(part)
    if match is None or int(match[1]) != have or origin is None or origin.total not in (None, int(match[2])):
        discard(part)
        raise _Interrupted("the server sends another part than was asked for")
    return have, int(match[2])


def _receive(response: http.client.HTTPResponse, part: Path, have: int, total: int | None, progress: Progress) -> None:
    window_start, window_bytes = time.monotonic(), 0
    with part.open("ab") as file:
        progress(have, total)
        while total is None or have < total:
            try:
                block = response.read1(_BLOCK)
            except (http.client.HTTPException, OSError) as error:
                raise _Interrupted(str(error) or type(error).__name__) from error
            if not block:
                break
            file.write(block)
            have += len(block)
            window_bytes += len(block)
            progress(have, total)
            if window_bytes >= STALL_BYTES:
                window_start, window_bytes = time.monotonic(), 0
            elif time.monotonic() - window_start > STALL_SECONDS:
                raise _Interrupted(f"less than {STALL_BYTES} bytes came in {STALL_SECONDS:g} s")
    if total is not None and have != total:
        raise _Interrupted(f"the connection ended after {have:,} of {total:,} bytes")


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What a later request for the rest names; a weak tag does not promise the same bytes."""
    tag = response.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


def _origin_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note(part: Path, origin: _Origin) -> None:
    _origin_path(part).write_text(json.dumps(asdict(origin)), encoding="utf-8")


def _noted(part: Path) -> _Origin | None:
    with suppress(OSError, ValueError, TypeError):
        return _Origin(**json.loads(_origin_path(part).read_text(encoding="utf-8")))
    return None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _patient(kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
    """A connection that is made within `CONNECT_SECONDS` and may then be silent for `STALL_SECONDS`."""

    class Patient(kind):  # type: ignore[valid-type, misc]
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(STALL_SECONDS)

    return Patient


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_patient(http.client.HTTPConnection), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_patient(http.client.HTTPSConnection), req)
