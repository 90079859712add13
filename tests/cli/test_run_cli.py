"""Runs as a user meets them: what the terminal says, what lies in the folder, how Ctrl-C and mistakes end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_runs import FILES, QUIET, Finished, checked, only_folder, tiny_words

from cl_prompts.runs import main
from cl_prompts.runs.schema import RunConfig
from scenarios import StreamPlan

ROOT = Path(__file__).parents[2]
LOADING = "loading torch, timm and Avalanche ...\n"

TAGS = {
    "anytime/a_auc_so_far",
    "anytime/accuracy",
    "anytime/exposed_classes",
    "anytime/loss",
    "loss/classification",
    "loss/prompt",
    "loss/total",
    "optimizer/learning_rate",
    "prompt_usage/entropy",
    "session/accuracy",
    "speed/samples_per_second",
    "train/running_accuracy",
}


@pytest.fixture
def folder(tmp_path):
    """An empty folder to start from, which is not the project's."""
    start = tmp_path / "somewhere else"
    start.mkdir()
    return start


def process(folder: Path, *words: str, **options) -> subprocess.Popen[str]:
    """`python run.py` in a process that a Ctrl-C reaches: children of a background shell ignore it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"} | options.pop("environment", {})
    before = options.pop("before", lambda: None)

    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    command = [sys.executable, str(ROOT / "run.py"), *words]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, preexec_fn=prepare, **pipes)


def finish(started: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and error stream of a process."""
    try:
        output, errors = started.communicate(timeout=120)
    finally:
        started.kill()
    return started.returncode, output, errors


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """The command line in this process: exit code, standard output and error stream of `call(*words)`."""
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(folder)

    def answer(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capsys.readouterr()

    return answer


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_main_command_ends_with_a_complete_folder_and_says_where(folder, one_thread, tmp_path, call):
    words = [*tiny_words("mvp"), "scenario=si_blurry", "protocol.eval_every=10"]
    begun = time.perf_counter()
    started = process(folder, *words)
    assert started.stderr is not None
    assert started.stderr.readline() == LOADING
    # A second on a quiet machine; importing what is then loaded takes several.
    assert time.perf_counter() - begun < 6
    code, output, errors = finish(started)
    assert code == 0, errors
    assert "Traceback" not in errors
    assert "Warning" not in errors

    assert made(folder) == {"runs"}
    run = Finished(code, only_folder(folder / "runs"))
    assert run.files == FILES | {"tensorboard", "usage.csv"}
    assert run.folder.name.endswith("_si_blurry-mvp-digits-seed1")
    assert (run.summary["status"], run.summary["error"]) == ("finished", None)
    assert run.manifest["command"].startswith(str(ROOT / "run.py"))
    assert "strategy=mvp" in run.manifest["command"]
    assert run.manifest["folder"] == str(folder)
    config = checked(config_dir=run.folder, config_name="config")
    assert config == checked(*words)
    assert isinstance(config, RunConfig)
    assert yaml.safe_load(run.text("config.yaml"))["strategy"]["expert_layers"] == [1]
    assert StreamPlan.load(run.folder).sha256 == run.manifest["hashes"]["plan"]

    header, _, progress = errors.rpartition("warning   UNTRAINED BACKBONE: vit_nano has random weights")
    labels = [line.split()[0] for line in header.splitlines()]
    assert header.splitlines()[0] == "weights   vit_nano, untrained"
    assert header.splitlines()[1] == "input     32 px, mean 0.5, std 0.5 (checkpoint)"
    assert {"data", "stream", "sessions", "strategy", "protocol", "evaluated", "device"} <= {*labels}
    assert max(map(len, header.splitlines())) <= 80
    assert "40 of 40 samples (100 %)" in progress
    assert f"written   runs/{run.folder.name}/\n" in output
    assert f"curves    tensorboard --logdir runs/{run.folder.name}\n" in output
    for name in ("a_auc", "a_last", "a_avg"):
        (row,) = (line.split("│")[2] for line in output.splitlines() if line.startswith(f"│ {name} "))
        assert float(row) == pytest.approx(100 * run.summary["metrics"][name], abs=0.051)
    check_events(run)

    # The same command once more, in another process that has done other things before.
    code, _, _ = call(*words, *QUIET, f"output={tmp_path / 'again'}")
    again = Finished(code, only_folder(tmp_path / "again"))
    assert again.text("curves.csv") == run.text("curves.csv")
    assert again.text("plan.json") == run.text("plan.json")


def check_events(run: Finished) -> None:
    """TensorBoard shows what the files hold, over samples seen."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    guidance = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance=guidance).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= TAGS
    assert {"confusion_matrix", "stream"} <= {*tags["images"]}
    assert "prompt_usage/counts" in tags["histograms"]
    assert {"config/text_summary", "plan/text_summary"} <= {*tags["tensors"]}
    (text,) = events.Tensors("config/text_summary")
    assert "expert_layers: [1]" in text.tensor_proto.string_val[0].decode()

    batch_ends = {int(row["samples_seen"]) for row in run.curves}
    for tag in tags["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
        assert set(steps) <= set(range(1, 41)), tag
        # Every curve goes on to the end of the stream.
        assert steps[-1] == 40, tag
    for tag, kind, column in (
        ("anytime/accuracy", "periodic", "accuracy"),
        ("anytime/loss", "periodic", "loss"),
        ("anytime/exposed_classes", "periodic", "exposed_classes"),
        ("anytime/a_auc_so_far", "periodic", "a_auc"),
        ("session/accuracy", "session", "accuracy"),
    ):
        shown = {event.step: event.value for event in events.Scalars(tag)}
        written = {int(row["samples_seen"]): float(row[column]) for row in run.rows(kind)}
        assert shown == pytest.approx(written, rel=1e-6), tag
        assert shown.keys() <= batch_ends
    (last,) = run.rows("final")
    assert events.Scalars("anytime/accuracy")[-1].value == pytest.approx(float(last["accuracy"]), rel=1e-6)
    auc = events.Scalars("anytime/a_auc_so_far")[-1].value
    assert auc == pytest.approx(run.summary["metrics"]["a_auc"], rel=1e-6)


def test_a_sweep_makes_one_folder_a_run(call, folder):
    words = ["-m", *tiny_words("ncm"), *QUIET, "strategy=ncm,linear_probe", "seed=1,2"]
    code, output, errors = call(*words)
    assert code == 0, errors
    assert made(folder) == {"runs"}
    runs = [Finished(0, path) for path in (folder / "runs").iterdir() if path.name != "sweeps"]
    assert {run.folder.name.partition("_si_blurry-")[2] for run in runs} == {
        f"{strategy}-digits-seed{seed}" for strategy in ("ncm", "linear_probe") for seed in (1, 2)
    }
    assert all(run.files == FILES and run.summary["status"] == "finished" for run in runs)
    plans = {run.manifest["seeds"]["plan"]: run.manifest["hashes"]["plan"] for run in runs}
    assert len({run.manifest["hashes"]["plan"] for run in runs}) == len(plans) == 2
    assert output.count("finished in 0:") == 4
    assert [line.split(":")[0] for line in errors.splitlines() if line.startswith("run ")] == [
        f"run {number}" for number in (1, 2, 3, 4)
    ]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal to type Ctrl-C into")
def test_ctrl_c_in_a_terminal_ends_with_what_was_measured_and_a_visible_cursor(folder):
    """The terminal sends the signal to the workers that load images, too."""
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, np.array([24, 80, 0, 0], np.uint16).tobytes())
    words = [*tiny_words("linear_probe"), "dataset.train_per_class=null", "protocol.eval_every=10", "num_workers=2"]
    words += ["protocol.updates_per_batch=10"]
    started = process(
        folder,
        *words,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        environment={"TERM": "xterm"},
        before=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown, pressed = b"", False
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                part = os.read(ours, 4096)
            except OSError:  # how a terminal says that nobody holds it any more
                break
            if not part:
                break
            shown += part
            if not pressed and b"anytime" in shown:
                os.write(ours, b"\x03")
                pressed = True
        started.wait(timeout=30)
    finally:
        started.kill()
        os.close(ours)
    text = shown.decode()
    assert started.returncode == 130, text
    assert "Traceback" not in text
    assert "interrupted after 0:" in text
    assert text.splitlines()[-1] == "error: interrupted"
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") > 0
    run = Finished(130, only_folder(folder / "runs"))
    assert (run.summary["status"], run.summary["error"]) == ("interrupted", None)
    # The accuracy of the classes is measured at session ends, which need not have come.
    assert run.files | {"class_accuracy.csv", "model.safetensors"} == FILES | {"tensorboard"}
    assert 10 <= run.summary["samples_seen"] < 1600
    measured = run.summary["metrics"]
    assert len(run.curves) == measured["anytime_points"] + measured["sessions_measured"] >= 1
    assert measured["a_auc"] is not None


def test_sigterm_ends_the_process_with_what_was_measured_and_143(folder):
    words = [*tiny_words("linear_probe"), "dataset.train_per_class=null", "protocol.eval_every=10", "progress=plain"]
    started = process(folder, *words, "protocol.updates_per_batch=20", "tensorboard=false")
    assert started.stderr is not None
    while not list(folder.glob("runs/*/curves.csv")) and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    code, output, errors = finish(started)
    assert code == 143, errors
    assert "interrupted after 0:" in output
    assert errors.splitlines()[-1] == "error: terminated"
    summary = Finished(143, only_folder(folder / "runs")).summary
    assert summary["status"] == "interrupted"
    assert 10 <= summary["samples_seen"] < summary["samples_planned"]


def test_ctrl_c_while_importing_ends_at_once(folder):
    started = process(folder, *tiny_words("ncm"))
    assert started.stderr is not None
    assert started.stderr.readline() == LOADING
    time.sleep(0.3)
    started.send_signal(signal.SIGINT)
    code, output, errors = finish(started)
    assert (code, output, errors) == (130, "", "error: interrupted\n")
    assert made(folder) == set()


def test_ctrl_c_before_anything_is_said_ends_at_once(call, monkeypatch):
    class Impatient:
        def find_spec(self, name, path=None, target=None):
            if name == "cl_prompts.runs.command_line":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "cl_prompts.runs.command_line", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    assert call("strategy=ncm") == (130, "", "error: interrupted\n")


def test_builds_of_torch_and_torchvision_that_do_not_fit_are_one_line(folder, tmp_path):
    stub = tmp_path / "packages" / "torchvision"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    code, _, errors = finish(process(folder, *tiny_words("ncm"), environment={"PYTHONPATH": str(stub.parent)}))
    assert code == 1
    assert errors.startswith(f"{LOADING}error: torch and torchvision are different builds")
    assert errors.count("\n") == 2
    assert made(folder) == set()


def test_a_file_that_cannot_grow_ends_the_run_with_one_line(call, folder):
    """The closest to a full disk without one: for a moment, files of this process end at 8 kB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        code, _, errors = call(*tiny_words("ncm", "progress=none"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    warning, line = errors.splitlines()
    assert warning.startswith("warning   UNTRAINED BACKBONE")
    assert line.startswith("error: cannot write TensorBoard events to runs/")
    summary = Finished(1, only_folder(folder / "runs")).summary
    assert summary["status"] == "failed"
    assert f"error: {summary['error']}" == line


def image_folder(root: Path) -> list[str]:
    """Twelve images of two classes; returns the words that use them."""
    from PIL import Image

    for part, number in (("train", 4), ("test", 2)):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                noise = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / part / name / f"{index}.png")
    small = [word for word in tiny_words("linear_probe", *QUIET) if not word.startswith("dataset.")]
    return [*small, "dataset=image_folder", f"dataset.root={root}", "scenario.n_sessions=2"]


def test_a_missing_image_folder_is_one_line(call, folder):
    words = [word for word in tiny_words("ncm", *QUIET) if not word.startswith("dataset.")]
    code, _, errors = call(*words, "dataset=image_folder", "dataset.root=/nowhere/at all")
    assert code == 2
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert "/nowhere/at all" in line
    assert made(folder) == set()


def test_a_damaged_image_is_one_line_or_left_out_when_asked(call, folder, tmp_path):
    words = image_folder(tmp_path / "images")
    damaged = tmp_path / "images" / "train" / "ant" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    code, _, errors = call(*words)
    assert code == 1
    assert errors.startswith(f"error: {damaged}: ")
    assert errors.count("\n") == 1
    assert "dataset.skip_unreadable=true" in errors
    summary = Finished(code, only_folder(folder / "runs")).summary
    assert (summary["status"], f"error: {summary['error']}\n") == ("failed", errors)

    code, _, errors = call(*words, "dataset.skip_unreadable=true", "output=others", "progress=plain")
    assert code == 0
    assert "warning   1 unreadable file" in errors
    run = Finished(code, only_folder(folder / "others"))
    assert run.summary["samples_seen"] == 7
    (skipped,) = run.manifest["skipped"]["train"]
    assert skipped.startswith(f"{damaged}: ")
    assert run.manifest["skipped"]["test"] == []


def test_an_image_that_vanishes_during_the_run_is_one_line(call, folder, tmp_path, monkeypatch):
    """Read by a worker process, whose errors arrive as the text of a traceback."""
    from cl_prompts.runs import prepared

    words = image_folder(tmp_path / "images")
    gone = tmp_path / "images" / "train" / "bee" / "3.png"
    build = prepared.build_learner

    def build_and_lose(*arguments):
        learner = build(*arguments)
        gone.unlink()
        return learner

    monkeypatch.setattr(prepared, "build_learner", build_and_lose)
    code, _, errors = call(*words, "dataset.cache=none", "num_workers=1")
    assert code == 1
    *warnings, line = errors.splitlines()
    assert all(warning.startswith("warning   ") for warning in warnings)
    assert line.startswith(f"error: {gone}: ")
    summary = Finished(code, only_folder(folder / "runs")).summary
    assert (summary["status"], f"error: {summary['error']}") == ("failed", line)


def wrong_weights(path: Path, kind: str) -> Path:
    """A weight file that is none, or one of another network."""
    from safetensors.torch import save_file

    file = path / "weights.safetensors"
    if kind == "text":
        file.write_text("these are not weights")
    else:
        save_file({"some.tensor": torch.zeros(3)}, file)
    return file


@pytest.mark.parametrize("kind", ["text", "other network"])
def test_a_wrong_weight_file_is_one_line(call, folder, tmp_path, kind):
    file = wrong_weights(tmp_path, kind)
    code, _, errors = call(*tiny_words("ncm", *QUIET, f"backbone.checkpoint={file}"))
    assert code == 1
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")
    assert file.name in errors
    assert "unexpected; run again" not in errors
    summary = Finished(code, only_folder(folder / "runs")).summary
    assert (summary["status"], f"error: {summary['error']}\n") == ("failed", errors)


def test_a_plan_of_other_data_is_one_line(call, folder):
    assert call(*tiny_words("ncm", *QUIET, "name=first"))[0] == 0
    code, _, errors = call(
        *tiny_words("ncm", *QUIET, "scenario.plan=runs/first", "dataset.train_per_class=5", "name=b")
    )
    assert code == 1
    assert errors.count("\n") == 1
    assert "was made for 40 samples but the data set has 50" in errors
    summary = json.loads((folder / "runs" / "b" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], f"error: {summary['error']}\n") == ("failed", errors)


def test_a_gpu_that_is_not_there_is_one_line(call, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, errors = call(*tiny_words("ncm", *QUIET, "device=cuda"))
    assert code == 1
    assert errors.startswith("error: device=cuda: torch sees no CUDA device here")
    assert errors.count("\n") == 1
    assert made(folder) == set()


def test_a_loss_that_is_not_finite_is_one_line_and_a_traceback_on_request(call, folder):
    words = tiny_words("mvp", *QUIET, "protocol.lr=1e30")
    code, output, errors = call(*words, "name=a")
    assert (code, output) == (1, "")
    warning, error = errors.splitlines(keepends=True)
    assert warning.startswith("warning   UNTRAINED BACKBONE")
    assert error.startswith("error: the loss is not finite after ")
    summary = json.loads((folder / "runs" / "a" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], f"error: {summary['error']}\n") == ("failed", error)
    code, _, shown = call(*words, "name=b", "debug=true")
    assert code == 1
    assert shown.startswith(f"{warning}Traceback")
    assert shown.endswith("\n" + error.replace("runs/a/", "runs/b/"))


def test_an_output_that_cannot_be_written_is_one_line(call, folder):
    (folder / "a file").touch()
    code, _, errors = call(*tiny_words("ncm", *QUIET, "output=a file"))
    assert code == 2
    assert errors.startswith("error: output=a file: ")
    if Path("/proc/self").is_dir():
        # A folder that looks writable and is not.
        code, _, errors = call(*tiny_words("ncm", *QUIET, "output=/proc/runs"))
        assert code == 1
        assert errors.startswith("error: output=/proc/runs: cannot make a folder there (")
        assert errors.count("\n") == 1
    assert made(folder) == {"a file"}
