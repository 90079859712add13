"""Foreign data of every kind, spoilt in every way: each input works or ends in one clear line, in time, without leaks.

    python -m pytest -m fuzz -n 0 tests/fuzz -s

gives more than 20,000 inputs to all targets and shows the counts; `FUZZ_EXAMPLES` sets another number, `FUZZ_SEED`
repeats a search. The default run gives each target a few.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import fuzzed_annotations
import fuzzed_archives
import fuzzed_configurations
import fuzzed_images
import fuzzed_plans
import fuzzed_saved_runs
import fuzzed_weights
import pytest
from harness import Tally, Target, explore

MODULES = (
    fuzzed_configurations,
    fuzzed_plans,
    fuzzed_saved_runs,
    fuzzed_weights,
    fuzzed_images,
    fuzzed_annotations,
    fuzzed_archives,
)
TARGETS: dict[str, Target] = {target.name: target for module in MODULES for target in module.TARGETS}
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "21000"))
SEED = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(10**9)))
FEW = 5
SHARES = sum(target.share for target in TARGETS.values())

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs(name, tmp_path):
    explore(TARGETS[name], tmp_path, FEW, first_seed=0)


@pytest.fixture(scope="module")
def tallies() -> Iterator[dict[str, Tally]]:
    """What came of each target, shown at the end."""
    found: dict[str, Tally] = {}
    yield found
    if not found:
        return
    columns = ("inputs", "refused", "worked", "seconds", "slowest", "MB", "grown")
    print(f"\n{'target':32}" + "".join(f"{column:>9}" for column in columns))
    for name, tally in found.items():
        counts = f"{tally.inputs:9}{tally.refused:9}{tally.inputs - tally.refused:9}"
        memory = f"{tally.memory[-1] >> 20:9}{tally.growth / 2**20:9.1f}" if tally.memory else ""
        print(f"{name:32}{counts}{tally.seconds:9.1f}{tally.slowest:9.2f}{memory}")
    inputs, seconds = sum(one.inputs for one in found.values()), sum(one.seconds for one in found.values())
    refused = sum(one.refused for one in found.values())
    print(f"{'all, seed ' + str(SEED):32}{inputs:9}{refused:9}{inputs - refused:9}{seconds:9.1f}")


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs(name, tmp_path, tallies):
    target, started = TARGETS[name], time.monotonic()
    tally = explore(target, tmp_path, round(EXAMPLES * target.share / SHARES), first_seed=SEED)
    tallies[name] = tally
    print(f"\n{name}: {tally.inputs} inputs, {time.monotonic() - started:.0f} s, seed {SEED}")
