"""Faults at one file operation of a process: every open for writing, write, sync, rename, removal and folder counts.

`watch` replaces the functions of the operating system for good, so only a process that is thrown away may call it.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLED = 137
"""Exit code of a process that ended at an operation, as of one that SIGKILL ended."""


@dataclass
class Operation:
    """One call that is about to change a folder.

    Attributes:
        kind: open, write, sync, rename, remove, folder.
        path: what it changes.
        number: 1 for the first one of the process.
        grows: it needs space.
        half: does the first half of it; nothing for what cannot be halved.
    """

    kind: str
    path: str
    number: int
    grows: bool
    half: Callable[[], object]

    def fail(self, number: int) -> OSError:
        """The error of the system for it."""
        return OSError(number, os.strerror(number), self.path)


class Operations:
    """All operations below a folder so far.

    Args:
        folder: what is below it counts.
        fault: called before each operation; may raise, end the process, or return how many bytes to write.
    """

    def __init__(self, folder: Path, fault: Callable[[Operations, Operation], int | None]) -> None:
        self.folder = os.path.realpath(folder) + os.sep
        self.fault = fault
        self.log: list[str] = []
        self.unsynced: set[str] = set()
        self.paths: dict[int, str] = {}
        self.lock = threading.RLock()

    def path(self, name: Any, dir_fd: int | None = None) -> str | None:
        """The full name of a file below the folder; None for any other."""
        if isinstance(name, int):
            return self.paths.get(name)
        name = os.fsdecode(name)
        if dir_fd is not None:
            name = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
        path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(name))), os.path.basename(name))
        return path if path.startswith(self.folder) else None

    def step(self, kind: str, path: str, grows: bool = False, half: Callable[[], object] = lambda: None) -> int | None:
        """Count an operation, and let the fault have it."""
        with self.lock:
            self.log.append(f"{kind} {path.removeprefix(self.folder)}")
            return self.fault(self, Operation(kind, path, len(self.log), grows, half))


class CountedFile(io.FileIO):
    """A file whose writes count."""

    def __init__(self, operations: Operations, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.operations, self.path = operations, path
        operations.paths[self.fileno()] = path

    def write(self, data: Any) -> int:
        data = bytes(data)
        grows = self.tell() + len(data) > os.fstat(self.fileno()).st_size or "a" in self.mode
        write = super().write
        limit = self.operations.step("write", self.path, grows, lambda: write(data[: len(data) // 2]))
        self.operations.unsynced.add(self.path)
        return write(data if limit is None else data[:limit])

    def truncate(self, size: int | None = None) -> int:
        self.operations.step("write", self.path)
        return super().truncate(size)


def watch(operations: Operations) -> None:
    """From now on every operation of this process passes by `operations`."""
    for name in ("open", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync"):
        setattr(os, name, globals()[f"_{name}"](operations, getattr(os, name)))
    builtins.open = io.open = _file(operations, io.open)


def _file(operations: Operations, real: Callable) -> Callable:
    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **keywords):
        path = None if set(mode).isdisjoint("wxa+") else operations.path(file)
        if path is None or isinstance(file, int):
            return real(file, mode, buffering, encoding, errors, newline, *rest, **keywords)
        operations.step("open", path, grows=not os.path.exists(path))
        raw = CountedFile(operations, path, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    return opened


def _open(operations: Operations, real: Callable) -> Callable:
    def opened(name, flags, mode=0o777, *, dir_fd=None):
        path = operations.path(name, dir_fd) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None
        if path is not None:
            operations.step("open", path, grows=not os.path.exists(path))
        return real(name, flags, mode, dir_fd=dir_fd)

    return opened


def _replace(operations: Operations, real: Callable) -> Callable:
    def replace(source, target, **keywords):
        path, old = operations.path(target), operations.path(source)
        if path is not None:
            operations.step("rename", path)
        real(source, target, **keywords)
        if path is not None:
            operations.unsynced.discard(path)
            if old in operations.unsynced:
                operations.unsynced.remove(old)
                operations.unsynced.add(path)

    return replace


_rename = _replace


def _unlink(operations: Operations, real: Callable) -> Callable:
    def unlink(name, *, dir_fd=None):
        path = operations.path(name, dir_fd)
        if path is not None and os.path.lexists(path):
            operations.step("remove", path)
        real(name, dir_fd=dir_fd)
        operations.unsynced.discard(path or "")

    return unlink


_remove = _rmdir = _unlink


def _mkdir(operations: Operations, real: Callable) -> Callable:
    def mkdir(name, mode=0o777, *, dir_fd=None):
        path = operations.path(name, dir_fd)
        if path is not None and not os.path.exists(path):
            operations.step("folder", path, grows=True)
        real(name, mode, dir_fd=dir_fd)

    return mkdir


def _fsync(operations: Operations, real: Callable) -> Callable:
    def fsync(descriptor):
        path = operations.paths.get(descriptor)
        if path is not None:
            operations.step("sync", path)
        real(descriptor)
        operations.unsynced.discard(path or "")

    return fsync


def nothing(operations: Operations, operation: Operation) -> None:
    """No fault: the operations are only counted."""


def killed(at: int) -> Callable[[Operations, Operation], None]:
    """SIGKILL at an operation, in the middle of it where that is possible."""

    def fault(operations: Operations, operation: Operation) -> None:
        if operation.number == at:
            operation.half()
            os._exit(KILLED)

    return fault


def power_cut(at: int) -> Callable[[Operations, Operation], None]:
    """The same of the whole machine: what was not yet told to go to the disk is gone."""

    def fault(operations: Operations, operation: Operation) -> None:
        if operation.number == at:
            operation.half()
            for path in {*operations.unsynced, operation.path} if operation.kind == "write" else operations.unsynced:
                if os.path.exists(path) and "tfevents" not in path:  # events are a view; they are never read by a run
                    os.truncate(path, 0)
            os._exit(KILLED)

    return fault


def full_disk(at: int) -> Callable[[Operations, Operation], None]:
    """From an operation on there is no space; the first write that meets it still writes half."""

    def fault(operations: Operations, operation: Operation) -> None:
        if operation.number >= at and operation.grows:
            if operation.number == at:
                operation.half()
            raise operation.fail(errno.ENOSPC)

    return fault


def one_error(at: int) -> Callable[[Operations, Operation], None]:
    """One operation fails, all others do what they should."""

    def fault(operations: Operations, operation: Operation) -> None:
        if operation.number == at:
            raise operation.fail(errno.EIO)

    return fault


def short_write(at: int) -> Callable[[Operations, Operation], int | None]:
    """A write takes a part of the bytes and says so, as it may."""

    def fault(operations: Operations, operation: Operation) -> int | None:
        return 7 if operation.number == at and operation.kind == "write" else None

    return fault
