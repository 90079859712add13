"""A large study: five hundred runs are read, grouped and drawn while one waits."""

from __future__ import annotations

import time

import pytest
from saved_folders import write_curves, write_run, write_usage

from cl_prompts.runs.command_line import main


@pytest.mark.slow
def test_five_hundred_runs_take_less_than_twenty_seconds(tmp_path, capsys):
    methods = {
        f"{strategy} {number}": (strategy, {f"strategy.{key}": value})
        for strategy, key, values in (
            ("linear_probe", "temperature", range(1, 11)),
            ("mvp", "pool_size", range(1, 11)),
            ("single_prompt", "prompt_length", range(1, 6)),
        )
        for number in values
        for value in [float(number) if key == "temperature" else number]
    }
    for mask in ("exposed", "batch"):
        for strategy, changes in methods.values():
            for seed in range(10):
                # Of a hundred classes in ten sessions, evaluated a hundred times.
                changed = changes | {"protocol.train_mask": mask}
                folder = write_run(tmp_path / mask / strategy, strategy, seed, 0.3 + seed / 100, changes=changed)
                write_curves(folder, [0.5 + point / 1000 for point in range(100)])
                header = ",".join(["session", "samples_seen", *(f"class {number}" for number in range(100))])
                rows = [",".join([str(one), str(500 * one), *["0.5"] * 100]) for one in range(10)]
                (folder / "class_accuracy.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
                if strategy == "mvp":
                    write_usage(folder, [[10 * one + place for place in range(10)] for one in range(10)])
    started = time.perf_counter()
    assert main(["mode=report", f"runs={tmp_path}"]) == 0
    assert time.perf_counter() - started < 20
    assert (tmp_path / "report" / "report.html").stat().st_size < 5e6
    assert "500 runs in" in (tmp_path / "report" / "table.md").read_text(encoding="utf-8")
    with capsys.disabled():
        size = (tmp_path / "report" / "report.html").stat().st_size / 1e6
        print(f"500 runs: {time.perf_counter() - started:.1f} s, page {size:.1f} MB")
