"""A user's images, in any form, as the images that a data set would have given: decoded by the same code."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cl_prompts.errors import DataError
from scenarios.datasets._decoding import Decoder, UnreadableImage, decode_all
from scenarios.errors import as_line

FORMS = (
    "a path, a folder, a list of paths, PIL images, uint8 arrays (height, width, 3) or (n, height, width, 3), or uint8 "
    "tensors (3, height, width) or (n, 3, height, width)"
)

_FILE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B", "F")
"""Pillow modes that a decoder has an opinion about; it converts all others to RGB."""


@dataclass(frozen=True)
class ImageBatch:
    """Some images of the input.

    Attributes:
        names: of those that can be read: path, or place in the input.
        images: uint8 `(len(names), 3, size, size)`.
        skipped: the others, as `name: reason`.
    """

    names: list[str]
    images: Tensor
    skipped: list[str]


class ImageInput:
    """Images that somebody wants to know about, as many at a time as fit.

    Args:
        images: see `FORMS`. Of a folder every file is taken, in folders below it too, but not what begins with a dot.
        decoder: how the data set of the run was decoded; pictures in memory go the same way as files.

    Raises:
        DataError: nothing of these forms, a path that leads nowhere, an empty folder.
    """

    def __init__(self, images: Any, decoder: Decoder) -> None:
        self.decoder = decoder
        self._items, self._names = _items(images)

    def __len__(self) -> int:
        return len(self._items)

    def batches(self, size: int) -> Iterator[ImageBatch]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self._items), size):
            items, names = self._items[start : start + size], self._names[start : start + size]
            out = np.empty((len(items), 3, self.decoder.size, self.decoder.size), dtype=np.uint8)
            failures = _decode(items, self.decoder, out)
            kept = [number for number in range(len(items)) if number not in failures]
            skipped = [as_line(f"{names[number]}: {reason}") for number, reason in sorted(failures.items())]
            yield ImageBatch([names[number] for number in kept], torch.from_numpy(out[kept]), skipped)


def _items(images: Any) -> tuple[Sequence[Any], list[str]]:
    """Single images, all of one kind, and their names."""
    if isinstance(images, str | os.PathLike):
        paths = _files(Path(images).expanduser())
        return paths, _shown(paths)
    if isinstance(images, np.ndarray | Tensor):
        items: Sequence[Any] = list(images) if images.ndim == 4 else [images]
    else:
        items = list(images) if isinstance(images, Sequence) and not isinstance(images, bytes) else [images]
    if items and all(isinstance(item, str | os.PathLike) for item in items):
        paths = [Path(item).expanduser() for item in items]
        return paths, _shown(paths)
    for number, item in enumerate(items):
        if not any(isinstance(item, kind) and fits(item) for kind, (fits, _) in _PICTURES.items()):
            raise DataError(f"images: item {number} is {_described(item)}; give {FORMS}")
    return items, [str(number) for number in range(len(items))]


def _shown(paths: Sequence[Path]) -> list[str]:
    """Paths as text that any file can hold: bytes that are no UTF-8 are written out."""
    return [str(path).encode("utf-8", "backslashreplace").decode() for path in paths]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"images={path}: there is no such file or folder")
    if not path.is_dir():
        return [path]
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise DataError(f"images={error.filename}: cannot be read ({error.strerror}); check its permissions")

    for folder, below, files in os.walk(path, onerror=refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [Path(folder) / name for name in sorted(files) if not name.startswith(".")]
    if not found:
        raise DataError(f"images={path}: an empty folder; give one with images in it")
    return found


def _decode(items: Sequence[Any], decoder: Decoder, out: np.ndarray) -> dict[int, str]:
    """Pixels of all images; the reasons, by place, for those that cannot be read."""
    if isinstance(items[0], Path):
        return decode_all(items, decoder, out=out)[1]
    failures = {}
    for number, item in enumerate(items):
        try:
            out[number] = _pixels(item, decoder)
        except UnreadableImage as error:
            failures[number] = str(error)
    return failures


def _pixels(item: Any, decoder: Decoder) -> np.ndarray:
    picture = next(make(item) for kind, (_, make) in _PICTURES.items() if isinstance(item, kind))
    # Through the bytes of a file, losslessly: what is done to files is done to pictures, by the same code.
    content = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(picture)
        (upright if upright.mode in _FILE_MODES else upright.convert("RGB")).save(content, "PNG", compress_level=0)
    except OSError as error:
        raise UnreadableImage(" ".join(str(error).split())) from error
    return decoder.pixels(content.getvalue())


def _is_array(item: np.ndarray) -> bool:
    return item.dtype == np.uint8 and item.ndim == 3 and item.shape[2] == 3 and item.size > 0


def _is_tensor(item: Tensor) -> bool:
    return item.dtype == torch.uint8 and item.ndim == 3 and item.shape[0] == 3 and item.numel() > 0


def _of_array(item: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(item))


_PICTURES: dict[type, tuple[Callable[[Any], bool], Callable[[Any], Image.Image]]] = {
    np.ndarray: (_is_array, _of_array),
    Tensor: (_is_tensor, lambda item: _of_array(item.permute(1, 2, 0).cpu().numpy())),
    Image.Image: (lambda item: True, lambda item: item),
}
"""Form of one picture in memory -> whether it is one, and how it becomes an image of Pillow."""


def _described(item: Any) -> str:
    if isinstance(item, np.ndarray | Tensor):
        kind = "an array" if isinstance(item, np.ndarray) else "a tensor"
        return f"{kind} of {item.dtype} and shape {tuple(item.shape)}"
    return f"a {type(item).__name__}"
