"""A strategy stopped at the end of any stream batch and continued by another one ends with the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_runs import checked, several_words, tiny_words

from cl_prompts.runs.build import build_data, build_learner
from cl_prompts.runs.state_file import from_bytes, to_bytes
from cl_prompts.strategies.state import strategy_state

CPU = torch.device("cpu")


class Stop(Exception):
    """The process ends here."""


def differences(left, right, path=""):
    """Places where two states differ."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        return [found for key in left for found in differences(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, list | tuple):
        assert len(left) == len(right), path
        return [
            found for index in range(len(left)) for found in differences(left[index], right[index], f"{path}/{index}")
        ]
    if isinstance(left, torch.Tensor | np.ndarray):
        same = np.array_equal(np.asarray(left), np.asarray(right), equal_nan=left.dtype not in (bool, torch.bool))
    else:
        same = left == right or (left != left and right != right)
    return [] if same else [path]


def learner_of(config):
    torch.manual_seed(config.seed)
    data = build_data(config)
    return build_learner(config, data, CPU)


def train(learner, experiences, config, stop_after=None):
    """Train to the end, or to a batch; the state there as the bytes of a file."""
    kept = {}

    def listen(strategy):
        kept["batches"] = kept.get("batches", 0) + 1
        if kept["batches"] == stop_after:
            kept["state"] = to_bytes(strategy.state_dict())
            raise Stop

    learner.strategy.batch_listeners.append(listen)
    try:
        for experience in experiences:
            learner.strategy.train(experience, num_workers=0)
    except Stop:
        return kept["state"]
    return kept.get("batches", 0)


def final(learner):
    state = strategy_state(learner.strategy)
    evaluator = learner.evaluation.evaluator
    latest = getattr(evaluator, "latest", None)
    return from_bytes(to_bytes(state)), None if latest is None else latest.logits


def check(words, at=(1, 0.4, 0.75)):
    config = checked(*words)
    straight = learner_of(config)
    batches = train(straight, straight.benchmark.train_stream, config)
    expected = final(straight)
    for place in at:
        number = max(1, round(place * batches)) if isinstance(place, float) else place
        first = learner_of(config)
        content = train(first, first.benchmark.train_stream, config, stop_after=number)
        second = learner_of(config)
        torch.manual_seed(12345)
        rest = second.strategy.resume(from_bytes(content), list(second.benchmark.train_stream))
        train(second, rest, config)
        found = final(second)
        assert differences(found[0], expected[0]) == [], f"stopped after batch {number} of {batches}"
        if expected[1] is not None and number < batches:
            assert (torch.from_numpy(found[1]).nan_to_num() == torch.from_numpy(expected[1]).nan_to_num()).all()


SINGLE = {
    "mvp": (),
    "single_prompt": ("protocol.augmentation=autoaugment_cifar10",),
    "linear_probe": ("protocol.updates_per_batch=0.7", "protocol.optimizer=sgd", "protocol.momentum=0.9"),
    "ncm": (),
    "multi_lane": ("strategy.head_mode=key",),
}


@pytest.mark.parametrize("strategy", SINGLE)
def test_every_strategy(strategy, one_thread):
    check(tiny_words(strategy, *SINGLE[strategy]))


@pytest.mark.parametrize(
    "words",
    [
        ("protocol.memory_size=20", "protocol.replay_batch=4"),
        ("protocol.memory_size=7", "protocol.replay_batch=4", "protocol.epochs=2", "protocol.optimizer_scope=session"),
        ("protocol.epochs=3", "protocol.shuffle=true", "protocol.lr_schedule=cosine"),
        ("protocol.optimizer_scope=session", "protocol.lr_schedule=cosine", "protocol.epochs=2"),
        ("scenario.view=merged",),
        ("protocol.precision=bf16",),
    ],
    ids=" ".join,
)
def test_every_switch_of_the_protocol(words, one_thread):
    check(tiny_words("linear_probe", *words), at=(0.4, 1.0))


@pytest.mark.parametrize(
    ("scenario", "strategy", "words"),
    [
        ("mlcil", "multi_lane", ()),
        ("mlcil", "multi_lane", ("protocol.session_evaluation=deferred",)),
        ("mlcil", "multi_lane", ("strategy.lane_policy=owner", "protocol.optimizer_scope=stream")),
        ("mlcil", "single_prompt", ()),
        ("ml_si_blurry", "multi_lane", ("strategy.lane_policy=owner",)),
        ("ml_si_blurry", "linear_probe", ()),
    ],
)
def test_several_labels(scenario, strategy, words, one_thread):
    check(several_words(scenario, strategy, *words), at=(0.4, 0.8))
