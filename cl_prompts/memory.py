"""`ReservoirSampler`: which of the samples seen so far a memory of fixed size keeps. Indices only, no images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cl_prompts.errors import StrategyError


class ReservoirSampler:
    """Algorithm R (Vitter, 1985): after n samples each one is kept with probability size / n.

    Args:
        size: slots.
        seed: of the memory's own generator.
        rule: `exact`, or `released` for the published code of MVP-R and ER, which in the batch that fills the memory
            writes the surplus samples over the last slot, one after the other.

    Attributes:
        slots: sample numbers kept, at most `size`.
        seen: samples offered so far.

    Raises:
        StrategyError: a negative size, or an unknown rule.
    """

    def __init__(self, size: int, seed: int, rule: str = "exact") -> None:
        if size < 0:
            raise StrategyError(f"memory size {size}: must be 0 or more")
        if rule not in RESERVOIR_RULES:
            raise StrategyError(f"memory rule {rule!r} is unknown; choose one of {', '.join(RESERVOIR_RULES)}")
        self.size = size
        self.slots: list[int] = []
        self.seen = 0
        self.generator = torch.Generator().manual_seed(seed)
        self._update = RESERVOIR_RULES[rule]

    def update(self, numbers: list[int]) -> None:
        """Offer the samples of one stream batch, in order."""
        self._update(self, numbers)

    def draw(self, count: int) -> list[int]:
        """Up to `count` different samples of the memory, uniformly at random."""
        order: Tensor = torch.randperm(len(self.slots), generator=self.generator)
        return [self.slots[place] for place in order[:count].tolist()]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores: slots, count and generator."""
        return {"slots": list(self.slots), "seen": self.seen, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken."""
        self.slots, self.seen = list(state["slots"]), state["seen"]
        self.generator.set_state(state["generator"])

    def _place(self) -> int:
        return int(torch.randint(0, self.seen, (1,), generator=self.generator))


def _exact(sampler: ReservoirSampler, numbers: list[int]) -> None:
    for number in numbers:
        sampler.seen += 1
        if len(sampler.slots) < sampler.size:
            sampler.slots.append(number)
            continue
        place = sampler._place()
        if place < sampler.size:
            sampler.slots[place] = number


def _released(sampler: ReservoirSampler, numbers: list[int]) -> None:
    full = len(sampler.slots) >= sampler.size
    places = []
    for _ in numbers:
        sampler.seen += 1
        places.append(sampler._place() if full else -1)
    for number, place in zip(numbers, places, strict=True):
        if len(sampler.slots) < sampler.size:
            sampler.slots.append(number)
        elif place < sampler.size:
            # Place -1 is the published slip: surplus "append" decisions pass this test and hit the last slot.
            sampler.slots[place] = number


RESERVOIR_RULES: dict[str, Callable[[ReservoirSampler, list[int]], None]] = {"exact": _exact, "released": _released}
"""Rule named in a configuration -> update."""
