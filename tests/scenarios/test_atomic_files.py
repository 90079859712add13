"""What `runs/test_directory.py` does not hold of files that are found whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from scenarios._atomic_files import atomic_file, remove_leftovers


def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch):
    def fails(number):
        def call(*_, **__):
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC))
    monkeypatch.setattr(Path, "unlink", fails(errno.EIO))
    with pytest.raises(OSError, match="No space left"), atomic_file(tmp_path / "file") as file:
        file.write(b"content")


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "folder.1-2.tmp").mkdir()
    for name in (".curves.csv.12-34.tmp", ".env.tmp", "curves.csv", ".lock", "a.1-2.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".env.tmp",
        ".lock",
        "a.1-2.tmp",
        "curves.csv",
        "folder.1-2.tmp",
    ]
    remove_leftovers(tmp_path / "absent")
