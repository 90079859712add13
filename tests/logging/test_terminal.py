"""Progress on a terminal and in a log file, header and summary."""

from __future__ import annotations

import io
import os

import pytest
from evaluation_points import point
from multi_label_cases import multi_label_point
from rich.console import Console

from cl_prompts.errors import UserError
from cl_prompts.logging import TerminalProgress, print_header, print_summary, reading_progress
from cl_prompts.logging.console import clock_time, percent
from cl_prompts.metrics import METRICS, MultiLabelTables
from scenarios.multi_label_settings import MultiLabelEvaluationSettings


def widest(text: str) -> int:
    """Columns of the widest line; the one that names a folder is as long as that is."""
    return max(len(line) for line in text.splitlines() if not line.startswith("written "))


def terminal(**options):
    return Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": "xterm"}, **options)


def log_file():
    return Console(file=io.StringIO())


def test_plain_lines_come_rarely_and_the_last_one_always(stub, clock):
    console = log_file()
    strategy = stub()
    progress = TerminalProgress(8000, console=console, mode="plain", clock=clock)
    strategy.walk(progress, 1000, lambda: clock.sleep(0.1))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("800 of 8,000 samples (10 %) | 80 samples/s | 1:30 left | running accuracy 75.0 %")
    assert lines[0].endswith("loss total 2, cross_entropy 1.5, prompt 0.5")
    assert lines[-1].startswith("8,000 of 8,000 samples (100 %) | 80 samples/s | in 1:40")
    # Nothing is read from the device except for a line.
    assert strategy.running_accuracy.reads == len(lines)


@pytest.mark.parametrize("seconds, total, expected", [(0.001, 8000, 1), (10.0, None, 166), (1.0, 10**7, 16)])
def test_plain_lines_of_short_endless_and_slow_runs(stub, clock, seconds, total, expected):
    console = log_file()
    stub().walk(TerminalProgress(total, console=console, mode="plain", clock=clock), 1000, lambda: clock.sleep(seconds))
    assert len(console.file.getvalue().splitlines()) == expected


def test_anytime_accuracy_joins_the_line_and_its_time_is_no_training(stub, clock):
    console = log_file()
    strategy = stub()
    progress = TerminalProgress(80, console=console, mode="plain", clock=clock)
    measured = iter([point(8, [1, 0], [2, 0]), point(16, [3, 0], [4, 0]), point(24, [3, 0], [4, 0], kind="final")])
    session_end = point(24, [2, 0], [2, 0], kind="session", session=0)

    def batch():
        clock.sleep(1)
        progress.after_update(strategy)
        clock.sleep(99)
        progress.on_evaluation(strategy, next(measured, session_end))

    strategy.walk(progress, 10, batch)
    last = console.file.getvalue().splitlines()[-1]
    assert "| 8.0 samples/s |" in last
    assert "| anytime 75.0 %, A_AUC so far 62.5 % |" in last


def test_points_of_before_a_resume_count(stub, clock):
    console = log_file()
    strategy = stub()
    strategy.samples_seen = 40
    progress = TerminalProgress(
        80, console=console, mode="plain", clock=clock, previous=[point(8, [1, 0], [2, 0]), point(16, [2, 0], [2, 0])]
    )
    strategy.walk(progress, 5, lambda: clock.sleep(2))
    lines = console.file.getvalue().splitlines()
    assert "A_AUC so far 75.0 %" in lines[0]
    assert lines[0].startswith("56 of 80 samples (70 %) | 4.0 samples/s | 0:06 left")


def test_bar_is_drawn_on_a_terminal_and_leaves_one_line(stub, clock):
    console = terminal()
    progress = TerminalProgress(80, console=console, clock=clock)
    strategy = stub()
    strategy.walk(progress, 5, lambda: clock.sleep(1))
    drawn = console.file.getvalue()
    assert "━" in drawn
    assert "40 of 80 samples (50 %)" in drawn
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1
    erase_two_lines = "\x1b[1A\x1b[2K" * 2
    assert drawn.rpartition("\x1b[?25h")[2].endswith(erase_two_lines)
    strategy.walk(progress, 5, lambda: clock.sleep(1))
    drawn = console.file.getvalue()
    assert drawn.rstrip().splitlines()[-1].endswith("loss total 2, cross_entropy 1.5, prompt 0.5")
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 2
    assert strategy.running_accuracy.reads == 10 + 1


def test_closing_after_an_error_gives_the_cursor_back(stub, clock):
    console = terminal()
    strategy = stub()

    class Stop(Exception):
        pass

    batches = iter([lambda: clock.sleep(1)] * 3)

    def run():
        with TerminalProgress(80, console=console, mode="auto", clock=clock) as progress:
            strategy.walk(progress, 5, lambda: next(batches, stop)())

    def stop():
        raise Stop

    with pytest.raises(Stop):
        run()
    assert console.file.getvalue().count("\x1b[?25h") == 1


def test_mode_auto_prints_lines_into_a_file_and_none_prints_nothing(stub, clock):
    for mode, printed in (("auto", True), ("none", False)):
        console = log_file()
        stub().walk(TerminalProgress(80, console=console, mode=mode, clock=clock), 10, lambda: clock.sleep(3))
        text = console.file.getvalue()
        assert bool(text) == printed
        assert "\x1b" not in text
    with pytest.raises(UserError, match=r"progress='fancy'.*auto, bar, plain, none"):
        TerminalProgress(80, mode="fancy")


def test_progress_under_stock_naive(naive, plan):
    console = log_file()
    progress = TerminalProgress(plan.num_samples, console=console, mode="plain")
    strategy, stream = naive(progress)
    for experience in stream:
        strategy.train(experience, shuffle=False)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("80 of 80 samples (100 %)")
    assert "loss total" in line
    assert "running accuracy" in line
    assert "running accuracy -" not in line


def test_header_keeps_lines_whole_and_labels_aligned(plan):
    console = Console(file=io.StringIO(), width=40)
    long = "a sentence that is longer than the console is wide, [bold]and not markup"
    print_header({"data": long, "stream": plan.describe()}, warnings=["the backbone is untrained"], console=console)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == f"data      {long}"
    assert [line.rstrip() for line in lines[1:-1]] == [line.rstrip() for line in plan.describe()]
    assert lines[-1] == "warning   the backbone is untrained"


def summary(**changes):
    metrics = dict.fromkeys(METRICS, 0.5) | {"f_last": None, "f_last_classes": 0, "anytime_points": 20}
    return {
        "status": "finished",
        "seconds": 75,
        "metrics": metrics | {"a_auc": 0.12345, "sessions_measured": 5},
        "samples_seen": 12000,
        "updates": 300,
        "trainable_parameters": 54321,
        "peak_memory_bytes": 2**30,
        "peak_gpu_memory_bytes": None,
    } | changes


def test_summary_shows_every_metric_and_where_everything_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "my run"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    (folder / ".summary.json.1.tmp").write_text("")
    console = Console(file=io.StringIO(), width=80)
    print_summary(summary(), folder, console=console)
    text = console.file.getvalue()
    for name in METRICS:
        assert name in text
    row = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if line.startswith("│")}
    assert (row["a_auc"], row["a_last"], row["f_last"]) == ("12.3", "50.0", "-")
    assert "finished in 1:15" in text
    assert "based on  12,000 samples, 300 updates, 20 anytime evaluations,\n          5 sessions, f_last over " in text
    assert widest(text) <= 80
    assert "54,321 trainable parameters, 1,024 MiB peak memory\n" in text
    assert f"written   runs{os.sep}my run{os.sep}\n" in text
    assert f"files     summary.json, tensorboard{os.sep}\n" in text
    assert "curves    tensorboard --logdir 'runs/my run'\n" in text
    assert "deviates" not in text


def test_summary_says_where_a_method_leaves_its_paper(tmp_path):
    texts = ["a sentence that is longer than what a terminal of eighty columns has room for in a line", "another one"]
    console = log_file()
    print_summary(summary() | {"deviations": texts}, tmp_path, console=console)
    shown = console.file.getvalue()
    assert [line[10:] for line in shown.splitlines() if line.startswith("deviates  ")] == [texts[0][:68], "another one"]
    assert "          room for in a line\n" in shown or "          for in a line\n" in shown
    assert widest(shown) <= 80


@pytest.mark.parametrize("eval_images", ["seen", "all", "final_seen"])
@pytest.mark.parametrize("cf1", ["mean_f1", "from_mean_pr"])
def test_summary_of_several_labels_shows_its_own_metrics(tmp_path, eval_images, cf1):
    settings = MultiLabelEvaluationSettings(eval_images=eval_images, threshold=0.6, scores="logit", cf1=cf1)
    tables = MultiLabelTables([0, 0, 1, 1], settings)
    sessions = [
        multi_label_point(end, classes, kind="session", session=session, thresholds=tables.thresholds)
        for session, (end, classes) in enumerate([(10, 2), (30, 4)])
    ]
    measured = tables.summarise(sessions[:0], sessions, sessions_planned=3)
    whole = tables.summarise([], sessions, sessions_planned=2)
    texts = []
    for metrics in (measured, whole):
        console = Console(file=io.StringIO(), width=80)
        shown = summary(metrics=metrics, sessions_planned=3 if metrics is measured else 2)
        print_summary(shown, tmp_path, tables=tables, console=console)
        texts.append(console.file.getvalue())
    for text in texts:
        for name in tables.metrics:
            assert (f" {name} " in text) == (name != "map_anytime")
        for name in METRICS:
            assert f" {name} " not in text
        assert widest(text) <= 80
    partial, text = texts
    row = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if line.startswith("│")}
    assert row["map_avg"] == f"{100 * whole['map_avg']:.1f}"
    assert row["map_last"] == f"{100 * whole['map_last']:.1f}"
    assert "anytime" not in text
    assert "based on  12,000 samples, 300 updates,\n          2 sessions" in text
    assert "          mAP over 4 seen classes\n" in text
    assert "at 0.6" in text
    assert f"oracle threshold {whole['oracle_threshold']:.3f}: chosen on the test labels" in text
    assert "AP ranks logits" in text
    assert "2 sessions, ap_forgetting over 2 classes\n" in text
    assert "2 of 3 sessions, too few for map_last, ap_forgetting over 2 classes\n" in partial
    assert "chosen on the test labels" not in partial


def test_one_is_not_many_and_tasks_of_one_kind_have_no_parts(tmp_path):
    tables = MultiLabelTables([0] * 4, MultiLabelEvaluationSettings())
    periodic = multi_label_point(10, 2, thresholds=tables.thresholds)
    end = multi_label_point(30, 4, kind="session", session=0, thresholds=tables.thresholds)
    console = Console(file=io.StringIO(), width=80)
    print_summary(
        summary(metrics=tables.summarise([periodic], [end]), sessions_planned=1),
        tmp_path,
        tables=tables,
        console=console,
    )
    text = console.file.getvalue()
    assert "300 updates, 1 anytime evaluation,\n          1 session, ap_forgetting over 0 classes\n" in text
    assert " map_anytime " in text
    assert "disjoint" not in text
    assert "blurry" not in text


def test_summary_of_an_interrupted_run_says_so_and_needs_nothing(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    print_summary({"status": "interrupted", "seconds": 3700.4, "metrics": {}}, tmp_path, console=console)
    text = console.file.getvalue()
    assert "interrupted after 1:01:40: measured so far" in text
    assert "tensorboard" not in text


def test_summary_of_a_part_says_of_how_much(tmp_path):
    planned = {"samples_planned": 500_000, "sessions_planned": 8, "samples_seen": 450_000, "status": "interrupted"}
    console = Console(file=io.StringIO(), width=80)
    print_summary(summary() | planned, tmp_path, console=console)
    text = console.file.getvalue()
    assert "based on  450,000 of 500,000 samples, " in text
    assert "          5 of 8 sessions, too few for a_last, f_last over " in text
    assert widest(text) <= 80
    console = Console(file=io.StringIO(), width=80)
    print_summary(summary() | planned | {"samples_seen": 500_000, "sessions_planned": 5}, tmp_path, console=console)
    assert "500,000 samples, " in console.file.getvalue()
    assert " of " not in console.file.getvalue().partition("based on")[2]


def test_reading_says_how_far_it_is_now_and_then(capsys):
    now = iter([0.0, 1.9, 2.0, 3.9, 4.5])
    report = reading_progress(clock=lambda: next(now))
    for done in (600, 1200, 1800, 2400):
        report(done, 50_000)
    assert capsys.readouterr().err == "reading images 1,200 of 50,000\nreading images 2,400 of 50,000\n"


def test_numbers_for_people():
    assert percent(None) == percent(float("nan")) == "-"
    assert percent(0.98765) == "98.8 %"
    assert [clock_time(s) for s in (0, 59.6, 3600, 36061)] == ["0:00", "1:00", "1:00:00", "10:01:01"]
