"""What data sets of official archives share: where they live, and downloads whose errors say what to do."""

from __future__ import annotations

import socket
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scenarios.errors import DataError

STALL_SECONDS = 30.0
"""A download that receives nothing for so long is given up: better one clear line than a run that seems to hang."""


def data_root(root: str | None) -> Path:
    """Folder of the official files: `dataset.root`, else the user's data folder."""
    if root is not None:
        return Path(root).expanduser()
    from platformdirs import user_data_path

    return user_data_path("cl_prompts", appauthor=False)


@contextmanager
def clear_errors(name: str, place: Path, *, by_hand: str, download: bool, megabytes: int) -> Iterator[None]:
    """Turn what torchvision and the network raise into one line, and give torchvision a time limit.

    Args:
        name: the word after `dataset=`.
        place: folder of the official files.
        by_hand: what to do on a machine without network, an order.
        download: whether a download was allowed.
        megabytes: space needed.

    Raises:
        DataError: missing, damaged, not downloadable, not writable.
    """
    earlier = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    except RuntimeError as error:
        advice = by_hand if download else "set dataset.download=true to fetch it again"
        raise DataError(
            f"dataset={name}: a file in {place} is missing or damaged (its checksum is not the official one); {advice}"
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"dataset={name} could not be downloaded ({reason}); {by_hand}") from error
    except OSError as error:
        raise DataError(
            f"dataset={name}: {error.filename or place}: {error.strerror or error}; "
            f"set dataset.root to a folder that can be read and written and has {megabytes} MB free"
        ) from error
    finally:
        socket.setdefaulttimeout(earlier)
