"""`python run.py scenario=mlcil strategy=multi_lane` as a user meets it: what it chooses, refuses, lists and leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import FILES, QUIET, Finished, checked, only_folder, several_words

from cl_prompts.runs import main
from cl_prompts.runs.compose import open_composer
from cl_prompts.runs.fields import field_texts
from cl_prompts.runs.request import Request, read_request
from cl_prompts.runs.schema import group_schema
from cl_prompts.strategies.declaration import read_settings, strategy_names

ROOT = Path(__file__).parents[2]
TASKS = ("scenario=mlcil", "strategy=multi_lane")
BLURRY = ("scenario=ml_si_blurry", "strategy=multi_lane")


@pytest.fixture(scope="module")
def composer():
    with open_composer() as opened:
        yield opened


@pytest.fixture
def ask(composer):
    """The checked request of some words."""

    def answer(*words: str, multirun: bool = False) -> Request:
        return read_request(composer, words, multirun=multirun)

    return answer


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """The command line in this process: exit code, standard output and error stream of `call(*words)`."""
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def answer(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capsys.readouterr()

    return answer


def chosen(request: Request) -> list[tuple[str, ...]]:
    assert request.problems == ()
    return [
        (config.scenario.name, config.dataset_name, config.protocol.name, config.strategy_name)
        for config in request.configs
    ]


# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (TASKS, ("mlcil", "digit_mosaics", "offline", "multi_lane")),
        (TASKS[::-1], ("mlcil", "digit_mosaics", "offline", "multi_lane")),
        (BLURRY, ("ml_si_blurry", "digit_mosaics", "online", "multi_lane")),
        ((*TASKS, "dataset=voc2007"), ("mlcil", "voc2007", "offline", "multi_lane")),
        (("dataset=voc2007", *TASKS), ("mlcil", "voc2007", "offline", "multi_lane")),
        ((*TASKS, "protocol=online"), ("mlcil", "digit_mosaics", "online", "multi_lane")),
        (("protocol=offline", *TASKS, "dataset=voc2007"), ("mlcil", "voc2007", "offline", "multi_lane")),
        (("scenario=mlcil", *BLURRY), ("ml_si_blurry", "digit_mosaics", "online", "multi_lane")),
        (("strategy=multi_lane",), ("si_blurry", "digits", "online", "multi_lane")),
        (("scenario=voc_b4_c2", "strategy=multi_lane"), ("voc_b4_c2", "voc2007", "multi_lane_voc2007", "multi_lane")),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_a_scenario_brings_a_data_set_and_a_protocol_and_the_command_line_wins(ask, words, expected):
    assert chosen(ask(*words)) == [expected]


def test_single_keys_win_over_what_the_scenario_brings(ask):
    (config,) = ask(*TASKS, "protocol.epochs=3", "dataset.images_train=50", "scenario.increment=5").configs
    assert (config.protocol.epochs, config.dataset.images_train, config.scenario.increment) == (3, 50, 5)
    assert (config.protocol.name, config.protocol.optimizer_scope) == ("offline", "session")


def test_every_job_of_a_sweep_has_what_its_scenario_brings(ask):
    request = ask("scenario=mlcil,ml_si_blurry", "strategy=multi_lane,linear_probe", multirun=True)
    assert chosen(request) == [
        (scenario, "digit_mosaics", protocol, strategy)
        for scenario, protocol in (("mlcil", "offline"), ("ml_si_blurry", "online"))
        for strategy in ("multi_lane", "linear_probe")
    ]


UNTRAINED = ("backbone.checkpoint=untrained",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("multi_lane_token_merging",), ("mlcil", "digit_mosaics", "offline", "multi_lane")),
        (("multi_lane_token_merging", "protocol=online"), ("mlcil", "digit_mosaics", "online", "multi_lane")),
        (
            ("multi_lane_token_merging", "scenario=ml_si_blurry"),
            ("ml_si_blurry", "digit_mosaics", "online", "multi_lane"),
        ),
        (("multi_lane_voc2007", *UNTRAINED), ("voc_b0_c4", "voc2007", "multi_lane_voc2007", "multi_lane")),
        (("multi_lane_cifar100", *UNTRAINED), ("disjoint", "cifar100", "multi_lane_coco2014", "multi_lane")),
    ],
    ids=lambda value: value[0],
)
def test_an_experiment_that_sets_the_scenario_brings_its_own_choices(ask, words, expected):
    name, *others = words
    assert chosen(ask(f"experiment={name}", *others)) == [expected]
    assert chosen(ask(*others, f"experiment={name}")) == [expected]


def test_experiments_of_multi_lane_are_what_they_are_called(ask):
    changed = {
        "key_selected_lane": {"head_mode": "key"},
        "token_merging": {"num_selectors": 0, "tome": 30},
        "without_drop_and_replace": {"dandr": "off"},
        "without_selectors": {"num_selectors": 0},
        "without_unit_norm": {"normalize": "none"},
    }
    (plain,) = ask(*TASKS).configs
    for name, keys in changed.items():
        (config,) = ask(f"experiment=multi_lane_{name}").configs
        assert config.strategy == plain.strategy.model_copy(update=keys)
        assert (config.scenario, config.dataset, config.protocol) == (plain.scenario, plain.dataset, plain.protocol)


# --- refusals --------------------------------------------------------------------------------------------------------


def only_line(request: Request) -> str:
    assert request.configs == ()
    (line,) = request.problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("words", "key", "advice"),
    [
        (("strategy.variant=paper",), "strategy.variant=paper", "use variant=released"),
        (("strategy.tome=1",), "strategy.tome=1", "give at least 2, or 0"),
        (("strategy.tome=-1",), "strategy.tome=-1", "at least 0"),
        (("strategy.tome=7",), "strategy.tome=7", "set strategy.num_selectors=0"),
        (("strategy.num_selectors=-1",), "strategy.num_selectors=-1", "at least 0"),
        (("strategy.prompt_layers=-1",), "strategy.prompt_layers=-1", "at least 0"),
        (("strategy.prompt_layers=7",), "strategy.prompt_layers=7", "use at most 6"),
        (("strategy.prompt_layers=3", "backbone.depth=2"), "strategy.prompt_layers=3", "use at most 2"),
        (("strategy.num_prompts=0",), "strategy.num_prompts=0", "at least 1"),
        (("strategy.init_tasks=0",), "strategy.init_tasks=0", "at least 1"),
        (("strategy.temperature=0",), "strategy.temperature=0", "greater than 0"),
        (("strategy.temperature=inf",), "strategy.temperature=inf", "finite"),
        (("strategy.form=quick",), "strategy.form=quick", "fast or token"),
        (("strategy.dandr=on",), "strategy.dandr=on", "released, off or reset"),
        (("strategy.lane_init=clone",), "strategy.lane_init=clone", "copy or fresh"),
        (("strategy.head_mode=keys",), "strategy.head_mode=keys", "did you mean key?"),
        (("strategy.normalize=unit",), "strategy.normalize=unit", "pre-head or none"),
        (("strategy.loss_norm=visible",), "strategy.loss_norm=visible", "all or active"),
        (("strategy.lane_policy=last",), "strategy.lane_policy=last", "owner or current"),
        (("strategy.prompt_init=zeros",), "strategy.prompt_init=zeros", "orthogonal or uniform"),
        (("strategy.selectors=3",), "strategy.selectors=3", "did you mean strategy.num_selectors?"),
        (("scenario.increment=0",), "scenario.increment=0", "at least 1"),
        (("scenario.order=alphabetic",), "scenario.order=alphabetic", "give alphabetical, random"),
        (("scenario.order=[0,0,1,2,3,4,5,6,7,8]",), "scenario.order=[0,0,1,2,3,4,5,6,7,8]", "each once"),
        (("scenario.order=[1,2,3,4,5,6,7,8,9,10]",), "scenario.order=[1,2,3,4,5,6,7,8,9,10]", "all class ids"),
        (("scenario.eval_images=some",), "scenario.eval_images=some", "seen, all or final_seen"),
        (("scenario.threshold=1",), "scenario.threshold=1", "less than 1"),
        (("scenario.cf1=macro",), "scenario.cf1=macro", "mean_f1 or from_mean_pr"),
        (("scenario.scores=softmax",), "scenario.scores=softmax", "sigmoid or logit"),
        (("scenario.n_sessions=3",), "scenario.n_sessions=3", "scenario=ml_si_blurry have it"),
        (("scenario.generator=ml_si_blury",), "scenario.generator=ml_si_blury", "did you mean ml_si_blurry?"),
        (("protocol.train_mask=task",), "protocol.train_mask=task", "set it to exposed"),
        (("protocol.eval_mask=none",), "protocol.eval_mask=none", "set it to exposed"),
        (("dataset=digits",), "dataset=digits", "use dataset=digit_mosaics, voc2007, coco2014"),
        (("protocol.session_evaluation=deferred", "protocol.eval_every=9"), "protocol.session_evaluation", "use live"),
        (("strategy=linear_probe", "protocol.session_evaluation=deferred"), "protocol.session_evaluation", "use live"),
        (("dataset=coco2014",), "dataset.root is not set", "set dataset.root to it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_tasks_cannot_be_is_one_line_with_key_and_advice(ask, words, key, advice):
    line = only_line(ask(*TASKS, *words))
    assert line.startswith(key)
    assert advice in line


@pytest.mark.parametrize(
    ("words", "key", "advice"),
    [
        (("protocol.epochs=2",), "protocol.epochs=2", "set it to 1"),
        (("protocol.shuffle=true",), "protocol.shuffle=true", "set it to false"),
        (("scenario.increment=3",), "scenario.increment=3", "scenario=mlcil has it"),
        (("scenario.disjoint_class_pct=101",), "scenario.disjoint_class_pct=101", "from 0 to 100"),
        (("scenario.cuts=odd",), "scenario.cuts=odd", "stochastic or even"),
        (("strategy=linear_probe", "scenario.view=merged"), "scenario.view=merged", "use sessions"),
        (("protocol.session_evaluation=deferred", "protocol.eval_every=0"), "protocol.session_evaluation", "use live"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_blurry_stream_cannot_be_is_one_line_with_key_and_advice(ask, words, key, advice):
    line = only_line(ask(*BLURRY, *words))
    assert line.startswith(key)
    assert advice in line


def test_methods_of_one_label_are_refused_and_those_for_several_named(ask):
    able = [name for name in strategy_names() if read_settings(name).needs.multi_label]
    assert {"multi_lane", "linear_probe", "single_prompt"} <= set(able)
    for scenario in ("mlcil", "ml_si_blurry"):
        for name in strategy_names():
            needs_memory = read_settings(name).needs.replay == "required"
            memory = ("protocol.memory_size=10", "protocol.replay_batch=5", "protocol.shuffle=false")
            request = ask(f"scenario={scenario}", f"strategy={name}", *(memory if needs_memory else ()))
            if name in able:
                assert request.problems == ()
                continue
            line = only_line(request)
            assert line.startswith(f"strategy={name}: ")
            assert ", ".join(able) in line


def test_several_labels_under_a_scenario_of_one_are_refused_with_the_right_scenarios(ask):
    line = only_line(ask("strategy=multi_lane", "dataset=digit_mosaics"))
    assert line.startswith("dataset=digit_mosaics: ")
    assert "use scenario=mlcil or ml_si_blurry" in line


def test_an_image_folder_of_one_label_is_told_the_key_for_several(ask, tmp_path):
    file = tmp_path / "list.csv"
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    file.write_text("path,label,split\na.png,x,train\nb.png,x,test\n", encoding="utf-8")
    line = only_line(ask(*TASKS, "dataset=image_folder", f"dataset.file_list={file}"))
    assert line.startswith("dataset=image_folder: has one label an image")
    assert "dataset.labels=several" in line


def test_a_mask_by_task_on_a_blurry_stream_is_one_line(ask):
    line = only_line(ask(*BLURRY, "protocol.train_mask=task"))
    assert line.startswith("protocol.train_mask=task: ")
    assert "set it to exposed" in line


def test_all_mistakes_are_told_at_once(ask):
    words = ("strategy.tome=1", "strategy.variant=paper", "scenario.incremnt=3", "protocol.epochs=0")
    found = [line.partition(":")[0] for line in ask(*TASKS, *words).problems]
    assert sorted(found) == sorted(words)


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        (("scenario.base=3",), ("base", "increment")),
        (("scenario.base=11",), ("base=11", "10")),
        (("scenario.order=[0,1]",), ("order",)),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_tasks_that_do_not_divide_the_classes_are_refused_before_the_data_load(ask, words, needles):
    line = only_line(ask(*TASKS, *words))
    assert line.startswith("scenario.")
    assert all(needle in line for needle in needles), line


def test_blind_lanes_run_and_say_so(call, one_thread):
    words = (*several_words("mlcil", "multi_lane"), "strategy.num_selectors=0", "protocol.epochs=1")
    code, _, errors = call(*QUIET, *words, "scenario.increment=5")
    assert code == 0
    (line,) = (line for line in errors.splitlines() if "num_selectors=0" in line)
    assert line.startswith("warning   ")


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["mlcil", "ml_si_blurry"])
def test_help_lists_the_keys_of_the_stream_and_of_the_method(call, scenario):
    code, output, _ = call("--help", f"scenario={scenario}", "strategy=multi_lane")
    assert code == 0
    flowing = " ".join(output.split())
    for group, name in (("scenario", scenario), ("strategy", "multi_lane")):
        assert f"Keys of {group}={name}, set as {group}.KEY=VALUE" in flowing
        for key, text in field_texts(group_schema(group, name)).items():
            if key not in ("name", "generator"):
                assert f"{text.allowed} {text.description}".rstrip() in flowing, key
                assert any(line.split()[:1] == [key] for line in output.splitlines()), key
    assert "generator" in flowing
    assert max(map(len, output.splitlines())) <= 100


def test_help_shows_what_the_scenario_brings(call):
    _, output, _ = call("--help", *TASKS, "protocol=offline", "dataset=digit_mosaics")
    shown = {words[0]: words[1] for line in output.splitlines() if len(words := line.split()) > 1}
    assert (shown["epochs"], shown["optimizer_scope"], shown["images_train"]) == ("8", "session", "1500")
    assert {"mlcil", "ml_si_blurry", "multi_lane", "digit_mosaics", "offline"} <= shown.keys()


# --- a run -----------------------------------------------------------------------------------------------------------


def test_the_second_headline_ends_with_a_complete_folder(tmp_path, one_thread):
    words = [*several_words("mlcil", "multi_lane"), "scenario.increment=5", "protocol.epochs=1"]
    process = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert "Warning" not in process.stderr
    run = Finished(0, only_folder(tmp_path / "runs"))
    assert run.folder.name.endswith("_mlcil-multi_lane-digit_mosaics-seed1")
    assert run.files == FILES - {"class_accuracy.csv"} | {"class_average_precision.csv", "predictions", "tensorboard"}
    assert checked(config_dir=run.folder, config_name="config") == checked(*words)
    metrics = run.summary["metrics"]
    for name, label in (("map_avg", "mean of mAP"), ("map_last", "mAP after the last session")):
        (line,) = (line for line in process.stdout.splitlines() if label in line)
        assert f" {100 * metrics[name]:.1f} " in line
    for name in ("cf1_last", "of1_last"):
        assert any(line.split()[1:2] == [name] for line in process.stdout.splitlines())
    flowing = " ".join(process.stderr.split())
    assert "mlcil" in flowing or "tasks" in flowing
    assert "one a session, visible labels" in flowing
    assert "on images: seen" in flowing
