"""Lists of the images of a part, as published code keeps them: text, a path a line, or YAML with a list `data`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from scenarios.errors import DataError

_YAML_SUFFIXES = {".yaml", ".yml"}


def read_split_list(path: Path) -> tuple[str, ...]:
    """Paths `<class>/<file>` in the order of the list, whatever folders stand before them.

    Args:
        path: `.yaml` or `.yml` with the list `data`, or any other name for a text file.

    Raises:
        DataError: not readable, empty, a line that names no class and file, a file twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {path} cannot be read ({error}); give a text file of <class>/<file> lines") from error
    lines = _yaml_entries(path, text) if path.suffix.lower() in _YAML_SUFFIXES else text.splitlines()
    names: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if not str(line).strip():
            continue
        parts = PurePosixPath(str(line).strip().replace("\\", "/")).parts
        name = "/".join(parts[-2:])
        if len(parts) < 2 or name in names:
            fault = "is there twice" if name in names else "names no class folder and file"
            raise DataError(f"list {path} entry {number}: {str(line).strip()!r} {fault}; correct or remove it")
        names[name] = None
    if not names:
        raise DataError(f"list {path} is empty; give a text file of <class>/<file> lines")
    return tuple(names)


def _yaml_entries(path: Path, text: str) -> list[Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(text, loader)
    except Exception as error:  # what the readers of YAML's types raise depends on the type
        raise DataError(f"list {path} is no YAML ({' '.join(str(error).split())}); repair it") from error
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"list {path} has no list 'data'; give YAML with data: [...], or a text file")
    return entries
