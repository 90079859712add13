"""One root seed, one generator a purpose: changing what one of them draws leaves all others as they were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PURPOSES = ("init", "augment", "replay", "order")
"""Order fixed for good: a purpose's place is part of its seed. The stream has a seed of its own (`scenario.seed`);
evaluation draws nothing."""


@dataclass(frozen=True)
class Seeds:
    """Seeds of the named generators of a run.

    Attributes:
        init: initial prompts, keys and head, and an untrained backbone.
        augment: random change of training images.
        replay: what the memory keeps and draws.
        order: order of a session in each epoch, where the protocol shuffles.
    """

    init: int
    augment: int
    replay: int
    order: int

    @classmethod
    def from_root(cls, root: int) -> Seeds:
        """Derive all seeds from the run's seed (NumPy's SeedSequence)."""
        sequence = np.random.SeedSequence(root)
        children = sequence.spawn(len(PURPOSES))
        # 63 bits: what every consumer, torch's generators included, takes without a sign.
        values = {
            purpose: int(child.generate_state(1, np.uint64)[0] >> np.uint64(1))
            for purpose, child in zip(PURPOSES, children, strict=True)
        }
        return cls(**values)
