"""Replay: what joins a batch, that it is never the batch itself, and that labels stay data-set class ids."""

from __future__ import annotations

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche_toys import LinearModel, float_stream, foreign, train_in_order
from toys import CLASSES, Pictures, TrainNormalise, labels, learned, make_strategy, plan_of, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.memory import ReservoirSampler
from cl_prompts.plugins import Reservoir
from scenarios import TrainTransform, benchmark_from_plan

TARGETS = labels(60, [7, 3, 11, 8], 4)
ORDER = torch.randperm(60, generator=torch.Generator().manual_seed(1)).tolist()


def scrambled(task_label=None):
    """A stream whose order, sample ids, class ids and first appearances all differ from each other."""
    plan = plan_of([ORDER[:25], ORDER[25:]], TARGETS, 12)
    return benchmark_from_plan(plan, Pictures(TARGETS), Pictures(TARGETS[:8], seed=1), task_label=task_label)


class Batches(SupervisedPlugin):
    """Everything an update trains on; stands behind the reservoir."""

    def __init__(self):
        super().__init__()
        self.updates = []

    def before_forward(self, strategy, *args, **kwargs):
        self.updates.append(
            (strategy.mb_sample_ids.tolist(), strategy.mb_y.tolist(), strategy.mb_x.clone(), strategy.stream_size)
        )
        assert all(len(part) == len(strategy.mb_y) for part in strategy.mbatch)


@pytest.mark.parametrize("rule", ["exact", "released"])
@pytest.mark.parametrize("task_label", [None, 0])
def test_replay_holds_earlier_samples_with_their_own_images_and_labels(rule, task_label, tiny_backbone):
    batches, reservoir = Batches(), Reservoir(10, 6, seed=2, rule=rule)
    strategy = make_strategy("mvp", tiny_backbone, num_classes=12, plugins=[reservoir, batches], updates_per_batch=2)
    train(strategy, scrambled(task_label))
    pictures = torch.from_numpy(Pictures(TARGETS).images).permute(0, 3, 1, 2)
    earlier: set[int] = set()
    position = 0
    for number, (ids, targets, images, stream_size) in enumerate(batches.updates):
        stream, replay = ids[:stream_size], ids[stream_size:]
        assert stream == ORDER[position : position + stream_size]
        assert len(replay) == min(6, 10, len(earlier))
        assert len(set(replay)) == len(replay)
        assert not set(replay) & set(stream)
        assert set(replay) <= earlier
        assert targets == [TARGETS[index] for index in ids]
        assert torch.equal(images, pictures[ids])
        if number % 2:
            earlier |= set(stream)
            position += stream_size
    assert strategy.samples_seen == 60
    assert len(set(reservoir.sampler.slots)) == 10
    # Both updates of a batch draw afresh.
    pairs = zip(batches.updates[::2], batches.updates[1::2], strict=True)
    assert any(first[0] != second[0] for first, second in pairs)


def test_replayed_images_are_augmented_under_their_own_sample_ids(tiny_backbone):
    class Pixels(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.checked = 0

        def after_forward(self, strategy, *args, **kwargs):
            images = torch.from_numpy(Pictures(TARGETS).images).permute(0, 3, 1, 2)[strategy.mb_sample_ids]
            # A remembered image is drawn anew in every update: the count of all updates is its pass.
            passes = [0] * strategy.stream_size + [strategy.updates] * (len(images) - strategy.stream_size)
            assert torch.equal(strategy.mb_x, augment(images, strategy.mb_sample_ids, passes))
            self.checked += len(images)

    augment = TrainTransform(16, (0.5,) * 3, (0.25,) * 3, augmentation="crop_flip", seed=3)
    pixels = Pixels()
    strategy = make_strategy(
        "linear_probe",
        tiny_backbone,
        num_classes=12,
        plugins=[Reservoir(10, 6), pixels],
        updates_per_batch=1,
        train_transform=augment,
    )
    train(strategy, scrambled())
    assert pixels.checked == 60 + 6 * 8


def test_replay_is_decided_by_its_seed_alone(tiny_backbone):
    def run(seed):
        strategy = make_strategy("mvp", tiny_backbone, num_classes=12, plugins=[Reservoir(10, 6, seed=seed)])
        return learned(train(strategy, scrambled()))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = run(2), run(3)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert any(not torch.equal(first[name], tensor) for name, tensor in other.items())


def test_classes_count_as_exposed_by_the_stream_not_by_replay(tiny_backbone):
    strategy = make_strategy("mvp", tiny_backbone, plugins=[Reservoir(4, 4)], train_mask="session")
    train(strategy, stream_of([[0, 1] * 4, [2] * 8]))
    assert strategy.classes.session.nonzero().flatten().tolist() == [2]
    assert strategy.exposed.nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("size, batch", [(0, 4), (4, 0), (1, 1)])
def test_tiny_memories(size, batch, tiny_backbone):
    reservoir = Reservoir(size, batch)
    strategy = make_strategy("linear_probe", tiny_backbone, plugins=[reservoir])
    train(strategy, stream_of([labels(20, range(CLASSES))]))
    assert len(reservoir.sampler.slots) == size
    assert reservoir.sampler.seen == 20


def test_a_memory_that_stays_empty_changes_nothing(tiny_backbone):
    streams = [stream_of([labels(20, range(CLASSES))]) for _ in range(2)]
    with_plugin = train(make_strategy("mvp", tiny_backbone, plugins=[Reservoir(0, 4)]), streams[0])
    without = train(make_strategy("mvp", tiny_backbone), streams[1])
    for name, tensor in learned(without).items():
        assert torch.equal(learned(with_plugin)[name], tensor)


def test_queries_of_fixed_images_are_not_mixed_up_with_replay(tiny_backbone):
    results = []
    for transform in (TrainNormalise(), lambda images, ids, number: TrainNormalise()(images, ids, number)):
        plugins = [Reservoir(10, 6, seed=2)]
        strategy = make_strategy("mvp", tiny_backbone, num_classes=12, plugins=plugins, train_transform=transform)
        results.append(learned(train(strategy, scrambled())))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor)


class Targets(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.batches = []

    def before_forward(self, strategy, *args, **kwargs):
        self.batches.append(strategy.mb_y.tolist())


@pytest.mark.parametrize("epochs", [1, 2])
def test_under_naive(epochs):
    targets, reservoir = Targets(), Reservoir(6, 4)
    sessions = [[0, 0, 1, 2, 3, 4, 5, 1, 2], [4] * 8]
    strategy = foreign("Naive", LinearModel(), [reservoir, targets], train_epochs=epochs)
    train_in_order(strategy, float_stream(sessions))
    assert [len(batch) for batch in targets.batches[:3]] == ([8, 1 + 4, 8 + 4] if epochs == 1 else [8, 5, 12])
    assert targets.batches[0] == sessions[0][:8]
    assert reservoir.sampler.seen == epochs * 17
    assert len(reservoir.sampler.slots) == 6


@pytest.mark.parametrize("sessions", [[[0, 1] * 8], [[3] * 16]])
def test_a_shuffled_stream_is_refused_before_training(sessions):
    """Also where one class fills the session and no label could tell."""
    model = LinearModel()
    before = model.head.weight.detach().clone()
    for keywords in ({}, {"shuffle": True}):
        strategy = foreign("Naive", model, [Reservoir(6, 4)])
        with pytest.raises(StrategyError, match=r"call strategy.train\(..., shuffle=False\)") as error:
            strategy.train(float_stream(sessions).train_stream[0], **keywords)
        assert "\n" not in str(error.value)
    assert torch.equal(model.head.weight, before)


def test_a_loader_that_changes_the_order_by_itself_is_noticed():
    class Reversed(SupervisedPlugin):
        def before_training_epoch(self, strategy, *args, **kwargs):
            strategy.dataloader = list(strategy.dataloader)[::-1]

    strategy = foreign("Naive", LinearModel(), [Reservoir(6, 4), Reversed()])
    with pytest.raises(StrategyError, match="remembers places in the stream"):
        strategy.train(float_stream([labels(24, range(CLASSES))]).train_stream[0], shuffle=False)


def test_sampler_refuses_what_makes_no_sense():
    with pytest.raises(StrategyError, match="memory size -1: must be 0 or more"):
        ReservoirSampler(-1, 0)
    with pytest.raises(StrategyError, match="memory rule 'official' is unknown; choose one of exact, released"):
        Reservoir(5, 5, rule="official")
