"""Runs: the command line, the checked configuration, and building and executing a run from it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry of `python run.py` and of the installed command; see `cl_prompts.runs.command_line.main`."""
    try:
        from cl_prompts.runs.command_line import main as answer
    except KeyboardInterrupt:
        # Half a second of imports: a user who mistyped is often faster.
        from cl_prompts.runs.failures import INTERRUPTED, print_error

        print_error("interrupted")
        return INTERRUPTED
    return answer(arguments)
