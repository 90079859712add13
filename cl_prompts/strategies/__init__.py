"""One file a method; the word after `strategy=` is the file's name.

`from cl_prompts.strategies import MVP` imports that method's file, and torch with it, only then.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_prompts.strategies.declaration import strategy_names

if TYPE_CHECKING:
    from cl_prompts.strategies.base import ContinualStrategy


@lru_cache(maxsize=1)
def strategy_classes() -> dict[str, str]:
    """Strategy class -> file name without suffix, found in the files that declare settings."""
    found = {}
    for name in strategy_names():
        for node in ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(
                isinstance(base, ast.Name) and base.id == "ContinualStrategy" for base in node.bases
            ):
                found[node.name] = name
    return found


def load_strategy(name: str) -> type[ContinualStrategy]:
    """The strategy class of the file `name`.

    Raises:
        KeyError: no such method.
    """
    for class_name, file_name in strategy_classes().items():
        if file_name == name:
            return getattr(import_module(f"{__name__}.{name}"), class_name)
    raise KeyError(name)


_LAZY = {
    "ContinualStrategy": "base",
    "Method": "method",
    "MVPSettings": "mvp",
    "SinglePromptSettings": "single_prompt",
    "LinearProbeSettings": "linear_probe",
    "NCMSettings": "ncm",
}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    file_name = strategy_classes().get(name) or _LAZY.get(name)
    if file_name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{file_name}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *strategy_classes(), *_LAZY])
