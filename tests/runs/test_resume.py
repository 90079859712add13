"""`resume=` and `autoresume=true`: a run that was stopped ends as if it had not been, or says why it cannot."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import Finished, checked, tiny_words

from cl_prompts.errors import UserError
from cl_prompts.runs.checkpoints import CheckpointStore
from cl_prompts.runs.continuing import resume_words, resumed_config
from cl_prompts.runs.execute import execute
from cl_prompts.runs.saving import alone_in
from cl_prompts.runs.state_file import from_bytes, to_bytes

EVENTS = "protocol.updates_per_batch=1"


def stop_at(monkeypatch, samples, action):
    """Do something at the end of the first batch at which so many samples were seen, before anything is saved there."""
    from cl_prompts.runs import saving

    call = saving.Saving.__call__

    def before(self, strategy):
        if strategy.samples_seen >= samples and not strategy.__dict__.get("acted"):
            strategy.acted = True
            action()
        call(self, strategy)

    monkeypatch.setattr(saving.Saving, "__call__", before)


class Killed(Exception):
    """Stands for SIGKILL: nothing of ours may run to save anything."""


def kill():
    raise Killed


def tensors(folder: Path) -> dict[str, np.ndarray]:
    state = CheckpointStore(folder / "checkpoints").load(lambda text: None)
    assert state is not None
    return {name: value.numpy() for name, value in state["strategy"]["method"]["tensors"].items()}


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("curves.csv", "class_accuracy.csv", "plan.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert np.array_equal(value, right[name]), name


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    tags = [tag for tag in reader.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


def start(words, tmp_path) -> int:
    return execute(checked(*words, "progress=none", f"output={tmp_path}"))


def resume(folder: Path, *words: str) -> int:
    return execute(resumed_config(folder, words))


@pytest.mark.parametrize(("strategy", "samples"), [("mvp", 5), ("mvp", 20), ("ncm", 40)])
def test_a_killed_run_ends_with_the_same_files(strategy, samples, one_thread, tmp_path, monkeypatch, capsys):
    words = tiny_words(strategy, EVENTS, "protocol.eval_every=10", "checkpoint_every=10")
    assert start([*words, "name=straight"], tmp_path) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, samples, kill)
        with pytest.raises(Killed):
            start([*words, "name=killed"], tmp_path)
    assert resume(tmp_path / "killed", "num_workers=2", "progress=none") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    assert scalars(tmp_path / "straight") == scalars(tmp_path / "killed")
    assert Finished(0, tmp_path / "killed").summary["status"] == "finished"


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_request_to_stop_saves_first(number, one_thread, tmp_path, monkeypatch):
    words = tiny_words("linear_probe", "protocol.eval_every=10", "checkpoint_every=0", "tensorboard=false")
    assert start([*words, "name=straight"], tmp_path) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 17, lambda: os.kill(os.getpid(), getattr(signal, number)))
        assert start([*words, "name=asked"], tmp_path) == (130 if number == "SIGINT" else 143)
    (saved,) = CheckpointStore(tmp_path / "asked" / "checkpoints").files()
    assert int(saved.name[:12]) >= 17
    assert Finished(0, tmp_path / "asked").summary["status"] == "interrupted"
    assert resume(tmp_path / "asked") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "asked")


def test_a_batch_that_takes_too_long_is_not_waited_for(one_thread, tmp_path, monkeypatch):
    from cl_prompts.runs import termination

    monkeypatch.setattr(termination, "PATIENCE_SECONDS", 0.05)
    words = tiny_words("linear_probe", "tensorboard=false", "checkpoint_every=10")

    def hang():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    stop_at(monkeypatch, 25, hang)
    assert start([*words, "name=asked"], tmp_path) == 143


class TestRefusals:
    @pytest.fixture
    def stopped(self, one_thread, tmp_path, monkeypatch) -> Path:
        words = tiny_words("linear_probe", "tensorboard=false", "checkpoint_every=10", "name=run")
        with monkeypatch.context() as patch:
            stop_at(patch, 32, kill)
            with pytest.raises(Killed):
                start(words, tmp_path)
        return tmp_path / "run"

    def test_a_key_that_decides_a_number_may_not_change(self, stopped):
        with pytest.raises(UserError, match=r"would change protocol\.lr=0\.005, now 0\.1; .* start anew"):
            resumed_config(stopped, ["protocol.lr=0.1"])
        with pytest.raises(UserError, match="started with strategy=linear_probe"):
            resumed_config(stopped, ["strategy=mvp"])
        assert resumed_config(stopped, ["strategy=linear_probe", "num_workers=1"]).num_workers == 1

    def test_no_run_and_two_runs_are_one_line(self, tmp_path):
        with pytest.raises(UserError, match="no run lies there"):
            resume_words([f"resume={tmp_path}"])
        with pytest.raises(UserError, match="give one folder"):
            resume_words(["resume=a", "resume=b"])
        assert resume_words(["seed=1", "resume=null"]) is None

    def test_a_damaged_file_falls_back_to_the_one_before(self, stopped, one_thread, tmp_path, capsys):
        newest = CheckpointStore(stopped / "checkpoints").files()[-1]
        newest.write_bytes(newest.read_bytes()[:-100])
        assert resume(stopped) == 0
        assert "truncated or changed" in " ".join(capsys.readouterr().err.split())
        words = tiny_words("linear_probe", "tensorboard=false", "checkpoint_every=10")
        assert start([*words, "name=straight"], tmp_path) == 0
        assert_same_run(tmp_path / "straight", stopped)

    def test_only_damaged_files_stop_with_the_reason(self, stopped):
        for path in CheckpointStore(stopped / "checkpoints").files():
            path.write_bytes(b"")
        with pytest.raises(UserError, match=r"no checkpoint can be read: .*truncated or changed.*start the run anew"):
            resume(stopped)

    def test_other_images_are_refused(self, stopped):
        store = CheckpointStore(stopped / "checkpoints")
        state = store.load(lambda text: None)
        assert state is not None
        state["identity"]["content"]["train"] = "0" * 64
        for path in store.files():
            path.unlink()
        store.save(20, {key: value for key, value in state.items() if key != "schema"})
        with pytest.raises(UserError, match="the training images changed since the checkpoint"):
            resume(stopped)

    def test_a_folder_in_use_is_refused(self, stopped):
        with alone_in(stopped), pytest.raises(UserError, match="another process is running in this folder"):
            resume(stopped)

    def test_autoresume_goes_on_and_skips_what_is_finished(self, stopped, tmp_path, capsys):
        words = [*tiny_words("linear_probe", "tensorboard=false", "checkpoint_every=10"), "autoresume=true"]
        assert start(words, tmp_path) == 0
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"run"}
        assert Finished(0, stopped).summary["status"] == "finished"
        assert start(words, tmp_path) == 0
        assert "finished already" in capsys.readouterr().out
        assert start([*words, "seed=9"], tmp_path) == 0
        assert len(list(tmp_path.iterdir())) == 2


class TestStateFile:
    def test_everything_comes_back(self):
        import torch

        state = {
            "a": [1, 2.5, float("inf"), None, True, "é"],
            3: (torch.arange(3), np.array([True, False])),
            "nested": {"x": {1: torch.zeros(0)}},
        }
        back = from_bytes(to_bytes(state))
        assert back["a"] == state["a"]
        assert isinstance(back[3], tuple)
        assert torch.equal(back[3][0], torch.arange(3))
        assert back[3][1].dtype == bool
        assert back["nested"]["x"][1].shape == (0,)

    def test_equal_states_are_equal_bytes(self):
        import torch

        assert len({to_bytes({"b": torch.ones(3), "a": [1, "é"]}) for _ in range(20)}) == 1

    def test_objects_cannot_be_saved(self):
        with pytest.raises(TypeError, match="object"):
            to_bytes({"a": object()})

    @pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"PK\x03\x04 pickle", to_bytes({"a": 1})[:-3] + b"xxx"])
    def test_other_files_are_one_line(self, content):
        with pytest.raises(UserError) as caught:
            from_bytes(content)
        assert "\n" not in str(caught.value)
