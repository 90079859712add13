"""What is done before anything heavy is imported: files that cannot be had are known in seconds."""

from __future__ import annotations

import subprocess
import sys

from tiny_runs import checked

from cl_prompts.runs import jobs

NO_NETWORK = """
import socket, sys
def refuse(*arguments, **keywords):
    raise OSError("no network")
socket.create_connection = socket.socket.connect = refuse
from cl_prompts.runs import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
raise SystemExit(code)
"""


def test_data_that_cannot_be_had_stop_before_torch_is_imported_and_leave_no_folder(tmp_path):
    words = ["dataset=cifar10", f"dataset.root={tmp_path / 'data'}", f"output={tmp_path / 'runs'}", "strategy=ncm"]
    done = subprocess.run([sys.executable, "-c", NO_NETWORK, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cifar-10-python.tar.gz" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_data_that_are_there_are_left_alone(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(jobs, "provide_dataset", lambda name, settings: asked.append((name, settings.subset_seed)))
    monkeypatch.setattr("cl_prompts.runs.execute.execute", lambda config: 0)
    config = checked("strategy=ncm", "dataset.subset_seed=4", f"output={tmp_path}")
    assert jobs.perform(config) == 0
    assert asked == [("digits", 4)]
