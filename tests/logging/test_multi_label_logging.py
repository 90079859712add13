"""Evaluations with several labels an image, on the terminal and in TensorBoard."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from evaluation_points import point as accuracy_point
from evaluation_points import small_run
from multi_label_points import CLASSES, NAMES, SESSIONS, UNUSED, evaluated, point
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cl_prompts.logging import TensorBoardLog, TerminalProgress
from cl_prompts.logging.multi_label_pictures import calibration_picture, class_precision_picture
from cl_prompts.logging.observer import StrategyObserver
from cl_prompts.logging.pictures import curve_picture, to_array
from cl_prompts.logging.scores import ScoreHistory


def log_file():
    return Console(file=io.StringIO())


def shown(console):
    return console.file.getvalue().splitlines()


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def curve(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def pr_curves(events):
    return {tag for tag in events.Tags()["tensors"] if tag.startswith("precision_recall/")}


def nearly(pairs):
    return [(step, pytest.approx(value, abs=1e-6)) for step, value in pairs]


def test_a_session_line_for_every_session_and_the_latest_score_on_every_other_line(stub, clock):
    console = log_file()
    strategy = stub()
    strategy.running_accuracy, strategy.running_f1 = float("nan"), 0.625
    progress = TerminalProgress(60, console=console, mode="plain", clock=clock)
    strategy.mb_y = torch.zeros(20, 6)
    strategy.train_mb_size = 20
    for session in range(SESSIONS):
        strategy.walk(progress, 1, lambda: clock.sleep(3))
        progress.on_evaluation(strategy, point(session))
    ends = [line for line in shown(console) if line.startswith("session")]
    measured = [point(session) for session in range(SESSIONS)]
    for session, (line, end, classes) in enumerate(zip(ends, measured, ("2", "3 of 4", "5 of 6"), strict=True)):
        values = end.result.at(0.8)
        assert line == (
            f"session {session} after {20 * (session + 1)} samples: mAP {100 * end.score:.1f} % over "
            f"{classes} seen classes, CF1 {100 * values.cf1:.1f} %, OF1 {100 * values.of1:.1f} % at threshold 0.8"
        )
    last = [line for line in shown(console) if line.startswith("60 of 60")][-1]
    assert "| running F1 62.5 % |" in last
    mean = np.mean([end.score for end in measured[:2]])
    assert f"| anytime mAP {100 * measured[1].score:.1f} % (session 1), mean of sessions {100 * mean:.1f} % |" in last


def test_periodic_points_are_the_anytime_map_and_sessions_keep_their_lines(stub, clock):
    console = log_file()
    progress = TerminalProgress(80, console=console, mode="plain", clock=clock)
    measured = [point(0, "periodic", 10), point(1, "periodic", 20)]
    for each in (*measured, point(0)):
        progress.on_evaluation(stub(), each)
    stub().walk(progress, 10, lambda: clock.sleep(1))
    scores = [each.score for each in measured]
    words = f"anytime mAP {100 * scores[1]:.1f} %, mAP so far {100 * np.mean(scores):.1f} %"
    assert all(words in line for line in shown(console)[1:])
    assert shown(console)[0].startswith("session 0 after 20 samples: mAP")


def test_accuracy_at_session_ends_is_shown_where_nothing_else_is_measured(stub):
    points, sessions, _ = small_run()
    console = log_file()
    progress = TerminalProgress(30, console=console, mode="plain")
    for end in sessions:
        progress.on_evaluation(stub(), end)
    assert shown(console) == [
        "session 0 after 16 samples: accuracy 83.3 % on 2 classes",
        "session 1 after 30 samples: accuracy 62.5 % on 3 classes",
    ]
    console = log_file()
    progress = TerminalProgress(30, console=console, mode="plain")
    for each in (points[0], sessions[0]):
        progress.on_evaluation(stub(), each)
    assert shown(console) == []


@pytest.mark.parametrize("mode, lines", [("bar", 1), ("plain", 1), ("none", 0)])
def test_session_lines_in_every_mode(stub, mode, lines):
    console = Console(file=io.StringIO(), force_terminal=mode == "bar", width=150)
    TerminalProgress(80, console=console, mode=mode).on_evaluation(stub(), point(0))
    assert console.file.getvalue().count("session 0 after 20 samples") == lines


def test_a_session_line_stays_above_a_bar_that_is_drawn(stub, clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=150, _environ={"TERM": "xterm"})
    strategy = stub()
    progress = TerminalProgress(80, console=console, clock=clock)
    measured = iter([None, None, point(0), None, None])

    def batch():
        clock.sleep(1)
        if (each := next(measured)) is not None:
            progress.on_evaluation(strategy, each)

    strategy.walk(progress, 5, batch)
    lines = console.file.getvalue().split("\n")
    (place,) = [number for number, line in enumerate(lines) if "session 0 after 20 samples" in line]
    assert lines[place].endswith("at threshold 0.8")
    # The bar is drawn again below it, with the new score.
    assert "━" in "".join(lines[place + 1 :])
    assert "anytime mAP" in "".join(lines[place + 1 :])
    assert console.file.getvalue().count("\x1b[?25h") == 1


def test_scores_before_the_first_evaluation_and_of_a_final_point_alone():
    history = ScoreHistory()
    assert history.words() == ""
    assert np.isnan(history.session_mean)
    history.take(accuracy_point(8, [1, 1], [2, 2], kind="final"))
    assert history.words() == "anytime 50.0 %, A_AUC so far 50.0 %"


def test_tensorboard_has_every_measure_at_session_ends(stub, tmp_path):
    latest = []
    with TensorBoardLog(
        tmp_path, every_samples=8, class_names=NAMES, evaluated=lambda: latest[-1] if latest else None
    ) as log:
        for session in range(SESSIONS):
            latest.append(evaluated(session))
            log.on_evaluation(stub(), point(session))
        log.on_evaluation(stub(), point(SESSIONS - 1, "final"))
    events = read(tmp_path)
    ends = [point(session) for session in range(SESSIONS)]
    x = [end.samples_seen for end in ends]
    assert curve(events, "session/mAP") == nearly(zip(x, [end.score for end in ends], strict=True))
    so_far = [np.mean([end.score for end in ends[: number + 1]]) for number in range(SESSIONS)]
    assert curve(events, "session/map_so_far") == nearly(zip(x, so_far, strict=True))
    for threshold in (0.8, 0.5):
        at = [end.result.at(threshold) for end in ends]
        for tag, values in (
            ("CF1", [value.cf1 for value in at]),
            ("CF1_from_mean_pr", [value.cf1_from_mean_pr for value in at]),
            ("OF1", [value.of1 for value in at]),
        ):
            assert curve(events, f"session/{tag}@{threshold}") == nearly(zip(x, values, strict=True))
    # The values of all classes come after those of the session: TensorBoard sorts by name.
    groups = list(dict.fromkeys(sorted(tag.partition("/")[0] for tag in events.Tags()["scalars"])))
    assert groups == ["session", "session_class_AP"]
    assert curve(events, "session/exposed_classes") == [(20, 2), (40, 4), (60, 6)]
    assert curve(events, "session/loss") == [(20, 0.5), (40, 1.5), (60, 2.5)]
    # Without periodic points the sessions are the trajectory: a lonely final point would only repeat the last one.
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("anytime/")]
    assert set(events.Tags()["images"]) == {"class_average_precision", "calibration"}
    assert [image.step for image in events.Images("class_average_precision")] == x


def test_average_precision_of_each_class_equals_scikit_learn(stub, tmp_path):
    with TensorBoardLog(tmp_path, every_samples=8, class_names=NAMES) as log:
        for session in range(SESSIONS):
            log.on_evaluation(stub(), point(session))
    events = read(tmp_path)
    for label, name in enumerate(NAMES):
        if label == UNUSED:
            assert f"session_class_AP/{name}" not in events.Tags()["scalars"]
            continue
        expected = []
        for session in range(label // 2, SESSIONS):
            found = evaluated(session)
            rows = found.rows & ~np.isnan(found.targets[:, label])
            score = average_precision_score(found.targets[rows, label], found.logits[rows, label])
            expected.append((20 * (session + 1), score))
        assert curve(events, f"session_class_AP/{name}") == nearly(expected)


def test_precision_recall_curves_count_known_labels_of_evaluated_images(stub, tmp_path):
    with TensorBoardLog(tmp_path, every_samples=8, class_names=NAMES, evaluated=lambda: evaluated(1)) as log:
        log.on_evaluation(stub(), point(1))
    events = read(tmp_path)
    # Columns of classes not seen yet have no curve, nor has a class without a positive.
    assert pr_curves(events) == {f"precision_recall/{name}" for name in ("ant", "bee", "cat", "all_columns")}
    found = evaluated(1)
    chosen = {
        "ant": found.targets[found.rows][:, [0]],
        "all_columns": found.targets[found.rows][:, found.columns],
    }
    for name, targets in chosen.items():
        (event,) = events.Tensors(f"precision_recall/{name}")
        # Rows: true and false positives, true and false negatives, precision, recall; at threshold 0 all are predicted.
        table = np.array(event.tensor_proto.float_val or np.frombuffer(event.tensor_proto.tensor_content, np.float32))
        table = table.reshape(6, -1)
        assert table[:2, 0].tolist() == [(targets == 1).sum(), (targets == 0).sum()]
        assert event.step == 40


def test_many_classes_have_few_precision_recall_curves(stub, tmp_path):
    from types import SimpleNamespace

    from cl_prompts.metrics.multi_label import evaluate_logits
    from cl_prompts.metrics.records import MultiLabelPoint

    classes = 40
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(30, classes)).astype(np.float32), random.random((30, classes)) < 0.5
    columns = np.ones(classes, bool)
    found = SimpleNamespace(logits=logits, targets=targets.astype(np.float32), rows=np.ones(30, bool), columns=columns)
    result = evaluate_logits(logits, found.targets, columns)
    end = MultiLabelPoint.from_result(result, samples_seen=8, kind="session", loss=1, exposed=columns, session=0)
    with TensorBoardLog(tmp_path, every_samples=8, evaluated=lambda: found) as log:
        log.on_evaluation(stub(), end)
    events = read(tmp_path)
    assert len(pr_curves(events)) == 11
    assert {"precision_recall/0", "precision_recall/39", "precision_recall/all_columns"} <= pr_curves(events)
    assert len([tag for tag in events.Tags()["scalars"] if tag.startswith("session_class_AP/")]) == classes


def test_periodic_points_are_the_anytime_curves(stub, tmp_path):
    measured = [point(0, "periodic", 10), point(1, "periodic", 20)]
    with TensorBoardLog(tmp_path, every_samples=8) as log:
        for each in (*measured, point(0), point(2, "final", 20), point(2, "final", 25)):
            log.on_evaluation(stub(), each)
    events = read(tmp_path)
    scores = [each.score for each in (*measured, point(2))]
    assert curve(events, "anytime/mAP") == nearly(zip((10, 20, 25), scores, strict=True))
    means = [scores[0], np.mean(scores[:2]), np.mean(scores[:2])]
    assert curve(events, "anytime/map_so_far") == nearly(zip((10, 20, 25), means, strict=True))
    assert [step for step, _ in curve(events, "anytime/OF1@0.8")] == [10, 20, 25]
    assert [step for step, _ in curve(events, "session/mAP")] == [20]


def test_a_resumed_run_keeps_its_sessions(stub, tmp_path):
    previous = [point(0), point(1)]
    with TensorBoardLog(tmp_path, every_samples=8, resumed_at=40, previous=previous) as log:
        log.on_evaluation(stub(), point(2))
    mean = np.mean([point(session).score for session in range(3)])
    assert curve(read(tmp_path), "session/map_so_far") == nearly([(60, mean)])


def test_a_session_before_any_class_has_no_numbers(stub, tmp_path):
    from cl_prompts.metrics.multi_label import evaluate_logits
    from cl_prompts.metrics.records import MultiLabelPoint

    nothing = np.zeros(CLASSES, bool)
    result = evaluate_logits(np.zeros((0, CLASSES)), np.zeros((0, CLASSES)), nothing)
    empty = MultiLabelPoint.from_result(
        result, samples_seen=0, kind="session", loss=float("nan"), exposed=nothing, session=0
    )
    console = log_file()
    with TensorBoardLog(tmp_path, every_samples=8, evaluated=lambda: None) as log:
        for watcher in (log, TerminalProgress(80, console=console, mode="plain")):
            watcher.on_evaluation(stub(), empty)
        log.on_evaluation(stub(), point(0))
    assert "mAP - over 0 seen classes" in shown(console)[0]
    events = read(tmp_path)
    assert [step for step, _ in curve(events, "session/mAP")] == [20]
    assert [image.step for image in events.Images("class_average_precision")] == [20]


def test_running_f1_replaces_running_accuracy(stub, tmp_path):
    strategy = stub()
    strategy.running_accuracy, strategy.running_f1 = float("nan"), 0.625
    with TensorBoardLog(tmp_path, every_samples=8) as log:
        strategy.walk(log, 2)
    events = read(tmp_path)
    assert curve(events, "train/running_f1") == [(8, 0.625), (16, 0.625)]
    assert "train/running_accuracy" not in events.Tags()["scalars"]


def test_running_f1_of_a_stock_strategy_is_that_of_our_own_strategies(stub, monkeypatch):
    from cl_prompts.labels import SeveralLabels

    calls = []
    monkeypatch.setattr(SeveralLabels, "hits", lambda self, *given: calls.append(given) or torch.tensor([3.0, 4.0]))
    strategy, observer = stub(), StrategyObserver()
    del strategy.running_accuracy
    observer.before_training_epoch(strategy)
    strategy.mb_output, strategy.mb_y = torch.zeros(8, 5, requires_grad=True), torch.ones(8, 5, dtype=torch.int64)
    observer.before_training_iteration(strategy)
    observer.after_training_iteration(strategy)
    assert observer.running_score(strategy) == ("running_f1", 0.75)
    ((logits, rows),) = calls
    assert not logits.requires_grad
    assert rows.dtype == torch.float32


def test_running_f1_of_a_stock_strategy_leaves_hidden_labels_out(stub):
    from sklearn.metrics import f1_score

    strategy = stub()
    del strategy.running_accuracy
    random = np.random.default_rng(2)
    observer = StrategyObserver()
    observer.before_training_epoch(strategy)
    everything = []
    for _ in range(3):
        logits = random.normal(size=(8, 5))
        targets = (random.random((8, 5)) < 0.4).astype(np.float64)
        targets[:, 3] = np.nan
        everything.append((logits, targets))
        strategy.mb_output, strategy.mb_y = torch.tensor(logits), torch.tensor(targets)
        observer.before_training_iteration(strategy)
        observer.after_training_iteration(strategy)
    logits, targets = (np.concatenate(arrays)[:, [0, 1, 2, 4]] for arrays in zip(*everything, strict=True))
    expected = f1_score(targets.ravel(), (logits > 0).ravel())
    assert observer.running_score(strategy) == ("running_f1", pytest.approx(expected))
    assert np.isnan(observer.running_score(strategy).value)


def test_class_precision_picture_is_in_the_order_of_sessions_then_of_ids():
    values = np.array([[np.nan, 0.5, np.nan], [0.25, 0.75, np.nan]])
    exposed = np.array([[False, True, False], [True, True, True]])
    axes = class_precision_picture(values, exposed, ["ant", "bee", "cat"], [0, 1]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["bee", "ant", "cat"]
    assert axes.get_xlabel() == "class, by the session that first exposed it, then by class id"
    cells = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    assert cells == {(0, 0): "50", (1, 0): "75", (1, 1): "25", (1, 2): "-"}
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "session 0  (mAP 50.0 %)",
        "session 1  (mAP 50.0 %)",
    ]


def test_calibration_is_of_the_evaluated_labels(stub, tmp_path):
    from cl_prompts.metrics.calibration import calibration

    found = evaluated(1)
    with TensorBoardLog(tmp_path, every_samples=8, evaluated=lambda: found) as log:
        log.on_evaluation(stub(), point(1))
    report = calibration(found.logits[found.rows], found.targets[found.rows], found.columns)
    assert curve(read(tmp_path), "session/calibration_error") == nearly([(40, report.ece)])
    figure = calibration_picture(report)
    bars = {round(bar.get_x() * report.bins): bar.get_height() for bar in figure.axes[0].patches}
    for number, (count, share) in enumerate(zip(report.count, report.positive_share, strict=True)):
        assert (number in bars) == (count > 0)
        assert count == 0 or bars[number] == pytest.approx(share)
    assert [bar.get_height() for bar in figure.axes[1].patches] == report.count[report.count > 0].tolist()
    assert to_array(figure).std() > 10


@pytest.mark.parametrize("most", [0, 1, 2, 9, 10, 11, 950, 1000, 123_456, 40_000_000, 999_999_999])
def test_counts_of_calibration_have_a_few_whole_ticks_that_stay_apart(most):
    from cl_prompts.metrics.calibration import calibration

    labels = np.array([[1], [0]])
    report = calibration(np.array([[4.0], [-4.0]], np.float32), labels, np.ones(1, bool))
    figure = calibration_picture(replace(report, count=np.where(report.count > 0, most, 0)))
    figure.draw_without_rendering()
    axis = figure.axes[1].yaxis
    lowest, highest = figure.axes[1].get_ylim()
    assert lowest < 1
    assert highest > most
    inside = [tick for tick in axis.get_major_ticks() if lowest <= tick.get_loc() <= highest]
    assert 1 <= len(inside) <= 4
    assert all(tick.label1.get_text() == f"{round(tick.get_loc()):,}" for tick in inside)
    assert len(axis.get_minorticklocs()) == 0
    boxes = sorted((tick.label1.get_window_extent() for tick in inside), key=lambda box: box.y0)
    assert all(below.y1 < above.y0 for below, above in pairwise(boxes))


def test_curve_picture_names_the_score():
    ends = [point(session) for session in range(SESSIONS)]
    figure = curve_picture([point(2, "final")], ends)
    assert figure.axes[0].get_ylabel() == "mAP on exposed classes"
    np.testing.assert_allclose(figure.axes[0].lines[1].get_xydata(), [(e.samples_seen, e.score) for e in ends])
    assert Image.fromarray(to_array(figure)).size[0] > 100
