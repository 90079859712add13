"""What `runs/test_directory.py` does not hold of files that are found whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from scenarios._atomic_files import atomic_file


def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch):
    def fails(number):
        def call(*_, **__):
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC))
    monkeypatch.setattr(Path, "unlink", fails(errno.EIO))
    with pytest.raises(OSError, match="No space left"), atomic_file(tmp_path / "file") as file:
        file.write(b"content")
