"""How much memory a process may still take, as far as the system says."""

from __future__ import annotations

from pathlib import Path

SHARE = 0.5
"""Share of the available memory that decoded images may take: the network, its gradients and the workers need some."""

_GROUPS = (  # limit, use and where the use is broken down, of control groups version 2 and 1
    ("memory.max", "memory.current", "memory.stat", "file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_cache"),
)


def available_bytes(system: Path = Path("/")) -> int | None:
    """Bytes that can be taken without swapping and within the limit of a container; None where nothing tells.

    Args:
        system: root of the file system that holds `proc` and `sys`.
    """
    known = [value for value in (_machine(system / "proc"), _container(system / "sys" / "fs" / "cgroup")) if value]
    return min(known, default=None)


def _machine(folder: Path) -> int | None:
    kilobytes = _table(folder / "meminfo").get("MemAvailable")
    return None if kilobytes is None else kilobytes * 1024


def _container(folder: Path) -> int | None:
    """What the control group leaves; pages of files in its use can be given back at any time."""
    for limit_file, use_file, parts_file, pages in _GROUPS:
        limit, use = _number(folder / limit_file), _number(folder / use_file)
        if limit is not None and use is not None:
            return max(limit - use + _table(folder / parts_file).get(pages, 0), 1)
    return None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # "max": no limit


def _table(path: Path) -> dict[str, int]:
    """Lines like `MemAvailable:  123 kB` or `file 123`."""
    rows = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
