"""One file a method; the word after `strategy=` is the file's name.

`from cl_prompts.strategies import MVP, MVPSettings` imports that method's file, and torch with it, only then.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_prompts.strategies.declaration import parse_file, strategy_names

if TYPE_CHECKING:
    from cl_prompts.strategies.base import ContinualStrategy


@cache
def _subclasses(base: str) -> dict[str, str]:
    """Class -> file name without suffix, for the subclasses of `base` written in the method files."""
    found = {}
    for name in strategy_names():
        for node in parse_file(Path(__file__).parent / f"{name}.py").body:
            if isinstance(node, ast.ClassDef) and any(isinstance(of, ast.Name) and of.id == base for of in node.bases):
                found[node.name] = name
    return found


def load_strategy(name: str) -> type[ContinualStrategy]:
    """The strategy class of the file `name`.

    Raises:
        KeyError: no such method.
    """
    for class_name, file_name in _subclasses("ContinualStrategy").items():
        if file_name == name:
            return getattr(import_module(f"{__name__}.{name}"), class_name)
    raise KeyError(name)


def _exports() -> dict[str, str]:
    shared = {"ContinualStrategy": "base", "Method": "method", "TrainingBatch": "method", "TrainingOutputs": "method"}
    return shared | _subclasses("ContinualStrategy") | _subclasses("StrategySettings")


def __getattr__(name: str) -> Any:
    exports = {} if name.startswith("__") else _exports()
    if name not in exports:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{exports[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_exports()])
