"""What root may do anyway cannot fail: permissions that count, and disks that are really full."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DROP_FROM_BOUNDING_SET = 24
_CAPABILITY_VERSION_3 = 0x20080522


def without_privileges() -> None:
    """Give up every privilege of root for good, here and in programs started from here: permissions then count."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(64):
        libc.prctl(_DROP_FROM_BOUNDING_SET, number, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())


def require_permissions(folder: Path) -> None:
    """Skip where permissions do not count even so."""
    from forked import in_a_process, wait

    probe = folder / "probe"
    probe.mkdir(mode=0o500)

    def attempt() -> int:
        without_privileges()
        try:
            (probe / "file").touch()
        except PermissionError:
            return 7
        return 0

    code = wait(in_a_process(attempt))
    probe.chmod(0o700)
    if code != 7:
        pytest.skip("this system lets the process write whatever the permissions say")


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own of so many kB, mounted at `folder`; skips where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=0700", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here ({error})")
    if made.returncode:
        pytest.skip(f"no file system can be mounted here ({made.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
