"""Pins: the sha256 that a file had when it was first seen, which is the only one accepted later.

For files whose hash no record states. One JSON file for the user, `{key: sha256}`; keys are `weights/<timm tag>` and
`dataset/<name>/<file>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from scenarios._atomic_files import atomic_file
from scenarios._locks import locked
from scenarios.errors import DataError

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Pins:
    """The pin file of a user; read anew at each call, so that other processes are seen.

    Args:
        path: the file, which need not exist; None: `pins.json` in the user's data folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            from platformdirs import user_data_path

            path = user_data_path("cl_prompts", appauthor=False) / "pins.json"
        self.path = path

    def get(self, key: str) -> str | None:
        """The pinned sha256 of a key (64 lower-case hexadecimal digits); None where nothing is pinned.

        Raises:
            DataError: the pin file cannot be read.
        """
        return self._read().get(key)

    def check(self, key: str, sha256: str, *, what: str, advice: str) -> bool:
        """Compare a hash with its pin, or pin it where there is none.

        Args:
            key: what the hash is of.
            sha256: 64 lower-case hexadecimal digits.
            what: the file in words, for the error.
            advice: what to do where the hash differs, an order.

        Returns:
            True where the hash was pinned just now, False where it equals the pin.

        Raises:
            DataError: another hash is pinned, or the pin file cannot be read or written.
            ValueError: not a sha256.
        """
        if _SHA256.fullmatch(sha256) is None:
            raise ValueError(f"{sha256!r} is no sha256 of 64 lower-case hexadecimal digits")
        # Known pins need no lock: a pin file that only can be read serves as well.
        if self._matches(key, sha256, what, advice):
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(self.path.name + ".lock"), purpose=f"writing {self.path}"):
                if self._matches(key, sha256, what, advice):
                    return False
                pins = self._read() | {key: sha256}
                with atomic_file(self.path) as file:
                    file.write((json.dumps(pins, indent=2, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise DataError(
                f"pin file {self.path} cannot be written ({error.strerror or error}), so that a change of {what} would "
                "go unnoticed; make the folder writable"
            ) from error
        return True

    def unpinned(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that have no pin yet, in their order.

        Raises:
            DataError: the pin file cannot be read.
        """
        pins = self._read()
        return [key for key in keys if key not in pins]

    def _matches(self, key: str, sha256: str, what: str, advice: str) -> bool:
        """True for the pinned hash, False where nothing is pinned."""
        pinned = self._read().get(key)
        if pinned not in (None, sha256):
            raise DataError(
                f"{what} has sha256 {sha256}, but {pinned} was seen the first time (pinned as {key} in {self.path}); "
                f"{advice}"
            )
        return pinned is not None

    def _read(self) -> dict[str, str]:
        try:
            content = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DataError(
                f"pin file {self.path} cannot be read ({error.strerror or error}); make it readable"
            ) from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        if not isinstance(content, dict):
            raise self._damaged("it holds no JSON object")
        wrong = [key for key, pin in content.items() if not isinstance(pin, str) or _SHA256.fullmatch(pin) is None]
        if wrong:
            raise self._damaged(f"the value of {wrong[0]} is no sha256")
        return content

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"pin file {self.path} is damaged ({reason}); repair it or bring back a copy: without it no file can be "
            "compared with what was seen the first time"
        )
