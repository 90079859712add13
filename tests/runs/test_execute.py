"""Whole runs of a second: what they write, what decides their numbers, and what does not."""

from __future__ import annotations

import errno
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from tiny_runs import FILES, checked, mean, table

from cl_prompts.errors import StrategyError, UserError
from cl_prompts.metrics.summary import METRICS
from cl_prompts.runs import execute as module
from cl_prompts.runs import prepared
from cl_prompts.runs.seeds import Seeds
from cl_prompts.strategies.declaration import read_settings, strategy_names
from scenarios import StreamPlan
from scenarios.plan import BLURRY, DISJOINT


def assert_equal_weights(first, second):
    assert first.weights.keys() == second.weights.keys()
    for name, tensor in first.weights.items():
        assert torch.equal(tensor, second.weights[name]), name


@pytest.mark.parametrize("strategy", strategy_names())
def test_every_strategy_runs_to_the_end_and_leaves_a_complete_folder(run_tiny, strategy):
    run = run_tiny(strategy)
    assert run.code == 0
    has_pool = run.learner.strategy.model.prompt_usage() is not None
    assert run.files == (FILES | {"usage.csv"} if has_pool else FILES)
    summary = run.summary
    assert (summary["status"], summary["error"], summary["samples_seen"]) == ("finished", None, 40)
    assert set(METRICS) <= set(summary["metrics"])
    # f_last and the two kinds of classes are defined on this stream, too.
    assert [name for name, value in summary["metrics"].items() if value is None] == []
    batches = sum(math.ceil(len(session) / 10) for session in StreamPlan.load(run.folder).sessions)
    needs = read_settings(strategy).needs
    assert summary["updates"] == batches * (3 if needs.gradient else 1)
    assert (summary["trainable_parameters"] > 0) == (needs.trains != "nothing")
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 2**20


def test_summary_is_what_the_curves_say(run_tiny):
    run = run_tiny("linear_probe")
    metrics = run.summary["metrics"]
    periodic, ends, final = run.rows("periodic"), run.rows("session"), run.rows("final")
    plan = StreamPlan.load(run.folder)
    assert [int(row["samples_seen"]) for row in ends] == plan.session_ends.tolist()
    assert [int(row["session"]) for row in ends] == [0, 1, 2, 3, 4]
    # The first batch end at or beyond each multiple of ten.
    ends_of_batches = [
        start + min(10 * n, len(s))
        for start, s in zip([0, *plan.session_ends], plan.sessions, strict=False)
        for n in range(1, math.ceil(len(s) / 10) + 1)
    ]
    due = sorted({min(end for end in ends_of_batches if end >= multiple) for multiple in (10, 20, 30, 40)})
    assert [int(row["samples_seen"]) for row in periodic] == due
    assert len(final) == 1
    assert metrics["anytime_points"] == len(periodic) + 1
    assert metrics["sessions_measured"] == len(ends)
    assert metrics["a_auc"] == pytest.approx(mean([row["accuracy"] for row in periodic]), abs=1e-15)
    assert metrics["a_avg"] == pytest.approx(mean([row["accuracy"] for row in ends]), abs=1e-15)
    assert metrics["a_last"] == float(ends[-1]["accuracy"]) == float(final[0]["accuracy"])
    assert metrics["exposed_classes"] == int(final[0]["exposed_classes"]) == 10
    assert float(periodic[-1]["a_auc"]) == metrics["a_auc"]
    points = run.learner.evaluation.points + run.learner.evaluation.sessions
    assert len(run.curves) == len(points)
    positions = [int(row["samples_seen"]) for row in run.curves]
    assert positions == sorted(positions)
    classes = table(run.folder / "class_accuracy.csv")
    last = [float(value) for name, value in classes[-1].items() if name not in ("session", "samples_seen")]
    counts = run.learner.evaluation.sessions[-1].count
    assert np.average(last, weights=counts) == pytest.approx(metrics["a_last"], abs=1e-12)


def test_usage_tells_how_often_each_prompt_was_chosen_by_the_end_of_each_session(run_tiny):
    run = run_tiny("mvp", "strategy.pool_size=3")
    rows = table(run.folder / "usage.csv")
    assert list(rows[0]) == ["session", "samples_seen", "prompt_0", "prompt_1", "prompt_2"]
    assert [row["samples_seen"] for row in rows] == [row["samples_seen"] for row in run.rows("session")]
    counts = np.array([[int(row[f"prompt_{number}"]) for number in range(3)] for row in rows])
    assert (np.diff(counts, axis=0) >= 0).all()
    assert counts[-1].tolist() == run.learner.strategy.model.prompt_usage().tolist()


def test_config_file_reads_back_as_the_same_configuration(run_tiny):
    run = run_tiny("mvp", "protocol.lr=0.0001", "name=a run", "strategy.general_layers=[0]")
    again = checked(config_dir=run.folder, config_name="config")
    assert again.to_yaml() == run.text("config.yaml")
    assert (again.protocol.lr, again.name, again.strategy.general_layers) == (0.0001, "a run", (0,))
    assert run.folder.name == "a run"


def test_manifest_says_what_the_variant_of_a_method_chose(run_tiny):
    strategy = run_tiny("mvp", "strategy.variant=paper", "strategy.focal=none").manifest["strategy"]
    chosen = {key: strategy[key] for key in ("name", "variant", "contrast", "focal", "query_blocks")}
    assert chosen == {
        "name": "mvp",
        "variant": "paper",
        "contrast": "per_query",
        "focal": "none",
        "query_blocks": 2,  # all blocks of the tiny backbone
    }


def test_manifest_names_what_the_numbers_rest_on(run_tiny):
    run = run_tiny("ncm", "seed=3")
    manifest, plan = run.manifest, StreamPlan.load(run.folder)
    assert plan.sha256 == manifest["hashes"]["plan"] == json.loads(run.text("plan.json"))["sha256"]
    assert manifest["hashes"]["backbone"]["checkpoint"] == "untrained"
    assert manifest["hashes"]["backbone"]["depth"] == 2
    half = [0.5, 0.5, 0.5]
    assert manifest["hashes"]["backbone"]["normalisation"] == {"rule": "checkpoint", "mean": half, "std": half}
    assert manifest["strategy"] == {"name": "ncm", "similarity": "cosine"}
    assert manifest["needs"] == read_settings("ncm").needs.model_dump(mode="json")
    assert manifest["deviations"] == run.summary["deviations"] == []
    digests = [manifest["hashes"][part]["sha256"] for part in ("train", "test")]
    assert all(len(digest) == 64 for digest in digests)
    assert digests[0] != digests[1]
    seeds = Seeds.from_root(3)
    assert manifest["seeds"] == {
        "plan": 3,
        "init": seeds.init,
        "augment": seeds.augment,
        "replay": seeds.replay,
        "order": seeds.order,
    }
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert manifest["device"] == "cpu"


@pytest.mark.parametrize("strategy", ["mvp", "single_prompt"])
def test_the_same_configuration_gives_the_same_bits_and_another_seed_others(run_tiny, strategy):
    first = run_tiny(strategy)
    torch.manual_seed(99)
    second = run_tiny(strategy)
    assert second.text("curves.csv") == first.text("curves.csv")
    assert second.text("class_accuracy.csv") == first.text("class_accuracy.csv")
    assert_equal_weights(first, second)
    other = run_tiny(strategy, "seed=2", "scenario.seed=1")
    assert other.manifest["hashes"]["plan"] == first.manifest["hashes"]["plan"]
    assert any(not torch.equal(tensor, other.weights[name]) for name, tensor in first.weights.items())


def test_watching_a_run_leaves_no_trace_in_its_weights(run_tiny):
    """With random crops and a replay memory, so that any extra draw would show."""
    replay = ("protocol.memory_size=20", "protocol.replay_batch=5", "protocol.augmentation=crop_flip")
    plain = run_tiny("mvp", *replay)
    final = {key: plain.rows("final")[0][key] for key in ("samples_seen", "accuracy", "exposed_classes")}
    for words in (
        ("protocol.eval_every=0",),
        ("protocol.eval_every=3", "progress=plain", "tensorboard=true"),
        ("num_workers=2", "progress=bar"),
        ("scenario.task_label=0", "protocol.anytime_rule=official", "protocol.eval_batch=7"),
    ):
        watched = run_tiny("mvp", *replay, *words)
        assert watched.code == 0
        assert_equal_weights(plain, watched)
        assert {key: watched.rows("final")[0][key] for key in final} == final


def test_a_saved_plan_is_the_stream_whatever_the_scenario_says(run_tiny):
    first = run_tiny("linear_probe", "scenario.seed=7", "scenario.n_sessions=3")
    second = run_tiny("linear_probe", f"scenario.plan={first.folder}")
    assert second.manifest["hashes"]["plan"] == first.manifest["hashes"]["plan"]
    assert second.manifest["seeds"]["plan"] == 7
    assert second.text("curves.csv") == first.text("curves.csv")
    assert second.text("plan.json") == first.text("plan.json")
    assert second.summary["metrics"] == first.summary["metrics"]


def test_a_merged_stream_has_full_batches_and_still_reports_its_sessions(run_tiny):
    run = run_tiny("mvp", "scenario.view=merged")
    assert run.code == 0
    assert len(list(run.learner.benchmark.train_stream)) == 1
    # Forty samples in batches of ten, none cut short by a session's end.
    assert run.summary["updates"] == 4 * 3
    ends = StreamPlan.load(run.folder).session_ends
    measured = [int(row["samples_seen"]) for row in run.rows("session")]
    assert measured == [math.ceil(end / 10) * 10 for end in ends]
    assert run.summary["metrics"]["sessions_measured"] == 5
    assert run.summary["metrics"]["a_avg"] == pytest.approx(mean([row["accuracy"] for row in run.rows("session")]))


def test_replay_is_mvp_r(run_tiny):
    without = run_tiny("mvp")
    replay = ("protocol.memory_size=20", "protocol.replay_batch=5")
    first, second = run_tiny("mvp", *replay), run_tiny("mvp", *replay)
    assert_equal_weights(first, second)
    assert first.summary["updates"] == without.summary["updates"]
    assert first.summary["samples_seen"] == 40
    assert any(not torch.equal(tensor, without.weights[name]) for name, tensor in first.weights.items())
    released = run_tiny("mvp", *replay, "protocol.reservoir=released")
    assert released.code == 0


@pytest.mark.parametrize(
    ("scenario", "disjoint", "blurry"), [("i_blurry", 5, 5), ("disjoint", 10, 0), ("iid", 0, 10), ("si_blurry", 5, 5)]
)
def test_every_scenario_runs(run_tiny, scenario, disjoint, blurry):
    run = run_tiny("ncm", f"scenario={scenario}", "scenario.n_sessions=2")
    assert run.summary["status"] == "finished"
    plan = StreamPlan.load(run.folder)
    assert [(plan.class_kind == kind).sum() for kind in (DISJOINT, BLURRY)] == [disjoint, blurry]
    metrics = run.summary["metrics"]
    assert [metrics[f"a_last_{kind}"] is None for kind in ("disjoint", "blurry")] == [disjoint == 0, blurry == 0]


def test_without_periodic_points_the_anytime_metric_is_the_final_accuracy(run_tiny):
    run = run_tiny("ncm", "protocol.eval_every=0")
    assert run.rows("periodic") == []
    assert run.summary["metrics"]["a_auc"] == float(run.rows("final")[0]["accuracy"])


@pytest.mark.parametrize(
    "words",
    [
        ("protocol.precision=bf16", "protocol.optimizer=sgd", "protocol.momentum=0.9", "protocol.lr=0.1"),
        ("protocol.updates_per_batch=0.5", "protocol.optimizer=adamw", "protocol.weight_decay=0.01"),
        ("protocol.train_mask=none", "protocol.eval_mask=none", "protocol.stream_batch=1"),
        ("scenario=disjoint", "protocol.train_mask=task", "protocol.augmentation=autoaugment_cifar10"),
        ("protocol.train_mask=session", "protocol.augment_per=batch", "backbone.normalisation=dataset"),
        ("scenario.mode=official", "strategy.variant=paper", "protocol.train_mask=batch"),
    ],
)
def test_protocols_run(run_tiny, words):
    run = run_tiny("mvp", *words, "scenario.n_sessions=2")
    assert run.code == 0
    assert run.summary["status"] == "finished"
    assert all(torch.isfinite(tensor.float()).all() for tensor in run.weights.values())


def subscribe_first(monkeypatch, listener):
    """Let `listener` see every evaluation before the run's own record does."""
    build = prepared.build_learner

    def build_and_subscribe(*arguments):
        learner = build(*arguments)
        learner.evaluation.subscribe(listener)
        return learner

    monkeypatch.setattr(prepared, "build_learner", build_and_subscribe)


def stop_at(monkeypatch, sample, error):
    """Let the run end with `error` at the first evaluation at or after `sample`."""

    def stop(strategy, point):
        if point.samples_seen >= sample:
            raise error

    subscribe_first(monkeypatch, stop)


def test_an_interrupted_run_keeps_what_it_measured(run_tiny, monkeypatch, capsys):
    whole = run_tiny("linear_probe")
    capsys.readouterr()
    stop_at(monkeypatch, 20, KeyboardInterrupt())
    run = run_tiny("linear_probe", "tensorboard=true")
    assert run.code == 130
    assert (run.summary["status"], run.summary["error"]) == ("interrupted", None)
    assert (run.summary["samples_planned"], run.summary["sessions_planned"]) == (40, 5)
    assert run.summary["metrics"]["sessions_measured"] < 5
    assert {run.summary["metrics"][name] for name in ("a_last", "a_last_disjoint", "a_last_blurry")} == {None}
    assert 20 <= run.summary["samples_seen"] < 40
    assert run.curves == whole.curves[: len(run.curves)]
    measured = run.summary["metrics"]
    assert len(run.curves) == measured["anytime_points"] + measured["sessions_measured"] < len(whole.curves)
    periodic = [row["accuracy"] for row in run.rows("periodic")]
    assert run.summary["metrics"]["a_auc"] == pytest.approx(mean(periodic))
    assert run.files == FILES - {"checkpoints", "model.safetensors"} | {"tensorboard"}
    told = capsys.readouterr()
    assert "interrupted after 0:" in told.out
    assert str(run.folder) in told.out
    assert " of 40 samples" in told.out
    assert " of 5 sessions, too few for a_last" in told.out


def test_sigterm_ends_a_run_like_ctrl_c(run_tiny, monkeypatch, capsys):
    reached = []

    def terminate(strategy, point):
        if point.samples_seen >= 20:
            # The first waits for the end of the batch, the second does not, and the third is not heard.
            for _ in range(3):
                reached.append(point.samples_seen)
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        subscribe_first(monkeypatch, terminate)
        run = run_tiny("linear_probe")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run.code == 143
    assert len(reached) == 2
    assert run.summary["status"] == "interrupted"
    assert 20 <= run.summary["samples_seen"] < 40
    assert "interrupted after 0:" in capsys.readouterr().out


@pytest.mark.parametrize("progress", ["none", "plain"])
def test_what_makes_results_doubtful_is_always_said_once_and_kept(run_tiny, progress, capsys):
    run = run_tiny("ncm", "scenario.mode=official", "scenario.n_sessions=3", f"progress={progress}")
    notices = run.manifest["notices"]
    assert notices[0].startswith("UNTRAINED BACKBONE")
    assert set(StreamPlan.load(run.folder).warnings) <= set(notices)
    assert len(notices) >= 2
    told = capsys.readouterr().err
    assert [told.count(f"warning   {text}\n") for text in notices] == [1] * len(notices)
    assert told.count("warning   ") == len(notices)
    assert run.manifest["skipped"] == {"train": [], "test": []}


@pytest.mark.parametrize("progress", ["none", "plain"])
def test_reading_images_is_reported_unless_silence_is_wanted(run_tiny, progress, monkeypatch):
    build, given = prepared.build_data, []
    monkeypatch.setattr(prepared, "build_data", lambda config, report: given.append(report) or build(config))
    run_tiny("ncm", f"progress={progress}")
    assert [report is None for report in given] == [progress == "none"]


def test_a_failed_run_says_why_and_keeps_what_it_measured(tmp_path, run_tiny, monkeypatch):
    stop_at(monkeypatch, 20, ValueError("not foreseen\nsecond line"))
    with pytest.raises(ValueError, match="not foreseen"):
        run_tiny("linear_probe", "name=broken")
    (folder,) = tmp_path.glob("*/broken")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "failed"
    assert summary["error"] == "ValueError: not foreseen (unexpected; run again with debug=true to see where)"
    assert summary["metrics"]["anytime_points"] >= 1
    assert len(table(folder / "curves.csv")) >= 2


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, run_tiny):
    with pytest.raises(StrategyError, match=r"the loss is not finite after \d+ samples and \d+ updates .*lower"):
        run_tiny("mvp", "protocol.lr=1e30", "name=broken")
    (folder,) = tmp_path.glob("*/broken")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "failed"
    assert summary["error"].startswith("the loss is not finite after")


def test_a_disk_that_fills_up_still_gets_the_reason_into_the_summary(tmp_path, run_tiny, monkeypatch, capsys):
    flush = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(strategy, point):
        if point.samples_seen >= 20:
            monkeypatch.setattr(os, "fsync", full)

    subscribe_first(monkeypatch, fill)
    with pytest.raises(UserError, match=r"cannot write .*curves\.csv \(No space left on device\)"):
        run_tiny("linear_probe", "name=full")
    monkeypatch.setattr(os, "fsync", flush)
    (folder,) = tmp_path.glob("*/full")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "failed"
    assert "curves.csv (No space left on device)" in summary["error"]
    assert table(folder / "curves.csv")
    assert {path.name for path in folder.iterdir()} <= FILES
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_before_the_folder_exists_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = checked("strategy=ncm", "device=cuda", f"output={tmp_path / 'runs'}")
    with pytest.raises(Exception, match="device=cuda: torch sees no CUDA device here"):
        module.execute(config)
    assert list(tmp_path.iterdir()) == []
