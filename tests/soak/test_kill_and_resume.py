"""Two hundred runs killed by SIGKILL at random moments and resumed: every one ends with the numbers of an unbroken run.

    python -m pytest -m soak tests/soak -s

Each run is a process of its own (forked, so that nothing is imported again), killed for real, often several times,
resumed with another number of workers, until it finishes. `-s` shows the counts.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from cl_prompts.strategies.declaration import strategy_names

sys.path.append(str(Path(__file__).parents[1] / "runs"))

CYCLES = int(os.environ.get("SOAK_CYCLES", "200"))
SEED = 20260701

KINDS = {
    "mvp": ("si_blurry", "mvp", ()),
    "mvp with replay": ("si_blurry", "mvp", ("protocol.memory_size=20", "protocol.replay_batch=4")),
    "single_prompt, merged": ("si_blurry", "single_prompt", ("scenario.view=merged",)),
    "linear_probe, epochs": (
        "i_blurry",
        "linear_probe",
        ("protocol.epochs=2", "protocol.shuffle=true", "protocol.lr_schedule=cosine"),
    ),
    "ncm": ("disjoint", "ncm", ()),
    "multi_lane": ("mlcil", "multi_lane", ()),
    "multi_lane, deferred": ("mlcil", "multi_lane", ("protocol.session_evaluation=deferred",)),
    "multi_lane, blurry": ("ml_si_blurry", "multi_lane", ("strategy.lane_policy=owner",)),
    "single_prompt, several labels": ("ml_si_blurry", "single_prompt", ()),
    "dualprompt by task": (
        "disjoint",
        "dualprompt",
        ("strategy.variant=paper", "strategy.expert_layers=[1]", "strategy.general_layers=[0]"),
    ),
    "coda_prompt by task": (
        "disjoint",
        "coda_prompt",
        ("strategy.task_count=5", "strategy.components=20", "strategy.prompt_layers=2"),
    ),
    "ranpac, released": ("disjoint", "ranpac", ("strategy.ridge=task_grid",)),
    "er, several labels": ("ml_si_blurry", "er", ()),
}
KINDS |= {name: ("si_blurry", name, ()) for name in strategy_names() if name not in KINDS and name != "multi_lane"}
"""What is run -> scenario, strategy, words."""


def words_of(kind: str) -> list[str]:
    from tiny_runs import SEVERAL, several_words, tiny_words

    scenario, strategy, words = KINDS[kind]
    if scenario in SEVERAL:
        return several_words(scenario, strategy, *words)
    return tiny_words(strategy, f"scenario={scenario}", *words)


@pytest.mark.soak
def test_killed_runs_end_with_the_same_hash(tmp_path):
    import torch
    from forked import final_hash, in_a_process, kill, wait
    from tiny_runs import checked

    from cl_prompts.runs.continuing import resumed_config, saved_status
    from cl_prompts.runs.execute import execute

    torch.set_num_threads(1)
    draw, counts, started = random.Random(SEED), Counter(), time.monotonic()
    expected, lasted = {}, {}
    common = ("progress=none", "checkpoint_every=10", f"output={tmp_path}")
    for index, kind in enumerate(KINDS):
        config = checked(*words_of(kind), *common, f"name=straight{index}")
        begun = time.monotonic()
        assert wait(in_a_process(lambda config=config: execute(config))) == 0, kind
        lasted[kind] = time.monotonic() - begun
        expected[kind] = final_hash(tmp_path / f"straight{index}")
    for cycle in range(CYCLES):
        kind = draw.choice(list(KINDS))
        folder = tmp_path / f"cycle{cycle}"
        config = checked(*words_of(kind), *common, f"name={folder.name}")
        for attempt in range(100):
            process = in_a_process(lambda config=config: execute(config))
            patience = None if attempt > 5 else draw.uniform(0.0, 1.2) * lasted[kind]
            code = wait(process, patience)
            if code is None:
                kill(process)
                counts["kills"] += 1
            else:
                assert code == 0, (cycle, kind, code)
            if saved_status(folder) == "finished":
                break
            if (folder / "config.yaml").is_file():
                config = resumed_config(folder, [f"num_workers={draw.choice([0, 0, 0, 1, 2])}"])
                counts["resumes"] += 1
            else:
                shutil.rmtree(folder, ignore_errors=True)  # killed before its first file; it begins again
        assert final_hash(folder) == expected[kind], (cycle, kind)
        counts[kind] += 1
    print(f"\n{CYCLES} runs, {counts['kills']} kills, {counts['resumes']} resumes, {time.monotonic() - started:.0f} s")
    print({kind: counts[kind] for kind in KINDS})
