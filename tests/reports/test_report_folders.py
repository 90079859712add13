"""What a report makes of folders that are unfinished, damaged, foreign, nested, linked, or made to do harm."""

from __future__ import annotations

import os
import shutil

import pytest
from saved_folders import write_json, write_run

from cl_prompts.errors import UserError
from cl_prompts.reports.report import read_report
from cl_prompts.reports.saved_run import find_runs
from cl_prompts.runs.report_files import deciding_values


def left_out(root):
    return {one.name: (one.status, one.reason) for one in find_runs(root)[1]}


def test_runs_that_did_not_finish_are_listed_and_in_no_mean(tmp_path):
    write_run(tmp_path, seed=1, a_last=0.5, name="good")
    for status, error in (("failed", "the disk is full"), ("interrupted", None), ("running", None)):
        facts = {"status": status, "error": error, "samples_seen": 40}
        write_run(tmp_path, seed=2, a_last=0.0, name=status, summary=facts)
    early = {"status": "failed", "error": "no such file", "samples_planned": None, "samples_seen": 0}
    write_run(tmp_path, seed=3, name="early", summary=early)
    report = read_report(tmp_path, deciding_values)
    assert report.blocks[0].rows[0].metrics["a_last"].n == 1
    assert left_out(tmp_path) == {
        "failed": ("failed", "after 40 of 100 samples: the disk is full"),
        "interrupted": ("interrupted", "after 40 of 100 samples"),
        "running": ("running", "after 40 of 100 samples; it still runs, or was killed"),
        "early": ("failed", "before its stream was there: no such file"),
    }
    assert "4 runs in no mean: 2 failed, 1 interrupted, 1 running; listed at the end" in report.warnings
    assert {one.label for one in report.left_out} == {"linear_probe, seed 2", "linear_probe, seed 3"}


DAMAGE = {
    "config that is no YAML": ("config.yaml", b"a: [", "config.yaml: cannot be read"),
    "config of references": ("config.yaml", b"a: &a [1]\nb: *a\n", "references, & and *, have no place in it"),
    "config that is a list": ("config.yaml", b"- a\n", "config.yaml: holds no named values"),
    "config that is no text": ("config.yaml", b"\xff\xfe\x00", "config.yaml: cannot be read"),
    "config that calls": ("config.yaml", b"!!python/object/apply:os.mkdir [canary]\n", "config.yaml: cannot be read"),
    "nested config": ("config.yaml", b"[" * 60 + b"]" * 60, "more than 50 values within values"),
    "deep config": ("config.yaml", b"[" * 100_000, "config.yaml: cannot be read"),  # by a limit of the reader's or ours
    "deep summary": ("summary.json", b"[" * 100000, "summary.json: cannot be read"),
    "cut summary": ("summary.json", b'{"status": "finished", "metr', "summary.json: cannot be read"),
    "empty summary": ("summary.json", b"", "summary.json: cannot be read"),
    "no manifest": ("manifest.json", None, "manifest.json: is missing"),
    "no summary": ("summary.json", None, "summary.json: is missing"),
    "manifest without hashes": ("manifest.json", b"{}", "manifest.json: holds no hash of the stream"),
    "manifest without weights": (
        "manifest.json",
        b'{"hashes": {"plan": "a"}}',
        "manifest.json: holds no identity of backbone",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folders_are_a_line_each(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, content, reason = DAMAGE[case]
    write_run(tmp_path / "runs", seed=1, name="good")
    bad = write_run(tmp_path / "runs", seed=2, name="bad")
    (bad / name).unlink()
    if content is not None:
        (bad / name).write_bytes(content)
    report = read_report(tmp_path / "runs", deciding_values)
    assert [row.seeds for row in report.blocks[0].rows] == [(1,)]
    status, found = left_out(tmp_path / "runs")["bad"]
    assert (status, reason in found, "\n" in found) == ("damaged", True, False)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        ({"metrics": {}}, "holds no metrics"),
        ({"metrics": None}, "holds no metrics"),
        ({"metrics": {"a_last": float("nan")}}, "the metric a_last is no number"),
        ({"metrics": {"a_last": [0.5]}}, "the metric a_last is no number"),
        ({"samples_seen": 90}, "says finished after 90 of 100 samples"),
    ],
)
def test_summaries_that_cannot_be_are_damaged(tmp_path, summary, reason):
    write_run(tmp_path, name="bad", summary=summary)
    assert left_out(tmp_path) == {"bad": ("damaged", f"summary.json: {reason}")}


def test_foreign_folders_are_named_once_at_their_top(tmp_path):
    write_run(tmp_path / "study", name="run")
    (tmp_path / "photos" / "2030" / "may").mkdir(parents=True)
    (tmp_path / "photos" / "2030" / "may" / "a.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "table.md").write_text("old")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("learning_rate: 0.1\n")
    assert left_out(tmp_path) == {
        "photos": ("foreign", "holds no run: no config.yaml in it"),
        "other": ("foreign", "config.yaml is none of a run: it lacks strategy, protocol or seed"),
    }
    assert [run.name for run in find_runs(tmp_path)[0]] == [os.path.join("study", "run")]


def test_links_are_followed_once(tmp_path):
    run = write_run(tmp_path / "elsewhere", name="run")
    study = tmp_path / "study"
    study.mkdir()
    (study / "linked").symlink_to(run)
    (study / "again").symlink_to(run)
    (study / "circle").symlink_to(study)
    (study / "lost").symlink_to(tmp_path / "nowhere")
    runs, others = find_runs(study)
    assert ([run.name for run in runs], others) == (["again"], [])


def test_a_run_itself_can_be_asked_for(tmp_path):
    run = write_run(tmp_path, name="run")
    (found,), others = find_runs(run)
    assert (found.name, others) == (".", [])


def test_a_file_that_would_never_end_is_not_read(tmp_path):
    run = write_run(tmp_path, name="run")
    (run / "summary.json").unlink()
    os.mkfifo(run / "summary.json")
    assert left_out(tmp_path) == {"run": ("damaged", "summary.json: is missing")}


def test_a_method_of_another_package_is_shown_with_what_its_folder_says(tmp_path):
    needs = {"gradient": True, "trains": "backbone"}
    facts = {"needs": needs, "deviations": ["it looks at the labels"]}
    run = write_run(tmp_path, seed=1, manifest=facts)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("name: linear_probe", "name: of_others"), encoding="utf-8")
    (row,) = read_report(tmp_path, deciding_values).blocks[0].rows
    assert row.label == "of_others head=linear temperature=0.1"
    assert row.cost.passes == 9
    assert row.method.deviations == ("it looks at the labels",)
    manifest = {**find_runs(tmp_path)[0][0].manifest}
    del manifest["needs"], manifest["deviations"]
    write_json(run / "manifest.json", manifest)
    (row,) = read_report(tmp_path, deciding_values).blocks[0].rows
    assert (row.method.needs, row.method.deviations, row.cost.passes) == (None, None, None)


def test_no_run_at_all_is_an_error_and_only_broken_ones_are_a_list(tmp_path):
    with pytest.raises(UserError, match="there is no run in it"):
        read_report(tmp_path, deciding_values)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="there is no run in it"):
        read_report(tmp_path, deciding_values)
    shutil.rmtree(tmp_path / "photos")
    write_run(tmp_path, name="bad", summary={"status": "failed"})
    report = read_report(tmp_path, deciding_values)
    assert (report.runs, report.blocks, len(report.left_out)) == (0, (), 1)
    assert report.warnings[-1] == "no run has finished, so there is no table"
