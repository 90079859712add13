"""Arrays in the format of MNIST: a magic number that says type and dimensions, the sizes, the values; gzip around it.

Format: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, section on file formats.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from scenarios.errors import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, *, dimensions: int, max_bytes: int, advice: str) -> np.ndarray:
    """An array of unsigned bytes, uint8 with so many dimensions.

    Args:
        path: the gzip file.
        dimensions: 1 for labels, 3 for images.
        max_bytes: bytes that it may at most have unpacked.
        advice: what to do when it is damaged, an order.

    Raises:
        DataError: not such a file, damaged, truncated.
    """
    try:
        with gzip.open(path) as stream:
            data = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}); {advice}") from error
    start = 4 + 4 * dimensions
    if len(data) > max_bytes or len(data) < start or data[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise DataError(f"{path} is no array of bytes with {dimensions} dimensions; {advice}")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    values = np.frombuffer(data, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} promises {shape} values and has {values.size}; {advice}")
    return values.reshape(shape)
