"""One whole run of each headline strategy, number by number: whatever changes a result changes these curves.

The backbone is small and untrained, so that no weight file is needed. After a change that is meant to change numbers:
`GOLDEN=write OMP_NUM_THREADS=1 python -m pytest -n 0 tests/runs/test_golden_curves.py`, then read the difference.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from tiny_runs import only_folder, several_words, table, tiny_words

GOLDEN = Path(__file__).parents[1] / "golden"

RUNS = {
    "mvp on si_blurry": tiny_words("mvp", "protocol.updates_per_batch=2", "protocol.eval_every=10", "seed=2"),
    "multi_lane on mlcil": several_words("mlcil", "multi_lane", "seed=2"),
}
"""Name of a golden file -> the words of its run."""

TEXT = {"kind", "session"}


def close(name: str, value: str, golden: str) -> bool:
    if name in TEXT or not value or not golden:
        return value == golden
    relative, absolute = (1e-4, 1e-6) if "loss" in name else (0.0, 1e-3)
    return math.isclose(float(value), float(golden), rel_tol=relative, abs_tol=absolute)


@pytest.mark.parametrize("name", RUNS)
def test_curves_are_those_of_the_golden_run(name, one_thread, tmp_path):
    from tiny_runs import checked

    from cl_prompts.runs import prepared
    from cl_prompts.runs.execute import execute

    losses: list[float] = []
    build = prepared.build_learner

    def listened(*arguments):
        learner = build(*arguments)
        learner.strategy.batch_listeners.append(lambda strategy: losses.append(float(strategy.last_losses["total"])))
        return learner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "build_learner", listened)
        execute(checked(*RUNS[name], "progress=none", "tensorboard=false", f"output={tmp_path}"))
    folder = only_folder(tmp_path)
    found = {
        "words": RUNS[name],
        "plan": json.loads((folder / "plan.json").read_text(encoding="utf-8"))["sha256"],
        "training_losses": losses,
        "curves": table(folder / "curves.csv"),
    }
    path = GOLDEN / f"curves {name}.json".replace(" ", "_")
    if os.environ.get("GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert found["words"] == golden["words"]
    assert found["plan"] == golden["plan"]
    assert losses == pytest.approx(golden["training_losses"], rel=1e-4)
    assert [list(row) for row in found["curves"]] == [list(row) for row in golden["curves"]]
    different = [
        f"row {number}, {column}: {row[column]} instead of {expected[column]}"
        for number, (row, expected) in enumerate(zip(found["curves"], golden["curves"], strict=True))
        for column in row
        if not close(column, row[column], expected[column])
    ]
    assert not different
