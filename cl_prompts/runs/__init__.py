"""Runs: the command line, the checked configuration, and building and executing a run from it."""

from __future__ import annotations

from typing import Any

__all__ = ["main"]


def __getattr__(name: str) -> Any:
    if name == "main":
        from cl_prompts.runs.command_line import main

        return main
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
