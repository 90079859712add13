"""TensorBoard events, read back from their files."""

from __future__ import annotations

import errno
import io
import math
import sys
import time

import numpy as np
import pytest
import torch
from evaluation_points import point, small_run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cl_prompts.errors import UserError
from cl_prompts.logging import TensorBoardLog
from cl_prompts.metrics import summarise

TRAINING = {
    "loss/cross_entropy",
    "loss/prompt",
    "loss/total",
    "train/running_accuracy",
    "optimizer/learning_rate",
    "speed/samples_per_second",
    "prompt_usage/entropy",
}


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0, "tensors": 0})
    return events.Reload()


def curve(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_training_curves_have_samples_seen_on_the_x_axis(stub, tmp_path):
    strategy = stub(usage=torch.tensor([6.0, 2.0, 0.0]))
    log = TensorBoardLog(tmp_path, every_samples=20)
    strategy.walk(log, 9)
    log.close()
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) >= TRAINING
    for tag in TRAINING:
        # The first batch end at or beyond each multiple of 20, and the end of the experience.
        assert [step for step, _ in curve(events, tag)] == [24, 40, 64, 72]
    assert curve(events, "loss/prompt")[0][1] == 0.5
    assert curve(events, "loss/total")[0][1] == 2.0
    assert curve(events, "train/running_accuracy")[0][1] == 0.75
    assert curve(events, "optimizer/learning_rate")[0][1] == 0.25
    assert curve(events, "speed/samples_per_second")[0][1] > 0
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert curve(events, "prompt_usage/entropy")[0][1] == pytest.approx(entropy)
    assert strategy.running_accuracy.reads == 4


def test_usage_histogram_has_one_bar_a_prompt_and_nothing_else_is_a_histogram(stub, tmp_path):
    with TensorBoardLog(tmp_path, every_samples=8) as log:
        stub(usage=torch.tensor([6.0, 2.0, 0.0, 5.0])).walk(log, 1)
    events = read(tmp_path)
    assert events.Tags()["histograms"] == ["prompt_usage/counts"]
    (histogram,) = (event.histogram_value for event in events.Histograms("prompt_usage/counts"))
    bars = dict(zip(histogram.bucket_limit, histogram.bucket, strict=True))
    assert [bars.get(limit, 0) for limit in (0.5, 1.5, 2.5, 3.5)] == [6, 2, 0, 5]
    assert sum(histogram.bucket) == histogram.num == 13


def test_a_model_without_prompts_and_an_unused_pool_have_no_entropy(stub, tmp_path):
    for name, usage in (("none", None), ("unused", torch.zeros(3))):
        with TensorBoardLog(tmp_path / name, every_samples=8) as log:
            stub(usage=usage).walk(log, 1)
        assert "prompt_usage/entropy" not in read(tmp_path / name).Tags()["scalars"]


def test_evaluations_equal_the_summary(stub, tmp_path):
    points, sessions, kinds = small_run()
    with TensorBoardLog(tmp_path, every_samples=8) as log:
        for measured in [points[0], sessions[0], points[1], sessions[1], points[2]]:
            log.on_evaluation(stub(), measured)
    events = read(tmp_path)
    summary = summarise(points, sessions, kinds)
    anytime = curve(events, "anytime/accuracy")
    assert anytime == [(p.samples_seen, pytest.approx(p.accuracy, abs=1e-6)) for p in points]
    assert curve(events, "anytime/a_auc_so_far")[-1] == (30, pytest.approx(summary["a_auc"], abs=1e-6))
    assert curve(events, "anytime/a_auc_so_far")[0][1] == pytest.approx(points[0].accuracy, abs=1e-6)
    assert curve(events, "session/accuracy") == [(p.samples_seen, pytest.approx(p.accuracy)) for p in sessions]
    assert curve(events, "anytime/exposed_classes") == [(12, 1.0), (22, 2.0), (30, 3.0)]
    assert [step for step, _ in curve(events, "anytime/loss")] == [12, 22, 30]
    assert [image.step for image in events.Images("confusion_matrix")] == [16, 30]


def test_a_final_point_at_a_periodic_one_gives_one_point(stub, tmp_path):
    with TensorBoardLog(tmp_path, every_samples=8) as log:
        log.on_evaluation(stub(), point(8, [1, 1], [2, 2]))
        log.on_evaluation(stub(), point(8, [1, 1], [2, 2], kind="final"))
        log.on_evaluation(stub(), point(9, [0, 0], [0, 0], kind="session", session=0, loss=math.nan))
    events = read(tmp_path)
    assert curve(events, "anytime/accuracy") == [(8, 0.5)]
    assert "session/accuracy" not in events.Tags()["scalars"]
    assert len(events.Images("confusion_matrix")) == 1


def test_configuration_stream_and_its_picture_are_there_from_the_start(plan, tmp_path):
    config = "strategy:\n  name: mvp  # *as* _typed_\n"
    TensorBoardLog(tmp_path, every_samples=8, plan=plan, config_text=config).close()
    events = read(tmp_path)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert texts["config/text_summary"].splitlines() == [f"    {line}" for line in config.splitlines()]
    assert plan.sha256 in texts["plan/text_summary"]
    assert all(line in texts["plan/text_summary"] for line in plan.describe())
    (picture,) = events.Images("stream")
    assert picture.step == 0
    assert np.asarray(Image.open(io.BytesIO(picture.encoded_image_string))).std() > 10


def test_a_resumed_run_has_one_point_at_one_place(stub, tmp_path, plan):
    strategy = stub()
    log = TensorBoardLog(tmp_path, every_samples=8, plan=plan, config_text="a: 1")
    strategy.walk(log, 4)
    log.on_evaluation(strategy, point(16, [2, 0], [4, 0]))
    log.on_evaluation(strategy, point(32, [1, 0], [4, 0]))
    log.close()
    resumed = stub()
    resumed.samples_seen = 24
    # Files of one second are told apart by a counter, which sorts 10 before 9; no one resumes that fast.
    begun = int(time.time())
    while int(time.time()) == begun:
        time.sleep(0.02)
    log = TensorBoardLog(
        tmp_path,
        every_samples=8,
        plan=plan,
        config_text="a: 1",
        resumed_at=24,
        previous=[point(16, [2, 0], [4, 0])],
    )
    resumed.walk(log, 3)
    log.on_evaluation(resumed, point(32, [4, 0], [4, 0]))
    log.close()
    events = read(tmp_path)
    assert [step for step, _ in curve(events, "loss/total")] == [8, 16, 24, 32, 40, 48]
    assert curve(events, "anytime/a_auc_so_far") == [(16, 0.5), (32, 0.75)]
    assert len(events.Images("stream")) == 1


def test_logging_leaves_weights_and_random_states_alone(naive, plan, tmp_path):
    def train(*plugins):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - the global state is what is watched
        strategy, stream = naive(*plugins)
        for experience in stream:
            strategy.train(experience)  # shuffled by the global generator
            for plugin in plugins:
                plugin.on_evaluation(strategy, point(8, [1, 1], [2, 2], kind="session", session=0))
        return strategy.model.state_dict(), torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002

    weights, state, numpy_state = train()
    log = TensorBoardLog(tmp_path, every_samples=1, plan=plan)
    logged_weights, logged_state, logged_numpy_state = train(log)
    log.close()
    for name, tensor in weights.items():
        assert torch.equal(tensor, logged_weights[name])
    assert torch.equal(state, logged_state)
    assert (numpy_state == logged_numpy_state).all()
    events = read(tmp_path)
    assert [step for step, _ in curve(events, "loss/total")][-1] == plan.num_samples
    assert {"train/running_accuracy", "optimizer/learning_rate"} <= set(events.Tags()["scalars"])


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write TensorBoard events") as error:
        TensorBoardLog(tmp_path / "file" / "below", every_samples=8)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="every_samples=0"):
        TensorBoardLog(tmp_path, every_samples=0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits of the system")
def test_a_disk_that_fills_up_is_one_line_and_no_traceback(stub, tmp_path, monkeypatch):
    import resource
    import threading

    unhandled = []
    monkeypatch.setattr(threading, "excepthook", unhandled.append)
    hook = threading.excepthook
    log = TensorBoardLog(tmp_path, every_samples=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def until_full():
        with log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            stub(usage=torch.ones(50)).walk(log, 2000)

    try:
        with pytest.raises(UserError, match="cannot write TensorBoard events") as error:
            until_full()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert error.value.__cause__.errno == errno.EFBIG
    assert unhandled == []
    assert threading.excepthook == hook


def test_other_threads_keep_their_traceback(tmp_path):
    import threading

    seen = []
    before, threading.excepthook = threading.excepthook, lambda arguments: seen.append(arguments.exc_type)
    try:
        with TensorBoardLog(tmp_path, every_samples=1):
            thread = threading.Thread(target=lambda: [][0])
            thread.start()
            thread.join()
    finally:
        threading.excepthook = before
    assert seen == [IndexError]
