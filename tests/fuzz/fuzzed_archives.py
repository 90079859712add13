"""Archives of a data set, and the pin file."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from harness import Target, Violation
from hypothesis import strategies as st
from mutations import hostile_bytes, spoilt_trees

from scenarios._archives import Limits, unpack, verify
from scenarios.pins import Pins

LIMITS = Limits(max_files=30, max_bytes=100_000)
FILES = {"top/a.txt": b"alpha", "top/deep/er/b.bin": bytes(range(256)) * 8, "top/empty": b"", "c": b"x"}
NAMES = (
    *(
        "a",
        "top/a.txt",
        "top",
        "top/",
        "../x",
        "/etc/passwd",
        "a/../../x",
        "C:\\x",
        "\\\\host\\x",
        "a\\b",
        "./a",
        "a//b",
        "",
    ),
    *(
        ".",
        "..",
        "/",
        "a/",
        "A",
        "x" * 300,
        "d/" * 60 + "f",
        "d/" * 3000 + "f",
        "é",
        "e\u0301",
        "a\nb",
        "a\x1bb",
        "a\0b",
        "\udcff",
        " ",
    ),
    *("con", "a:b", "~", ".unpacking", "top/a.txt/b", "c/d"),
)
KINDS = (
    tarfile.REGTYPE,
    tarfile.AREGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
)
MODES = ("w", "w:gz", "w:bz2", "w:xz")


def tar_of(members: Any, mode: str, form: int = tarfile.PAX_FORMAT, size: int | None = None) -> bytes:
    """A tar archive of (name, data, kind); `size` is what the last header says in place of the truth."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form, errors="surrogateescape") as tar:  # type: ignore[call-overload]
        for number, (name, data, kind) in enumerate(members):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "../target"
            header.size = len(data) if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            content = io.BytesIO(data)
            if size is not None and number == len(members) - 1:
                tar.fileobj.write(_with_size(header, size, form))  # type: ignore[union-attr]
                tar.fileobj.write(data)  # type: ignore[union-attr]
            else:
                tar.addfile(header, content)
    return file.getvalue()


def _with_size(header: tarfile.TarInfo, size: int, form: int) -> bytes:
    header.size = size
    try:
        return header.tobuf(form, errors="surrogateescape")
    except ValueError:
        return b""


def zip_of(members: Any, method: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    """A zip archive of (name, data, kind)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data, kind in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
            info.external_attr = (mode or (0o120777 if kind == tarfile.SYMTYPE else 0o100644)) << 16
            info.compress_type = method
            archive.writestr(info, data)
    return file.getvalue()


_MEMBERS = st.lists(
    st.tuples(
        st.sampled_from((*FILES, *NAMES)) | st.text(max_size=6),
        st.sampled_from((*FILES.values(), b"\0" * 2000, bytes(90_000))) | st.binary(max_size=30),
        st.sampled_from((tarfile.REGTYPE,) * 8 + KINDS),
    ),
    max_size=6,
)


@st.composite
def _structured(draw: st.DrawFn) -> bytes:
    members = draw(_MEMBERS)
    try:
        if draw(st.booleans()):
            return zip_of(
                members,
                draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))),
                draw(st.sampled_from((0, 0, 0, 0o040755, 0o060000, 0o140000, 0xFFFF))),
            )
        form = draw(st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
        size = draw(st.none() | st.sampled_from((0, 10**6, 8**11 - 1, 2**63, 2**80, -1)))
        return tar_of(members, draw(st.sampled_from(MODES)), form, size)
    except (ValueError, UnicodeError, struct.error):
        return zip_of([("a", b"x", tarfile.REGTYPE)])  # what the format itself cannot hold


@cache
def valid() -> tuple[bytes, ...]:
    """Archives of every kind."""
    members = [(name, data, tarfile.REGTYPE) for name, data in FILES.items()]
    return (
        *(tar_of(members, mode) for mode in MODES),
        tar_of([("long/" * 30 + "f", b"x", tarfile.REGTYPE), *members], "w", tarfile.GNU_FORMAT),
        tar_of([("é" * 80, b"x", tarfile.REGTYPE), *members], "w", tarfile.PAX_FORMAT),
        zip_of(members),
        zip_of(members, zipfile.ZIP_STORED),
        zip_of(members, zipfile.ZIP_BZIP2),
        zip_of(members, zipfile.ZIP_LZMA),
    )


@contextmanager
def opened_archives(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Verify and unpack; nothing appears outside the target, and after an error nothing in it."""
    room = folder / "room"
    target = room / "target"
    archive = room / "data.archive"
    room.mkdir()

    def attempt(content: bytes) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        archive.write_bytes(content)
        complete = False
        try:
            verify(archive, LIMITS, advice="get it again")
            unpack([archive], target, LIMITS, advice="get it again")
            complete = True
        finally:
            if sorted(path.name for path in room.iterdir()) != ["data.archive", "target"]:
                raise Violation("something was written outside the target")
            left = list(target.iterdir())
            if not complete and left:
                raise Violation(f"left behind: {left[:3]}")
            if any(path.is_symlink() for path in target.rglob("*")):
                raise Violation("a link was unpacked")

    yield attempt


# Pins

_PINS = ({"weights/vit": "0" * 64, "dataset/cub200/CUB_200_2011.tgz": "a1" * 32}, {})


@st.composite
def _pin_files(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return json.dumps(draw(spoilt_trees(_PINS))).encode()
    return draw(
        hostile_bytes([json.dumps(pins, indent=2).encode() for pins in _PINS]) | st.sampled_from((b"[" * 100_000,))
    )


@contextmanager
def opened_pins(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Read, compare and pin."""
    path = folder / "pins.json"

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        pins = Pins(path)
        pins.get("weights/vit")
        pins.unpinned(["a", "weights/vit"])
        pins.check("new", "b" * 64, what="a file", advice="get it again")
        assert pins.get("new") == "b" * 64
        pins.check("weights/vit", "0" * 64, what="weights", advice="get them again")

    yield attempt


def _found_archives() -> tuple[bytes, ...]:
    return (
        zip_of([("", b"x", tarfile.REGTYPE)]),  # IndexError: a file without a name
        zip_of([("x" * 300, b"x", tarfile.REGTYPE)]),  # OSError: the disk holds no such name
        zip_of([("d/" * 3000 + "../f", b"x", tarfile.REGTYPE)]),  # an error of 6,000 characters
    )


def _found_bytes() -> tuple[bytes, ...]:
    whole = bytearray(zip_of([("a.txt", b"alpha", tarfile.REGTYPE)], zipfile.ZIP_STORED))
    entry = whole.index(b"PK\x01\x02")
    whole[entry + 20 : entry + 28] = struct.pack("<II", 90_000, 90_000)  # sizes in the list at the end
    return (bytes(whole),)  # EOFError without a word


def _found_pins() -> tuple[bytes, ...]:
    return b"[" * 100_000, json.dumps({"a\x85b": 3}).encode()  # RecursionError; two lines


def _named(content: bytes) -> tuple[str, ...]:
    return ("data.archive",)


TARGETS = (
    Target("archives: members", _structured(), opened_archives, _named, 60, _found_archives),
    Target("archives: bytes", st.deferred(lambda: hostile_bytes(valid())), opened_archives, _named, 70, _found_bytes),
    Target("pins", _pin_files(), opened_pins, lambda content: ("pins.json",), 40, _found_pins),
)
