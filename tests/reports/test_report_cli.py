"""`mode=report`: what it writes and says, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from saved_folders import write_run

from cl_prompts.runs.command_line import main

ROOT = Path(__file__).parents[2]


def test_the_report_is_written_and_its_place_said(tmp_path, capsys):
    write_run(tmp_path / "runs", name="run")
    assert main(["mode=report", f"runs={tmp_path / 'runs'}"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert f"written  {tmp_path / 'runs' / 'report'}{os.sep}: " in output
    names = {path.name for path in (tmp_path / "runs" / "report").iterdir()}
    assert names >= {"table.md", "table.csv", "table.tex"}
    elsewhere = tmp_path / "a" / "new folder"
    assert main(["mode=report", f"runs={tmp_path / 'runs'}", f"report={elsewhere}"]) == 0
    assert {path.name for path in elsewhere.iterdir()} == names
    # The first report is no run.
    assert "foreign" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ((), 2, "runs: must be given, a folder"),
        (("runs=nowhere",), 2, "runs=nowhere: there is no such folder; give the folder of the runs, such as runs=runs"),
        (("runs=empty",), 1, "runs=empty: there is no run in it (no folder with a config.yaml)"),
        (("runs=runs", "refernce=mvp"), 2, "refernce=mvp: unknown key; did you mean reference?"),
        (("runs=runs", "report=file"), 2, "report=file: is a file; give a folder"),
        (("runs=runs", "report=file/in"), 1, "cannot write file/in (Not a directory)"),
        (("runs=runs", "reference=mvp"), 1, "reference=mvp: no such row; choose one of 'linear_probe head=linear'"),
        (("runs=runs", "debug=maybe"), 2, "debug=maybe: must be"),
    ],
)
def test_every_mistake_is_one_line(tmp_path, monkeypatch, capsys, words, code, line):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", name="run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert main(["mode=report", *words]) == code
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {line}")


def test_help_names_the_keys(capsys):
    assert main(["mode=report", "--help"]) == 0
    page = capsys.readouterr().out
    assert "mode=report runs=DIR" in page
    assert all(f"\n  {key} " in page for key in ("runs", "reference", "report"))


def test_nothing_heavy_is_loaded(tmp_path):
    write_run(tmp_path / "runs", name="run")
    code = (
        "import sys; from cl_prompts.runs import main\n"
        "assert main(['mode=report', 'runs=runs']) == 0\n"
        "print(sorted({'torch', 'avalanche', 'timm', 'matplotlib', 'pandas', 'tensorboard'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
