"""Faults while a run goes on, injected for real: one line, nothing saved is lost, and no wrong number is kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TINY, checked, only_folder, tiny_words

from cl_prompts.errors import BackboneError, NotFiniteError, UserError
from cl_prompts.runs.checkpoints import CheckpointStore
from cl_prompts.runs.execute import execute
from cl_prompts.runs.failures import failure_text, no_news_of_workers
from cl_prompts.strategies.base import ContinualStrategy
from scenarios import load_plan

SILENT = ("progress=none", "tensorboard=false", "protocol.eval_every=10", "protocol.updates_per_batch=1")


@pytest.fixture
def after(monkeypatch):
    """`after(samples, action)`: do something once, at the end of the stream batch at which so many were seen."""
    from cl_prompts.runs import saving

    def plan(samples, action):
        call, done = saving.Saving.__call__, []

        def first(self, strategy):
            if strategy.samples_seen >= samples and not done:
                done.append(True)
                action(strategy)
            call(self, strategy)

        monkeypatch.setattr(saving.Saving, "__call__", first)

    return plan


def failed(words, output: Path, expected: type[Exception] = UserError) -> tuple[str, Exception]:
    """Run until it fails; the line a user gets, and the error."""
    with pytest.raises(expected) as caught:
        execute(checked(*words, *SILENT, f"output={output}"))
    line = failure_text(caught.value)
    assert "\n" not in line
    assert "unexpected" not in line
    return line, caught.value


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


# --- no numbers -----------------------------------------------------------------------------------------------------


def lose_the_loss(monkeypatch, at_update):
    outputs = ContinualStrategy.criterion

    def criterion(self):
        return outputs(self) * (float("nan") if self.updates == at_update and not self.is_eval else 1)

    monkeypatch.setattr(ContinualStrategy, "criterion", criterion)


def test_the_samples_of_a_broken_batch_are_saved_and_named(one_thread, tmp_path, monkeypatch):
    lose_the_loss(monkeypatch, at_update=3)
    line, _ = failed(tiny_words("linear_probe"), tmp_path, NotFiniteError)
    folder = only_folder(tmp_path)
    details = json.loads((folder / "not_finite.json").read_text(encoding="utf-8"))
    assert line.endswith(f"; all samples of the batch are in {folder / 'not_finite.json'}")
    assert (summary(folder)["status"], summary(folder)["error"]) == ("failed", line)
    assert details["not_finite"] == "loss"
    assert details["losses"]["total"] == "nan"
    assert (details["updates"], details["replayed_samples"]) == (3, [])
    stream = load_plan(folder).order
    seen, ids = details["samples_seen"], details["stream_samples"]
    assert stream[seen : seen + len(ids)].tolist() == ids
    assert f"after {seen} samples and 3 updates" in line


def test_no_state_is_saved_after_a_loss_that_is_no_number(one_thread, tmp_path, monkeypatch):
    """As on a GPU, where the loop looks only now and then: the save itself has to."""
    monkeypatch.setattr(ContinualStrategy, "_look_for_faults", lambda self, every: None)
    lose_the_loss(monkeypatch, at_update=1)
    words = tiny_words("linear_probe", "checkpoint_every=1", "scenario.n_sessions=1")
    with pytest.raises(NotFiniteError, match="and 1 updates"):
        execute(checked(*words, *SILENT, "protocol.eval_every=0", f"output={tmp_path}"))
    store = CheckpointStore(only_folder(tmp_path) / "checkpoints")
    state = store.load(lambda text: None)
    assert state is not None
    assert state["strategy"]["updates"] == 1
    assert all(torch.isfinite(value).all() for value in state["strategy"]["method"]["tensors"].values())


# --- a backbone that does not stay frozen ---------------------------------------------------------------------------


def test_a_backbone_that_is_written_to_stops_the_run_at_the_session_end(one_thread, tmp_path, after):
    def write(strategy):
        with torch.no_grad():
            strategy.model.backbone.model.blocks[1].mlp.fc1.weight[0, 0] += 1e-3

    after(1, write)
    line, _ = failed(tiny_words("ncm"), tmp_path, BackboneError)
    assert line.startswith("the frozen backbone changed during training: model.blocks.1.mlp.fc1.weight; ")
    found = summary(only_folder(tmp_path))
    assert (found["status"], found["error"]) == ("failed", line)
    assert found["samples_seen"] < found["samples_planned"]


def test_what_is_written_past_the_counters_is_found_before_the_run_counts_as_finished(one_thread, tmp_path, after):
    def write(strategy):
        strategy.model.backbone.model.norm.bias.data[0] += 1e-3

    after(10, write)
    line, _ = failed(tiny_words("ncm"), tmp_path, BackboneError)
    assert "changed during training: model.norm.bias; " in line
    found = summary(only_folder(tmp_path))
    assert (found["status"], found["samples_seen"]) == ("failed", 40)


def test_the_same_values_written_again_are_no_change(one_thread, tmp_path, after):
    after(1, lambda strategy: strategy.model.backbone.load_state_dict(strategy.model.backbone.state_dict()))
    assert execute(checked(*tiny_words("ncm"), *SILENT, f"output={tmp_path}")) == 0


# --- memory and workers ---------------------------------------------------------------------------------------------


def allocate_on_the_cpu():
    torch.empty(2**58, dtype=torch.uint8)


def allocate_an_array():
    np.empty(2**58, dtype=np.uint8)


def allocate_on_a_gpu():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of\n1 GiB"
    )


ALLOCATIONS = {"CPU": allocate_on_the_cpu, "array": allocate_an_array, "GPU": allocate_on_a_gpu}


@pytest.mark.parametrize("allocate", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_lack_of_memory_in_training_names_the_stream_batch(allocate, one_thread, tmp_path, monkeypatch):
    from cl_prompts.strategies.linear_probe import LinearProbeMethod

    monkeypatch.setattr(LinearProbeMethod, "training_outputs", lambda *arguments: allocate())
    line, _ = failed(tiny_words("linear_probe", "protocol.stream_batch=10"), tmp_path)
    where = "the GPU" if allocate is allocate_on_a_gpu else "this machine"
    assert line.startswith(f"out of memory on {where} in training; halve protocol.stream_batch (10 -> 5: about 0.00")
    assert "protocol.precision=bf16" in line
    assert "smaller backbone" in line
    assert summary(only_folder(tmp_path))["error"] == line


def test_lack_of_memory_in_an_evaluation_names_its_batch(one_thread, tmp_path, monkeypatch):
    from cl_prompts.evaluation.logits import ModelLogits

    def of(self, *arguments):
        allocate_on_the_cpu()

    monkeypatch.setattr(ModelLogits, "of", of)
    line, _ = failed(tiny_words("ncm", "protocol.eval_batch=64"), tmp_path)
    assert line.startswith("out of memory on this machine during an evaluation; halve protocol.eval_batch (64 -> 32: ")


def test_other_errors_of_torch_are_not_taken_for_lack_of_memory():
    assert "unexpected" in failure_text(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert failure_text(MemoryError()).startswith("out of memory; halve protocol.stream_batch")
    text = (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that workers are out of shared memory"
    )
    assert "/dev/shm" in failure_text(RuntimeError(text))


def test_the_death_of_a_worker_is_not_raised_while_a_failure_is_written_down():
    def raised(*arguments):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, raised)
    try:
        with no_news_of_workers():
            signal.raise_signal(signal.SIGCHLD)
        with pytest.raises(RuntimeError):
            signal.raise_signal(signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_worker_that_the_system_kills_is_one_line(one_thread, tmp_path, after):
    def kill(strategy):
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)

    after(2, kill)
    words = tiny_words("ncm", "num_workers=1", "protocol.stream_batch=2", "scenario.n_sessions=1")
    line, _ = failed(words, tmp_path, Exception)
    assert line.startswith("a process that reads images was ended by the system, most likely because memory ran out")
    # Nothing of it is left to disturb the next run of a sweep.
    assert not multiprocessing.active_children()
    signal.raise_signal(signal.SIGCHLD)
    assert "num_workers" in line
    assert summary(only_folder(tmp_path))["error"] == line


# --- files ----------------------------------------------------------------------------------------------------------


def image_folder(root: Path) -> list[str]:
    for name, shift in (("ant", 0), ("bee", 50)):
        for part, count in (("train", 6), ("test", 2)):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng([shift, index, count]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    backbone = [word for word in TINY if word.startswith("backbone")]
    return [*backbone, "strategy=ncm", "dataset=image_folder", f"dataset.root={root}", "scenario.n_sessions=1"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_in_the_middle_of_a_stream_is_one_line(workers, one_thread, tmp_path, after):
    words = image_folder(tmp_path / "images")

    def damage(strategy):
        for path in (tmp_path / "images" / "train").glob("*/*.png"):
            path.write_bytes(path.read_bytes()[:50])

    after(1, damage)
    more = ("dataset.cache=none", f"num_workers={workers}", "protocol.stream_batch=1")
    line, _ = failed([*words, *more], tmp_path / "out")
    assert line.startswith(f"{tmp_path / 'images' / 'train'}")
    assert "damaged image" in line
    assert "it was readable when the run started" in line


def test_shared_images_are_said_and_kept(one_thread, tmp_path, capsys):
    words = image_folder(tmp_path / "images")
    shutil.copy(tmp_path / "images" / "train" / "ant" / "0.png", tmp_path / "images" / "test" / "ant" / "copy.png")
    assert execute(checked(*words, *SILENT, f"output={tmp_path / 'out'}")) == 0
    manifest = json.loads((only_folder(tmp_path / "out") / "manifest.json").read_text(encoding="utf-8"))
    (notice,) = (text for text in manifest["notices"] if "in the training part" in text)
    assert notice.startswith("1 of 5 test images are in the training part, too (byte for byte, 1 training images)")
    assert notice in " ".join(capsys.readouterr().err.split())
    expected = {"compared": "files", "test_images": 1, "train_images": 1, "total": 5, "reason": None}
    assert manifest["shared_images"] == expected


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize("lose", [shutil.rmtree, replace_by_a_file])
def test_a_run_folder_that_is_lost_is_one_line(lose, one_thread, tmp_path, after, capsys):
    folder = tmp_path / "run"
    after(10, lambda strategy: lose(folder))
    line, _ = failed(tiny_words("ncm", "name=run"), tmp_path)
    assert line.startswith(f"cannot write {folder}")
    assert "was removed or replaced" in line
    assert "warning: cannot" not in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["checkpoints", "the disk", "space"])
def test_a_state_that_cannot_be_saved_leaves_the_one_before(lost, one_thread, tmp_path, after):
    folder, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def lose(strategy):
        if lost == "checkpoints":
            shutil.move(folder / "checkpoints", tmp_path / "kept")
            (folder / "checkpoints").touch()
        elif lost == "space":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        else:
            for name in ("curves.csv", "summary.json"):
                os.symlink("/dev/full", folder / f".{name}.{os.getpid()}-{threading.get_ident()}.tmp")

    after(20, lose)
    try:
        line, _ = failed(tiny_words("ncm", "name=run", "checkpoint_every=10"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    named = {"checkpoints": "checkpoints", "the disk": "curves.csv", "space": "checkpoints"}[lost]
    assert line.startswith(f"cannot write {folder}/{named}")
    kept = tmp_path / "kept" if lost == "checkpoints" else folder / "checkpoints"
    state = CheckpointStore(kept).load(lambda text: None)
    assert state is not None
    assert 10 <= state["strategy"]["samples_seen"] <= 30
    assert (summary(folder)["status"], summary(folder)["error"]) == ("failed", line)
