"""Methods of other installed packages: the entry-point group `cl_prompts.strategies`, name -> module path.

```toml
[project.entry-points."cl_prompts.strategies"]
my_method = "my_package.my_method"
```

Their files are found without importing the package, so that the command line stays light.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from cl_prompts.errors import StrategyError

GROUP = "cl_prompts.strategies"
"""Entry points of this group name a method and the module that holds it."""


@dataclass(frozen=True)
class ForeignStrategy:
    """A method that another package announces.

    Attributes:
        name: the word after `strategy=`.
        module: dotted path of the file that holds it.
        package: distribution and version.
    """

    name: str
    module: str
    package: str

    def __str__(self) -> str:
        return f"strategy={self.name} of the package {self.package}"


@cache
def foreign_strategies() -> Mapping[str, ForeignStrategy]:
    """Name -> method, of every installed package.

    Raises:
        StrategyError: two packages announce one name.
    """
    found: dict[str, ForeignStrategy] = {}
    for entry in entry_points(group=GROUP):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
        one = ForeignStrategy(entry.name, entry.value.strip(), package)
        if found.get(one.name, one) != one:
            raise StrategyError(f"{one}: {found[one.name].package} announces the same name; uninstall one of them")
        found[one.name] = one
    return found


def package_of(name: str) -> dict[str, str]:
    """`package`: distribution and version that a method comes from; nothing for one of this package."""
    foreign = foreign_strategies().get(name)
    return {} if foreign is None else {"package": foreign.package}


def foreign_file(strategy: ForeignStrategy) -> Path:
    """The source file of a method, without importing any part of its package.

    Raises:
        StrategyError: there is no such file; names the package.
    """
    first, *rest = strategy.module.split(".")
    spec = importlib.util.find_spec(first) if first.isidentifier() else None
    for depth, part in enumerate(rest, 2):
        folders = None if spec is None else spec.submodule_search_locations
        # Not `find_spec` of the whole path: that imports every package on the way.
        spec = PathFinder.find_spec(".".join([first, *rest][:depth]), folders) if folders and part else None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise StrategyError(
            f"{strategy}: no source file of a module {strategy.module!r} is installed; the entry point in the group "
            f"{GROUP} must be `{strategy.name} = package.module`"
        )
    return Path(spec.origin)
