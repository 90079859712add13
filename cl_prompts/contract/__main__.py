"""`python -m cl_prompts.contract strategy my_method`: every promise in one line, kept or broken."""

from __future__ import annotations

import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Sequence

from cl_prompts.contract import Check, check_backbone, check_scenario, check_strategy
from cl_prompts.errors import UserError

CHECKS: dict[str, Callable[[str], list[Check]]] = {
    "strategy": check_strategy,
    "scenario": check_scenario,
    "backbone": check_backbone,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks of one subject; 0: all promises are kept, 1: some are broken, 2: there is no such subject."""
    parser = ArgumentParser(prog="python -m cl_prompts.contract", description="What a part of cl_prompts promises.")
    parser.add_argument("kind", choices=sorted(CHECKS))
    parser.add_argument("name", help="the word after strategy= or scenario=, or a model of timm")
    parser.add_argument("--slow", action="store_true", help="the checks that take seconds, too")
    options = parser.parse_args(arguments)
    try:
        checks = CHECKS[options.kind](options.name)
    except (KeyError, UserError) as error:
        print(f"error: {options.kind} {options.name}: {error}", file=sys.stderr)
        return 2
    broken = 0
    for check in checks:
        if check.slow and not options.slow:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check.run()
        except AssertionError as error:
            broken += 1
            print(f"BROKEN  {error}")
        else:
            print(f"kept    {check.id}: {check.description}")
    print(f"{broken} promises are broken" if broken else "all promises are kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
