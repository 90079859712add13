"""The contract: what every strategy, scenario and backbone promises, as checks that anyone can run.

`for check in check_strategy("my_method"): check.run()` raises an AssertionError with one line about a broken promise;
`python -m cl_prompts.contract strategy my_method` prints them all. Nothing here needs pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_prompts.contract.backbone import check_backbone
    from cl_prompts.contract.check import Check
    from cl_prompts.contract.scenario import check_scenario
    from cl_prompts.contract.strategy import check_strategy

_HOMES = {
    "Check": "check",
    "check_backbone": "backbone",
    "check_scenario": "scenario",
    "check_strategy": "strategy",
}

__all__ = ["Check", "check_backbone", "check_scenario", "check_strategy"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
