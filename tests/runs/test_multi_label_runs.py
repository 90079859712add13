"""Runs with several labels an image: what they write, that it can be recomputed from what lies beside it, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import FILES, Finished, checked, mean, runner, several_words, table, threads

from cl_prompts.errors import UserError
from cl_prompts.metrics.trajectory import trajectory
from cl_prompts.runs import prepared
from scenarios import load_plan
from scenarios.multi_label_plan import MultiLabelPlan

SCENARIOS = ("mlcil", "ml_si_blurry")
METHODS = ("multi_lane", "linear_probe", "single_prompt")
SEVERAL_FILES = FILES - {"class_accuracy.csv"} | {"class_average_precision.csv", "predictions"}
RULES = ("seen", "all", "final_seen")
THRESHOLDS = (0.8, 0.5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[tuple[str, str], Finished]:
    """One run of each method on each scenario, by its two names."""
    runs = {}
    with threads(1), runner(tmp_path_factory.mktemp("runs"), several_words) as run:
        for scenario in SCENARIOS:
            for strategy in METHODS:
                runs[scenario, strategy] = run(scenario, strategy)
    return runs


@pytest.fixture(params=[(scenario, strategy) for scenario in SCENARIOS for strategy in METHODS], ids="-".join)
def each(request, finished) -> Finished:
    return finished[request.param]


def plan_of(run: Finished) -> MultiLabelPlan:
    plan = load_plan(run.folder)
    assert isinstance(plan, MultiLabelPlan)
    return plan


def arrays(run: Finished) -> dict[str, np.ndarray]:
    """predictions/test.npz, read without pickle."""
    with np.load(run.folder / "predictions" / "test.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def results(run: Finished, rule: str, thresholds=THRESHOLDS, scores="sigmoid"):
    stored = arrays(run)
    return trajectory(
        stored["logits"],
        stored["targets"],
        stored["seen_after"],
        eval_images=rule,
        thresholds=thresholds,
        scores=scores,
    )


def close(value: float, text: float | str | None) -> bool:
    """Equal up to the last bits, NaN where a table or a summary is empty."""
    if text in (None, ""):
        return math.isnan(value)
    return value == pytest.approx(float(text), abs=1e-12)


# --- files -----------------------------------------------------------------------------------------------------------


def test_every_method_leaves_a_complete_folder(each):
    plan, summary = plan_of(each), each.summary
    assert (each.code, each.files) == (0, SEVERAL_FILES)
    assert (summary["status"], summary["error"]) == ("finished", None)
    epochs = each.learner.strategy.train_epochs
    presented = epochs * len(plan.order)
    assert summary["samples_planned"] == summary["samples_seen"] == presented
    assert epochs == (2 if plan.tasks else 1)
    assert [int(row["samples_seen"]) for row in each.rows("session")] == (epochs * plan.session_ends).tolist()
    assert summary["updates"] == each.learner.strategy.updates > 0
    assert plan.sha256 == each.manifest["hashes"]["plan"] == json.loads(each.text("plan.json"))["sha256"]


def test_the_summary_has_its_keys_and_says_what_they_rest_on(each):
    metrics = each.summary["metrics"]
    undefined = {"map_last_blurry", "map_anytime"} if plan_of(each).tasks else set()
    assert {name for name, value in metrics.items() if value is None} == undefined
    for name in ("map_avg", "map_last", "cf1_last", "of1_last"):
        assert 0 <= metrics[name] <= 1
    facts = {name: metrics[name] for name in ("eval_images", "threshold", "scores", "cf1_kind")}
    assert facts == {"eval_images": "seen", "threshold": 0.8, "scores": "sigmoid", "cf1_kind": "mean_f1"}
    assert (metrics["sessions_measured"], metrics["exposed_classes"], metrics["evaluated_images"]) == (5, 10, 20)
    assert not {"a_last", "a_avg", "a_auc"} & metrics.keys()


def test_the_summary_is_what_the_curves_say(each):
    metrics, ends, (final,) = each.summary["metrics"], each.rows("session"), each.rows("final")
    assert metrics["map_avg"] == pytest.approx(mean([row["map"] for row in ends]), abs=1e-15)
    for name, column in (("map_last", "map"), ("cf1_last", "cf1"), ("of1_last", "of1"), ("of1_last_050", "of1_050")):
        assert metrics[name] == float(ends[-1][column]) == float(final[column])
    assert [row["session"] for row in ends] == ["0", "1", "2", "3", "4"]
    periodic = [row["map"] for row in each.rows("periodic")]
    assert metrics["map_anytime"] == (pytest.approx(mean(periodic), abs=1e-15) if periodic else None)
    assert metrics["anytime_points"] == len(periodic)
    assert bool(periodic) is (plan_of(each).tasks is None)


def test_the_class_table_has_a_row_a_session_and_a_column_a_class(each):
    plan, rows = plan_of(each), table(each.folder / "class_average_precision.csv")
    assert list(rows[0]) == ["session", "samples_seen", *plan.class_names]
    seen = [[row[name] != "" for name in plan.class_names] for row in rows]
    assert seen == plan.seen_after.tolist()  # every class has a test image here
    for row, end in zip(rows, each.rows("session"), strict=True):
        known = [row[name] for name in plan.class_names if row[name]]
        assert float(end["map"]) == pytest.approx(mean(known), abs=1e-12)


# --- predictions -----------------------------------------------------------------------------------------------------


def test_predictions_are_the_final_logits_of_all_test_images(each):
    stored, plan = arrays(each), plan_of(each)
    assert stored.keys() == {"logits", "targets", "evaluated", "seen_after"}
    dataset, model = each.learner.benchmark.test_stream[0].dataset, each.learner.strategy.model.eval()
    images = each.learner.eval_transform(torch.stack([item[0] for item in dataset]))
    with torch.no_grad():
        np.testing.assert_allclose(stored["logits"], model(images).numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(stored["targets"], dataset.label_rows.array)
    np.testing.assert_array_equal(stored["seen_after"], plan.seen_after)
    assert stored["evaluated"].all()
    assert (stored["logits"].dtype, stored["evaluated"].dtype) == (np.float32, np.bool_)


def test_the_last_session_of_every_method_follows_from_the_predictions(each):
    last, metrics = results(each, "seen")[-1], each.summary["metrics"]
    assert close(last.mean_average_precision, metrics["map_last"])
    assert close(last.at(0.8).cf1, metrics["cf1_last"])
    assert close(last.at(0.8).of1, metrics["of1_last"])
    assert close(last.at(0.8).cf1_from_mean_pr, metrics["cf1_last_from_mean_pr"])
    assert close(last.at(0.5).cf1, metrics["cf1_last_050"])
    assert close(last.oracle.of1, metrics["of1_last_oracle"])
    kinds = plan_of(each).class_kind
    for name, kind in (("map_last_disjoint", 0), ("map_last_blurry", 1)):
        precisions = last.average_precision[kinds == kind]
        assert close(float(np.mean(precisions)) if len(precisions) else math.nan, metrics[name])


def test_calibration_counts_every_label_of_every_class_once(each):
    stored, rows = arrays(each), table(each.folder / "predictions" / "calibration.csv")
    probabilities = 1 / (1 + np.exp(-stored["logits"].astype(np.float64)))
    filled = [row for row in rows if int(row["count"])]
    assert sum(int(row["count"]) for row in filled) == probabilities.size
    for column, total in (("mean_probability", probabilities.sum()), ("positive_share", stored["targets"].sum())):
        assert sum(int(row["count"]) * float(row[column]) for row in filled) == pytest.approx(total, rel=1e-5)
    for row in filled:
        assert float(row["lower"]) - 1e-6 <= float(row["mean_probability"]) <= float(row["upper"]) + 1e-6


def test_the_whole_trajectory_of_lanes_follows_from_the_predictions(finished):
    """Evaluated once after the last session: the numbers are those that were measured after each of them."""
    run = finished["mlcil", "multi_lane"]
    rows, measured, metrics = run.rows("session"), results(run, "seen"), run.summary["metrics"]
    assert metrics["map_avg"] == pytest.approx(np.mean([result.mean_average_precision for result in measured]))
    classes = table(run.folder / "class_average_precision.csv")
    for result, row, by_class in zip(measured, rows, classes, strict=True):
        at, half = result.thresholds
        found = {
            "map": result.mean_average_precision,
            "cf1": at.cf1,
            "of1": at.of1,
            "cf1_from_mean_pr": at.cf1_from_mean_pr,
            "cf1_050": half.cf1,
            "of1_050": half.of1,
            "of1_oracle": result.oracle.of1,
            "evaluated_images": result.images,
            "exposed_classes": result.columns.sum(),
        }
        assert all(close(value, row[name]) for name, value in found.items())
        names = plan_of(run).class_names
        assert all(close(ap, by_class[name]) for ap, name in zip(result.average_precision, names, strict=True))


def test_the_table_of_the_trajectory_has_every_rule_session_and_threshold(finished):
    run = finished["mlcil", "multi_lane"]
    rows = iter(table(run.folder / "predictions" / "trajectory.csv"))
    for rule in RULES:
        for session, result in enumerate(results(run, rule)):
            for scores in result.thresholds:
                row = next(rows)
                assert (row["eval_images"], row["session"]) == (rule, str(session))
                assert int(row["images"]) == result.images
                values = (result.mean_average_precision, *scores)
                columns = ("map", "threshold", "cf1", "cf1_from_mean_pr", "of1")
                assert all(close(value, row[column]) for value, column in zip(values, columns, strict=True))
    assert next(rows, None) is None


def test_a_trajectory_is_written_only_where_it_is_what_was_measured(finished, run_several):
    folders = [run.folder for names, run in finished.items() if names != ("mlcil", "multi_lane")]
    folders.append(run_several("mlcil", "multi_lane", "strategy.head_mode=key").folder)
    for folder in folders:
        assert {path.name for path in (folder / "predictions").iterdir()} == {"test.npz", "calibration.csv"}


def test_no_trajectory_from_a_saved_stream_whose_classes_return(finished, run_several):
    """Such a stream must not be mistaken for one of tasks."""
    saved = finished["ml_si_blurry", "multi_lane"]
    words = (f"scenario.plan={saved.folder}", "protocol.epochs=1", "protocol.shuffle=false")
    run = run_several("ml_si_blurry", "multi_lane", *words)
    assert not (run.folder / "predictions" / "trajectory.csv").exists()


# --- what decides the numbers ----------------------------------------------------------------------------------------


def test_deferred_sessions_have_the_rows_of_live_ones(finished, run_several):
    live = finished["mlcil", "multi_lane"]
    deferred = run_several("mlcil", "multi_lane", "protocol.session_evaluation=deferred")
    assert deferred.files == SEVERAL_FILES
    assert_close_rows(live.curves, deferred.curves)
    assert_close_rows(
        *(table(run.folder / "class_average_precision.csv") for run in (live, deferred)),
    )
    for name, value in live.summary["metrics"].items():
        other = deferred.summary["metrics"][name]
        assert other == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), name


def assert_close_rows(left, right):
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            same = value == two[name]
            assert same or float(value) == pytest.approx(float(two[name]), abs=1e-6), name


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(finished, run_several, scenario):
    first = finished[scenario, "multi_lane"]
    torch.manual_seed(99)
    second, other = run_several(scenario, "multi_lane"), run_several(scenario, "multi_lane", "seed=2")
    for name in ("curves.csv", "class_average_precision.csv", "predictions/calibration.csv"):
        assert second.text(name) == first.text(name)
    left, right, changed = arrays(first), arrays(second), arrays(other)
    assert all(np.array_equal(left[name], right[name]) for name in left)
    assert not np.array_equal(left["logits"], changed["logits"])
    np.testing.assert_array_equal(left["targets"], changed["targets"])
    assert first.weights.keys() == second.weights.keys()
    assert all(torch.equal(tensor, second.weights[name]) for name, tensor in first.weights.items())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_saved_stream_gives_the_same_run_whatever_is_asked_of_a_new_one(finished, run_several, scenario):
    first = finished[scenario, "linear_probe"]
    again = run_several(scenario, "linear_probe", f"scenario.plan={first.folder}")
    assert again.manifest["hashes"]["plan"] == first.manifest["hashes"]["plan"]
    assert again.text("plan.json") == first.text("plan.json")
    assert again.text("curves.csv") == first.text("curves.csv")
    with_another_seed = run_several(scenario, "linear_probe", f"scenario.plan={first.folder}", "seed=2")
    assert with_another_seed.manifest["hashes"]["plan"] == first.manifest["hashes"]["plan"]
    assert with_another_seed.manifest["seeds"]["plan"] == first.manifest["seeds"]["plan"] == 1


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["scenario.eval_images=final_seen"], {"eval_images": "final_seen"}),
        (["scenario.eval_images=all", "scenario.threshold=0.5"], {"eval_images": "all", "threshold": 0.5}),
        (["scenario.scores=logit", "scenario.cf1=from_mean_pr", "scenario.threshold=0.4"], {"scores": "logit"}),
    ],
    ids=["final_seen", "all at 0.5", "logits, the other CF1"],
)
def test_choices_of_evaluation_reach_the_numbers_and_change_no_weight(finished, run_several, words, facts):
    plain, run = finished["mlcil", "multi_lane"], run_several("mlcil", "multi_lane", *words)
    metrics = run.summary["metrics"]
    assert facts.items() <= metrics.items()
    threshold = metrics["threshold"]
    thresholds = tuple(dict.fromkeys((threshold, 0.5)))
    found = results(run, metrics["eval_images"], thresholds, metrics["scores"])
    for result, row in zip(found, run.rows("session"), strict=True):
        assert close(result.mean_average_precision, row["map"])
        assert close(result.at(threshold).cf1_of_kind(metrics["cf1_kind"]), row["cf1"])
        assert result.images == int(row["evaluated_images"])
    assert close(found[-1].at(threshold).of1, metrics["of1_last"])
    assert all(torch.equal(tensor, run.weights[name]) for name, tensor in plain.weights.items())


@pytest.mark.slow
def test_worker_processes_change_nothing(finished, run_several):
    first, second = finished["mlcil", "multi_lane"], run_several("mlcil", "multi_lane", "num_workers=2")
    assert second.text("curves.csv") == first.text("curves.csv")
    assert all(torch.equal(tensor, second.weights[name]) for name, tensor in first.weights.items())


# --- ends and refusals -----------------------------------------------------------------------------------------------


def test_an_interrupted_run_has_no_last_value(finished, run_several, monkeypatch, capsys):
    whole = finished["mlcil", "multi_lane"]
    build = prepared.build_learner

    def stop(strategy, point):
        if point.session == 2:
            raise KeyboardInterrupt

    def build_and_subscribe(*arguments):
        learner = build(*arguments)
        learner.evaluation.subscribe(stop)
        return learner

    monkeypatch.setattr(prepared, "build_learner", build_and_subscribe)
    run = run_several("mlcil", "multi_lane")
    metrics, planned = run.summary["metrics"], whole.summary["samples_planned"]
    assert (run.code, run.summary["status"], run.summary["error"]) == (130, "interrupted", None)
    assert {name for name in metrics if "_last" in name and name != "map_last_classes"} <= {
        name for name, value in metrics.items() if value is None
    }
    assert run.summary["samples_planned"] == planned > run.summary["samples_seen"] > 0
    assert metrics["sessions_measured"] == 3
    assert run.curves == whole.curves[:3]
    assert metrics["map_avg"] == pytest.approx(mean([row["map"] for row in run.curves]), abs=1e-12)
    assert run.files == SEVERAL_FILES - {"predictions", "checkpoints", "model.safetensors"}
    assert " of 5 sessions, too few for map_last" in capsys.readouterr().out


def image_table(folder: Path) -> Path:
    """Sixteen images of three classes in JSON lines; nobody tests the third."""
    from PIL import Image

    lines = []
    for index in range(16):
        noise = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
        labels, split = (["ant", "bee", "cow"][: 1 + index % 3], "train") if index < 10 else (["ant", "bee"], "test")
        lines.append(json.dumps({"path": f"{index}.png", "labels": labels, "split": split}))
    file = folder / "images.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_a_class_without_a_test_image_is_said_and_left_out_of_the_mean(tmp_path, one_thread):
    words = [
        f"dataset.file_list={image_table(tmp_path)}",
        "dataset.labels=several",
        "dataset.allow_untested_classes=true",
        "scenario.increment=1",
    ]

    def own_images(*given):
        kept = [word for word in several_words("mlcil", "linear_probe") if not word.startswith("dataset.")]
        return [*kept, "dataset=image_folder", *given]

    with runner(tmp_path / "runs", own_images) as run_own:
        run = run_own(*words)
    (notice,) = (text for text in run.manifest["notices"] if "no test image" in text and "mAP" in text)
    assert "1 class" in notice
    assert "'cow'" in notice
    assert "\n" not in notice
    metrics, rows = run.summary["metrics"], table(run.folder / "class_average_precision.csv")
    assert (metrics["map_last_classes"], metrics["exposed_classes"]) == (2, 3)
    assert rows[-1]["cow"] == ""
    assert metrics["map_last"] == pytest.approx((float(rows[-1]["ant"]) + float(rows[-1]["bee"])) / 2)


def refused(call, *needles: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert all(needle in text for needle in needles), text


def test_a_stream_of_the_other_kind_is_refused(finished, run_several, run_tiny):
    one, several = run_tiny("ncm").folder, finished["mlcil", "linear_probe"].folder
    for scenario in SCENARIOS:
        refused(
            lambda scenario=scenario: run_several(scenario, "linear_probe", f"scenario.plan={one}"),
            f"scenario.plan={one}",
            "one label",
            "scenario=si_blurry",
        )
    refused(lambda: run_tiny("ncm", f"scenario.plan={several}"), "several labels", "scenario=mlcil or ml_si_blurry")


def test_a_blurry_stream_in_other_batches_is_refused(finished, run_several):
    words = (f"scenario.plan={finished['ml_si_blurry', 'linear_probe'].folder}", "protocol.stream_batch=5")
    refused(
        lambda: run_several("ml_si_blurry", "linear_probe", *words), "batches of 10", "set protocol.stream_batch=10"
    )


@pytest.mark.parametrize("words", [("protocol.epochs=2",), ("protocol.shuffle=true",)])
def test_a_saved_blurry_stream_keeps_its_order_under_the_scenario_of_tasks(finished, run_several, words):
    plan = f"scenario.plan={finished['ml_si_blurry', 'linear_probe'].folder}"
    plain = ("protocol.epochs=1", "protocol.shuffle=false")
    with pytest.raises(UserError) as caught:
        run_several("mlcil", "linear_probe", plan, *plain, *words)
    assert "\n" not in str(caught.value)


def test_a_stream_of_other_images_is_refused(finished, run_several):
    plan = f"scenario.plan={finished['mlcil', 'linear_probe'].folder}"
    refused(lambda: run_several("mlcil", "linear_probe", plan, "dataset.mosaic_seed=1"), "labels")
    refused(lambda: run_several("mlcil", "linear_probe", plan, "dataset.images_train=50"), "40", "50")


def test_the_configuration_of_a_run_reads_back(finished):
    for run in finished.values():
        assert checked(config_dir=run.folder, config_name="config").to_yaml() == run.text("config.yaml")


def test_one_label_an_image_leaves_no_predictions(run_tiny):
    assert run_tiny("linear_probe").files == FILES
