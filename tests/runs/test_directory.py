"""The run directory: unique, atomic, complete, and one clear line where it cannot be written."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from evaluation_points import small_run
from multi_label_cases import multi_label_point

from cl_prompts.errors import UserError
from cl_prompts.metrics import MultiLabelTables, SingleLabelTables
from cl_prompts.runs.directory import RunDirectory, RunSummary
from cl_prompts.runs.files import atomic_file, json_value, write_text
from scenarios.multi_label_settings import MultiLabelEvaluationSettings

NOW = datetime(2024, 2, 3, 4, 5, 6)


def test_runs_of_the_same_second_never_share_a_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunDirectory.create(tmp_path / "a/b", None, NOW, label="mvp"), range(40)))
    assert len({run.path for run in made}) == 40
    assert all(run.path.is_dir() for run in made)
    assert {"2024-02-03_04-05-06_mvp", "2024-02-03_04-05-06_mvp_40"} <= {run.path.name for run in made}


def test_a_given_name_is_the_folder_and_never_reuses_one(tmp_path):
    assert RunDirectory.create(tmp_path, "mine", NOW).path == tmp_path / "mine"
    (tmp_path / "mine" / "summary.json").write_text("{}")
    assert RunDirectory.create(tmp_path, "mine", NOW).path == tmp_path / "mine_2"
    assert RunDirectory.create(tmp_path, None, NOW, label="a b/c:d").path.name == "2024-02-03_04-05-06_a-b-c-d"


@pytest.mark.parametrize("name", ["", "  ", "a/b", "..", ".", "/", "a\0b"])
def test_a_name_that_leaves_the_output_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="name=") as error:
        RunDirectory.create(tmp_path / "runs", name, NOW)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_an_output_that_cannot_be_a_folder_is_one_line(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    for output in (blocker, blocker / "below"):
        with pytest.raises(UserError, match=r"output=.*cannot make a folder") as error:
            RunDirectory.create(output, None, NOW)
        assert "\n" not in str(error.value)


def test_all_files_of_a_run_can_be_read_back(tmp_path):
    run = RunDirectory.create(tmp_path, "run", NOW)
    points, sessions, kinds = small_run()
    run.write_config("strategy:\n  name: mvp\n")
    run.write_manifest({"hashes": {"plan": "ab"}, "numbers": np.arange(2), "path": tmp_path})
    tables = SingleLabelTables(kinds)
    run.write_curves(tables, points, sessions)
    run.write_class_table(tables, sessions, ["cat", "dog, big", "bird"])
    metrics = tables.summarise(points, sessions)
    run.write_summary(RunSummary(status="finished", metrics=metrics, samples_seen=30, updates=9, seconds=1.5))

    assert (run.path / "config.yaml").read_text() == "strategy:\n  name: mvp\n"
    assert json.loads((run.path / "manifest.json").read_text()) == {
        "hashes": {"plan": "ab"},
        "numbers": [0, 1],
        "path": str(tmp_path),
    }
    with (run.path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["samples_seen"]) for row in rows] == [12, 16, 22, 30, 30]
    assert rows[0]["accuracy_blurry"] == ""
    assert float(rows[-1]["a_auc"]) == metrics["a_auc"]
    with (run.path / "class_accuracy.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["session", "samples_seen", "cat", "dog, big", "bird"]
    assert table[1] == ["0", "16", "1.0", "0.5", ""]
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["metrics"] == metrics
    assert (summary["samples_seen"], summary["updates"], summary["error"]) == (30, 9, None)


def test_files_of_a_run_with_several_labels(tmp_path):
    run = RunDirectory.create(tmp_path, "run", NOW)
    sessions = [
        multi_label_point(20, 2, kind="session", session=0),
        multi_label_point(40, 4, kind="session", session=1),
    ]
    points = [multi_label_point(10, 1), multi_label_point(40, 4, kind="final")]
    tables = MultiLabelTables(np.zeros(4, int), MultiLabelEvaluationSettings())
    run.write_curves(tables, points, sessions)
    run.write_class_table(tables, sessions, ["cat", "dog, big", "bird", "bee"])
    metrics = tables.summarise(points, sessions, sessions_planned=2)
    run.write_summary(RunSummary(status="finished", metrics=metrics))

    with (run.path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == tables.curve_columns
    assert [int(row["samples_seen"]) for row in rows] == [10, 20, 40, 40]
    assert [row["exposed_classes"] for row in rows] == ["1", "2", "4", "4"]
    assert rows[0]["map_blurry"] == ""
    assert rows[1]["map_anytime"] == rows[0]["map"]
    assert float(rows[-1]["map"]) == metrics["map_last"]
    with (run.path / "class_average_precision.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["session", "samples_seen", "cat", "dog, big", "bird", "bee"]
    assert table[1][4:] == ["", ""]
    assert [float(cell) for cell in table[2][2:]] == sessions[1].class_average_precision.tolist()
    assert not (run.path / "class_accuracy.csv").exists()
    assert json.loads((run.path / "summary.json").read_text())["metrics"] == metrics


@pytest.mark.parametrize("old", [None, b"", b"\xff", b"session,samples_seen,prompt_0\nx,y,z\n"])
def test_usage_keeps_earlier_sessions_and_measures_later_ones_again(tmp_path, old):
    run = RunDirectory(tmp_path)
    if old is not None:
        (tmp_path / "usage.csv").write_bytes(old)
    for session, counts in ((0, [1, 0]), (1, [2, 0]), (2, [3, 3]), (1, [2, 5])):
        run.write_usage(session, 10 * session + 10, counts)
    lines = (tmp_path / "usage.csv").read_text(encoding="utf-8").splitlines()
    assert lines == ["session,samples_seen,prompt_0,prompt_1", "0,10,1,0", "1,20,2,5"]


def test_no_number_in_a_json_file_is_outside_json():
    value = json_value(
        {"a": float("nan"), "b": [np.float32("inf"), np.int64(3), np.bool_(True)], "c": (1.5, None, "x")}
    )
    assert value == {"a": None, "b": [None, 3, True], "c": [1.5, None, "x"]}
    assert json_value(np.array([[1.0, np.nan]])) == [[1.0, None]]
    json.dumps(value, allow_nan=False)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_text(path, "old")

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(UserError, match=r"cannot write .*summary.json \(No space left on device\)") as error:
            write_text(path, "new")
    assert "\n" not in str(error.value)

    def interrupted():
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits of the system")
def test_a_full_disk_is_one_line(tmp_path):
    code = f"""
import resource
from datetime import datetime
from cl_prompts.errors import UserError
from cl_prompts.runs.directory import RunDirectory
run = RunDirectory.create({str(tmp_path)!r}, "run", datetime.now())
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    run.write_config("x" * 1000)
except UserError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True).stdout
    assert printed.count("\n") == 1
    assert "config.yaml (File too large)" in printed
    assert os.listdir(tmp_path / "run") == []


def test_a_missing_folder_is_one_line(tmp_path):
    run = RunDirectory(tmp_path / "gone")
    for write in (lambda: run.write_config(""), lambda: run.write_prediction_table("x.csv", [])):
        with pytest.raises(UserError, match="No such file"):
            write()


def test_the_stream_is_saved_and_its_failure_is_one_line(tmp_path):
    from scenarios.plan import StreamPlan
    from scenarios.si_blurry import si_blurry_plan

    plan = si_blurry_plan(np.arange(60) % 6, n_sessions=3, seed=1)
    run = RunDirectory.create(tmp_path, "run", NOW)
    run.write_plan(plan)
    assert StreamPlan.load(run.path).sha256 == plan.sha256
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        RunDirectory(tmp_path / "file").write_plan(plan)
