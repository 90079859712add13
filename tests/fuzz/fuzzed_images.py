"""Folders of images as anybody has them: odd names, damaged files, links in circles, folders called like images."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from harness import Target
from hypothesis import strategies as st
from mutations import hostile_bytes
from PIL import Image

from cl_prompts.runs.image_inputs import ImageInput
from scenarios.datasets import check_dataset, load_dataset, read_dataset_settings
from scenarios.datasets._decoding import Decoder, UnreadableImage

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_MODES = ("RGB", "L", "P", "RGBA", "1", "LA", "CMYK", "I;16", "F")


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (7, 5), **options: Any) -> bytes | None:
    """A small picture as a file; None where the format has no such mode."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    file = io.BytesIO()
    with suppress(OSError, ValueError, KeyError):
        (picture.convert("L").convert(mode) if mode in ("I;16", "F") else picture.convert(mode)).save(
            file, form, **options
        )
        return file.getvalue()
    return None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


@cache
def pictures() -> tuple[bytes, ...]:
    """Images of many formats and modes."""
    found = [encoded(form, mode) for form in _FORMATS for mode in _MODES]
    exif = Image.Exif()
    exif[0x0112] = 6
    found += [encoded("JPEG", exif=exif.tobytes()), encoded("PNG", size=(1, 60)), encoded("PNG", size=(60, 1))]
    found += [encoded("JPEG", progressive=True), encoded("TIFF", compression="tiff_lzw"), encoded("JPEG", "CMYK")]
    return tuple(data for data in found if data is not None)


_STRANGE = (
    *(
        b"",
        b"text",
        b"<html></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
    ),
    *(
        png_of(65535, 65535, b""),
        png_of(2**31 - 1, 2**31 - 1, b""),
        png_of(0, 0, b""),
        png_of(5, 5, zlib.compress(bytes(10**6))),
    ),
    *(
        png_of(12000, 12000, b"x"),
        png_of(4, 4, zlib.compress(bytes(200)), 16),
        b"GIF89a" + b"\xff" * 20,
        b"II*\0" + b"\xff" * 30,
    ),
    *(
        b"%PDF-1.4",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"P6 99999999 99999999 255\n",
    ),
    *(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\0\0\1\0\1\0\0\0",
        b"8BPS\0\1" + b"\0" * 30,
    ),
)


def picture_bytes() -> st.SearchStrategy[bytes]:
    """Content of an image file, mostly sound."""
    sound = st.sampled_from(pictures())
    return st.one_of(sound, sound, hostile_bytes(pictures()), st.sampled_from(_STRANGE))


@contextmanager
def opened_pictures(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Decode one file."""
    path = folder / "picture.bin"
    decoder = Decoder(8, "bicubic")

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        try:
            pixels, _ = decoder(path)
            assert pixels.shape == (3, 8, 8)
        except UnreadableImage as error:
            # What a data set says about such a file.
            from cl_prompts.errors import DataError

            raise DataError(f"{path}: {error}") from error

    yield attempt


# Folders

_NAMES = st.one_of(
    st.sampled_from(
        ("a.png", "b.jpg", "c.JPEG", "d.gif", "1.png", "2.png", "x.txt", "README", "a.png", "b.png", "c.png")
    ),
    st.sampled_from(
        (
            *(
                "a\nb.png",
                "é.png",
                "e\u0301.png",
                "\udcff.png",
                " .png",
                "a b.png",
                "-x.png",
                ".hidden.png",
                "..png",
                "Thumbs.db",
            ),
            *(
                "x" * 250 + ".png",
                "甲.png",
                "\u202egnp.exe",
                "*.png",
                "?",
                "a.png ",
                "con.png",
                "a:b.png",
                "~.png",
                "${x}.png",
            ),
            *(
                ".DS_Store",
                "__MACOSX",
                "a.csv",
                "a.png.part",
                "\x1b[31m.png",
                "'.png",
                '".png',
                "a;b.png",
                "a,b.png",
                "%s.png",
            ),
        )
    ),
)
_CLASSES = st.sampled_from(
    (
        *(
            "cat",
            "dog",
            "cat",
            "dog",
            "bee",
            "é",
            "e\u0301",
            "a\nb",
            "\udcff",
            "x.png",
            "a.jpg",
            " ",
            "-",
            "0",
            "10",
            "2",
            "x" * 250,
        ),
        *("train", "test", "Train", "val", "dog;cat", "甲", ".hidden", "__MACOSX", "\u202e", "${x}", "'", "..."),
    )
)
_PARTS = st.sampled_from((("train",), ("test",), ("train",), ("test",), (), ("val",)))
_KINDS = st.sampled_from(
    ("file",) * 14 + ("folder", "to itself", "to above", "to nothing", "to a folder", "to elsewhere", "pipe", "closed")
)


@st.composite
def _folders(draw: st.DrawFn) -> tuple[list[tuple[tuple[str, ...], str, bytes]], dict[str, Any], bool]:
    has_parts = draw(st.booleans())
    classes = draw(st.lists(_CLASSES, min_size=1, max_size=3))
    entries = []
    if draw(st.integers(0, 3)):  # something that would do, beneath the oddities
        sound = pictures()[0]
        for part in (("train",), ("test",)) if has_parts else ((),):
            for name in classes:
                entries += [((*part, name, f"s{number}.png"), "file", sound) for number in range(2)]
    for _ in range(draw(st.integers(0, 6))):
        part = draw(_PARTS) if has_parts else ()
        inside = (draw(st.sampled_from(classes)),) if draw(st.integers(0, 9)) else ()
        deeper = (draw(_CLASSES),) if draw(st.integers(0, 9)) == 0 else ()
        entries.append(((*part, *inside, *deeper, draw(_NAMES)), draw(_KINDS), draw(picture_bytes())))
    values = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "skip_unreadable": st.booleans(),
                "allow_untested_classes": st.booleans(),
                "test_pct": st.sampled_from((1, 50, 99)),
                "train_per_class": st.integers(1, 3),
                "cache": st.sampled_from(("ram", "none")),
                "interpolation": st.sampled_from(("bilinear", "lanczos")),
            },
        )
    )
    return entries, values, draw(st.integers(0, 3)) == 0


def build_tree(root: Path, entries: list[tuple[tuple[str, ...], str, bytes]]) -> None:
    """Write the entries; what this file system cannot hold is left out."""
    for parts, kind, content in entries:
        path = root.joinpath(*parts)
        with suppress(OSError, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.parent.resolve().is_relative_to(root.resolve()):
                continue  # through a link of before: nothing is written out there
            if os.path.lexists(path):
                continue  # writing into a pipe would wait for a reader
            if kind == "file":
                path.write_bytes(content)
            elif kind == "closed":
                path.write_bytes(content)
                path.chmod(0)
            elif kind == "folder":
                path.mkdir()
            elif kind == "pipe":
                os.mkfifo(path)
            else:
                where = {
                    "to itself": path.name,
                    "to above": "..",
                    "to nothing": "nowhere",
                    "to elsewhere": "/usr",
                    "to a folder": str(root),
                }
                path.symlink_to(where[kind])


def clear(root: Path) -> None:
    """An empty folder."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()


@contextmanager
def opened_folders(folder: Path) -> Iterator[Callable[[Any], None]]:
    """Check and load the folder as a data set, or as images to predict; then read every image."""
    root = folder / "images"
    Settings = read_dataset_settings("image_folder")

    def attempt(drawn: Any) -> None:
        entries, values, to_predict = drawn
        clear(root)
        build_tree(root, entries)
        if to_predict:
            for batch in ImageInput(root, Decoder(8, "bicubic")).batches(4):
                assert len(batch.names) == len(batch.images)
                assert all("\n" not in line for line in batch.skipped)
            return
        settings = Settings(root=str(root), **values)
        check_dataset("image_folder", settings)
        for part in load_dataset("image_folder", settings, image_size=8):
            assert part.images(range(len(part))).shape == (len(part), 3, 8, 8)

    yield attempt


def tall_tiff() -> bytes:
    """A sound TIFF of 5 rows that says it has millions."""
    data = bytearray(encoded("TIFF") or b"")
    where = data.index(struct.pack("<HHII", 257, 4, 1, 5)) + 8
    data[where : where + 4] = struct.pack("<I", 0xFF0005)
    return bytes(data)


def _found_folders() -> tuple[Any, ...]:
    damaged = [(("a\nb.png",), "file", b"x"), (("c.png",), "file", pictures()[0])]
    return ((damaged, {}, True),)  # two lines about the file that cannot be read


TARGETS = (
    Target(
        "image files",
        st.deferred(picture_bytes),
        opened_pictures,
        lambda content: ("picture.bin",),
        60,
        lambda: (tall_tiff(),),  # ten seconds
    ),
    Target(
        "image folders", st.deferred(_folders), opened_folders, lambda drawn: ("images", "dataset."), 50, _found_folders
    ),
)
