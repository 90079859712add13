"""The memory against the slots of the published code, and against what algorithm R promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cl_prompts.memory import ReservoirSampler

STORED = np.load(Path(__file__).parent.parent / "golden" / "si_blurry_reservoir_official.npz")
RUNS = sorted({name.split(".")[0] for name in STORED.files})


@pytest.mark.parametrize("run", RUNS)
def test_released_rule_matches_published_code(run):
    size, samples, batch_size, _, seed = (int(value) for value in STORED[f"{run}.cfg"])
    sampler = ReservoirSampler(size, seed, "released")
    expected = STORED[f"{run}.slots_after_batch"]
    for row, start in enumerate(range(0, samples, batch_size)):
        sampler.update(list(range(start, min(start + batch_size, samples))))
        slots = np.full(size, -1)
        slots[: len(sampler.slots)] = sampler.slots
        np.testing.assert_array_equal(slots, expected[row])
    drawn = [index for _ in range(5) for index in sampler.draw(8)]
    np.testing.assert_array_equal(drawn, STORED[f"{run}.replay_indices_5x8"])
    np.testing.assert_array_equal(STORED[f"{run}.labels"][sampler.slots], STORED[f"{run}.final_labels"])


def test_exact_rule_is_algorithm_r_whatever_the_batches():
    one_by_one, in_batches = ReservoirSampler(7, 3), ReservoirSampler(7, 3)
    for number in range(100):
        one_by_one.update([number])
    for start in range(0, 100, 10):
        in_batches.update(list(range(start, start + 10)))
    assert one_by_one.slots == in_batches.slots
    assert len(set(one_by_one.slots)) == 7


def test_exact_rule_keeps_every_sample_equally_often():
    kept = np.zeros(40)
    for seed in range(2000):
        sampler = ReservoirSampler(10, seed)
        sampler.update(list(range(40)))
        kept[sampler.slots] += 1
    # Binomial(2000, 1/4): deviation 19.4; five of them.
    assert np.abs(kept - 500).max() < 97


def test_released_slip_is_only_in_the_batch_that_fills_the_memory():
    sampler = ReservoirSampler(4, 0, "released")
    sampler.update([0, 1, 2])
    sampler.update([3, 4, 5])
    assert sampler.slots == [0, 1, 2, 5]
