"""One file a method; the word after `strategy=` is the file's name.

`from cl_prompts.strategies import MVP, MVPSettings` imports that method's file, and torch with it, only then.
Methods of other installed packages are imported from there; `load_strategy` and `strategy=` know them by name.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_prompts.errors import StrategyError
from cl_prompts.strategies.declaration import SETTINGS_BASES, parse_file, strategy_file, strategy_names
from cl_prompts.strategies.foreign import ForeignStrategy, foreign_strategies

if TYPE_CHECKING:
    from cl_prompts.strategies.base import ContinualStrategy


@cache
def _subclasses(base: str) -> dict[str, str]:
    """Class -> file name without suffix, for the subclasses of `base` written in the method files of this folder."""
    names = [name for name in strategy_names() if name not in foreign_strategies()]
    return {found: name for name in names for found in _subclasses_in(strategy_file(name), base)}


def _subclasses_in(path: Path, base: str) -> list[str]:
    """Names of the classes of a file that are written as subclasses of `base`."""
    return [
        node.name
        for node in parse_file(path).body
        if isinstance(node, ast.ClassDef) and any(isinstance(of, ast.Name) and of.id == base for of in node.bases)
    ]


def load_strategy(name: str) -> type[ContinualStrategy]:
    """The strategy class of the file `name`, or of the package that announces this name.

    Raises:
        KeyError: no such method.
        StrategyError: the package's file cannot be imported, or holds no subclass of ContinualStrategy.
    """
    if name in foreign_strategies():
        return _foreign_class(foreign_strategies()[name])
    for class_name, file_name in _subclasses("ContinualStrategy").items():
        if file_name == name:
            return getattr(import_module(f"{__name__}.{name}"), class_name)
    raise KeyError(name)


def _foreign_class(foreign: ForeignStrategy) -> type[ContinualStrategy]:
    found = _subclasses_in(strategy_file(foreign.name), "ContinualStrategy")
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise StrategyError(f"{foreign}: {foreign.module} must hold one subclass of ContinualStrategy, it has {listed}")
    try:
        return getattr(import_module(foreign.module), found[0])
    except Exception as error:  # the code of another package may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise StrategyError(f"{foreign}: {foreign.module} cannot be imported ({reason})") from error


def _exports() -> dict[str, str]:
    shared = {"ContinualStrategy": "base", "Method": "method", "TrainingBatch": "method", "TrainingOutputs": "method"}
    for base in ("ContinualStrategy", *SETTINGS_BASES):
        shared |= _subclasses(base)
    return shared


def __getattr__(name: str) -> Any:
    exports = {} if name.startswith("__") else _exports()
    if name not in exports:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{exports[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_exports()])
