"""What an inspection measures: operations by hand, passes of each method, and estimates by hand. Never the clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_runs import QUIET, checked, several_words, tiny_words

from cl_prompts.backbones import FrozenViT
from cl_prompts.runs.build import build_data, check_device
from cl_prompts.runs.inspection import measurement as module
from cl_prompts.runs.inspection.estimate import estimate
from cl_prompts.runs.inspection.measurement import Measurement, Passes, measure
from cl_prompts.runs.inspection.operations import OperationCounter
from cl_prompts.runs.inspection.stopwatch import Stopwatch
from cl_prompts.runs.inspection.work import Work, planned_work
from cl_prompts.runs.prepared import prepare

WIDTH, PATCH, SIDE = 24, 4, 32
PATCHES = (SIDE // PATCH) ** 2
TOKENS = PATCHES + 1


def block(queries=TOKENS):
    """Operations of one block that computes so many of its rows, a multiply-add being two."""
    keys_and_values = 2 * TOKENS * WIDTH * 2 * WIDTH
    own_rows = 2 * queries * WIDTH * WIDTH  # queries
    attention = 2 * 2 * queries * TOKENS * WIDTH
    projection, mlp = 2 * queries * WIDTH * WIDTH, 2 * 2 * queries * WIDTH * 4 * WIDTH
    return keys_and_values + own_rows + attention + projection + mlp


EMBEDDING = 2 * PATCHES * 3 * PATCH * PATCH * WIDTH
PASS = EMBEDDING + 2 * block()
QUERY = EMBEDDING + block() + block(queries=1)
"""A query computes the class token alone in the last block."""


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference", "bf16"],
)
def test_operations_of_a_vision_transformer_are_those_of_the_formulas(context):
    model = VisionTransformer(img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=3, num_classes=0)
    backbone, images = FrozenViT(model), torch.rand(5, 3, SIDE, SIDE)
    with context(), OperationCounter() as counter:
        backbone(images)
        passed = counter.operations
        backbone.query(images)
    assert passed == 5 * PASS
    assert counter.operations - passed == 5 * QUERY


def test_operations_of_a_backward_pass_are_counted_and_the_counter_can_be_entered_again():
    weight = torch.rand(7, 4, requires_grad=True)
    counter = OperationCounter()
    with counter:
        loss = (torch.rand(3, 4) @ weight.T).sum()
    torch.rand(50, 50) @ torch.rand(50, 50)
    assert counter.operations == 2 * 3 * 4 * 7
    with counter:
        loss.backward()
    assert counter.operations == 2 * (2 * 3 * 4 * 7)  # one product for the weight, none for the data


def prepared(words):
    config = checked(*QUIET, *words)
    run = prepare(config, check_device("cpu"))
    return config, run.data, run.learner


def head(classes=10):
    return 2 * WIDTH * classes


@pytest.mark.parametrize(
    ("strategy", "forward", "backward", "once", "each"),
    [
        # The class means are compared with the query: one more product of the head's size.
        ("ncm", QUERY + head(), 0, QUERY, head()),
        ("linear_probe", QUERY + head(), head(), QUERY, head()),
    ],
)
def test_passes_of_methods_whose_every_product_is_known(one_thread, strategy, forward, backward, once, each):
    config, data, learner = prepared(tiny_words(strategy))
    measured = measure(config, data, learner, seconds=0.02)
    expected = Passes(PASS / 1e9, forward / PASS, backward / PASS, once / PASS, each / PASS)
    assert vars(measured.passes) == pytest.approx(vars(expected), rel=1e-9)
    assert measured.batches >= 1
    assert measured.seconds_per_row > 0
    assert not measured.whole_test_set
    assert measured.gpu_memory is None


def test_a_prompted_method_needs_a_query_and_a_prompted_pass_and_a_backward_pass(one_thread):
    config, data, learner = prepared(tiny_words("mvp", "protocol.updates_per_batch=0.5", "strategy.query_blocks=2"))
    passes = measure(config, data, learner, seconds=0.02).passes
    # Query and prompted pass share the embedding in training; whatever prompts add, the frozen part of both is there.
    assert (2 * QUERY - EMBEDDING) / PASS < passes.forward < 2.5
    assert 0.2 < passes.backward < 1.5
    assert passes.evaluation_once == pytest.approx(QUERY / PASS, rel=0.1)
    assert passes.evaluation_each == pytest.approx(passes.forward - (QUERY - EMBEDDING) / PASS, rel=0.05)


def test_a_method_of_finished_parts_passes_over_the_whole_test_set(one_thread):
    config, data, learner = prepared(several_words("mlcil", "multi_lane"))
    measured = measure(config, data, learner, seconds=0.02)
    assert measured.whole_test_set
    assert measured.passes.evaluation_once == measured.seconds_once == 0
    assert measured.passes.evaluation_each > 0.5


def test_batches_that_take_too_long_are_measured_in_part(one_thread, monkeypatch):
    monkeypatch.setattr(module, "_one_pass", lambda *arguments: (PASS, 0.01))
    config, data, learner = prepared(tiny_words("linear_probe", "protocol.stream_batch=20"))
    # Half a second for three passes of ten milliseconds in each of three updates.
    assert measure(config, data, learner, seconds=1.0).batch_size == 5
    config, data, learner = prepared(tiny_words("linear_probe", "protocol.stream_batch=4"))
    assert measure(config, data, learner, seconds=1.0).batch_size == 4


def test_the_stopwatch_times_what_comes_after_the_counted_batch():
    class Strategy:
        mb_y = torch.zeros(4)
        stopped = 0

        def stop_training(self):
            self.stopped += 1

    times = iter([0.0, 1.0, 3.0, 3.0, 6.0, 6.0, 10.0, 10.5])
    strategy, watch = Strategy(), Stopwatch(lambda: next(times), end=10.0)
    watch.before_training_epoch(strategy)
    for _ in range(3):
        watch.before_training_iteration(strategy)
        watch.before_forward(strategy)
        torch.rand(2, 3) @ torch.rand(3, 5)
        watch.after_forward(strategy)
        watch.after_training_iteration(strategy)
    assert (watch.counted_rows, watch.rows, watch.batches) == (4, 8, 2)
    assert watch.forward == 2 * 2 * 3 * 5
    assert watch.seconds == (6.0 - 3.0) + (10.0 - 6.0)
    assert (watch.is_over, strategy.stopped) == (True, 1)


MEASURED = Measurement(
    passes=Passes(1.0, 2.0, 1.0, 1.0, 1.0),
    batches=3,
    batch_size=5,
    seconds=1.5,
    seconds_per_row=0.1,
    test_images=4,
    seconds_once=0.01,
    seconds_each=0.02,
    whole_test_set=False,
    memory=1000,
    batch_memory=300,
    gpu_memory=70,
)
WORK = Work(samples=40, batches=4, updates=12, rows=120, evaluations=5, evaluated_images=60, test_images=20)


def test_an_estimate_is_the_counted_work_at_the_measured_speed():
    config = checked(*QUIET, *tiny_words("mvp"))  # batches of ten
    data = build_data(config)
    found = estimate(config, data, WORK, MEASURED, preparation=3.0)
    assert found.training == pytest.approx(120 * 0.1)
    assert found.evaluation == pytest.approx(20 * 0.01 + 60 * 0.02)
    assert found.seconds == pytest.approx(3.0 + found.training + found.evaluation)
    height, width = data.test.image_shape
    assert found.memory == 1000 + 300 + 20 * 3 * height * width
    assert found.gpu_memory == 140
    parts = estimate(config, data, WORK, replace(MEASURED, whole_test_set=True, memory=None), preparation=0.0)
    assert parts.evaluation == pytest.approx(20 * 0.01 + 5 * 20 * 0.02)
    assert parts.memory is None


def test_the_work_of_closed_forms_is_one_fit_a_batch():
    config = checked(*QUIET, *tiny_words("ncm"))
    work = planned_work(config, build_data(config))
    assert (work.updates, work.rows) == (work.batches, work.samples)
