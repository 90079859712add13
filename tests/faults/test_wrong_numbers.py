"""Wrong numbers stop a strategy in one line: not finite, labels out of range, the wrong tensors trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import CLASSES, Pictures, assert_same, labels, learned, make_strategy, normalise, stream_of, train

from cl_prompts.errors import MetricError, NotFiniteError, StrategyError
from cl_prompts.evaluation import Evaluator
from cl_prompts.labels import check_labels_of_batch
from cl_prompts.masks import ClassTracker
from cl_prompts.plugins import Reservoir

PASSES = {"mvp": "training_outputs", "linear_probe": "training_outputs", "ncm": "query"}
"""Method -> what of it is made to fail."""


def broken(value, where, at_update):
    """A replacement of a method's pass whose loss or logits become `value` at one update."""

    def wrap(original):
        calls = iter(range(10**6))

        def call(*arguments):
            result = original(*arguments)
            if next(calls) != at_update:
                return result
            if where == "query":
                return result * value
            if where == "loss":
                result.losses["extra"] = torch.tensor(value)
            else:
                result.logits = result.logits.clone()
                result.logits[-1, 0] = value
            return result

        return call

    return wrap


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name, where, what", [("mvp", "loss", "loss"), ("mvp", "logits", "logits"), ("ncm", "query", "logits")]
)
def test_what_is_not_finite_stops_before_the_weights_and_names_the_samples(name, where, what, value, tiny_backbone):
    plugins = [] if name == "ncm" else [Reservoir(4, 3)]
    strategy = make_strategy(name, tiny_backbone, plugins=plugins)
    failing = PASSES[name]
    # Two updates a batch: the fourth is the second of the second batch; a closed form has one.
    at_update = 1 if name == "ncm" else 3
    setattr(strategy.model, failing, broken(value, where, at_update)(getattr(strategy.model, failing)))
    with pytest.raises(NotFiniteError) as caught:
        train(strategy, stream_of([labels(20, range(CLASSES))]))
    error, details = str(caught.value), caught.value.details
    assert "\n" not in error
    assert error.startswith(
        f"the {what} {'is' if what == 'loss' else 'are'} not finite after 8 samples and {at_update}"
    )
    assert "in the batch of samples 8, 9, 10, 11, 12, 13, 14, 15" in error
    assert details["not_finite"] == what
    assert (details["samples_seen"], details["updates"]) == (8, at_update)
    assert details["stream_samples"] == list(range(8, 16))
    assert len(details["replayed_samples"]) == (0 if name == "ncm" else 3)
    assert set(details["replayed_samples"]) <= set(range(8))
    if where == "loss":
        assert details["losses"]["extra"] == f"{value:g}"
    if name == "mvp":
        assert all(torch.isfinite(tensor).all() for tensor in learned(strategy).values())


@pytest.mark.parametrize("bad, asked, sample", [(45, [50], 0), (55, [50, 100], 0), (65, [50, 100], 1), (119, None, 1)])
def test_a_gpu_is_asked_no_more_often_and_the_first_bad_batch_is_the_one_named(bad, asked, sample, short_backbone):
    """The loop believes that its device is a GPU. Two batches of one sample, sixty updates each."""
    strategy = make_strategy("linear_probe", short_backbone, updates_per_batch=60, train_mb_size=1)
    watch, waits = strategy.watch, []
    stop, look = watch.stop_if_not_finite, strategy._look_for_faults

    def look_as_on_a_gpu(every):
        device, strategy.device = strategy.device, type("Device", (), {"type": "cuda"})()
        try:
            look(every)
        finally:
            strategy.device = device

    watch.stop_if_not_finite = lambda *arguments: waits.append(strategy.updates + 1) or stop(*arguments)
    strategy._look_for_faults = look_as_on_a_gpu
    strategy.model.training_outputs = broken(float("nan"), "logits", bad)(strategy.model.training_outputs)
    with pytest.raises(NotFiniteError, match=rf"after {sample} samples and {bad} updates .* of samples {sample};"):
        train(strategy, stream_of([[2, 3]]))
    # The last one is at the end of the experience.
    assert waits == (asked or [50, 100, 121])


def test_weights_that_overflow_are_never_evaluated_or_saved(short_backbone):
    """The last update of a batch: every loss was finite."""
    strategy = make_strategy("linear_probe", short_backbone, updates_per_batch=1)
    step = strategy.optimizer.step

    def overflow():
        step()
        with torch.no_grad():
            next(iter(strategy.model.named_trainables()))[1].view(-1)[0] = float("inf")

    strategy.optimizer.step = overflow
    strategy.batch_listeners.append(lambda strategy: strategy.stop_if_not_finite())
    with pytest.raises(NotFiniteError, match="the weights are not finite after 0 samples and 0 updates"):
        train(strategy, stream_of([labels(8, range(CLASSES))]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_have_no_accuracy(value):
    class Model(torch.nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), 3).index_fill(1, torch.tensor([0]), value)

    test = Pictures([0, 1, 1])
    evaluator = Evaluator(test, num_classes=3, transform=normalise)
    with pytest.raises(MetricError, match=r"\Athe logits of some of 3 test images are not finite, [^\n]*\Z"):
        evaluator(Model(), torch.tensor([True, True, False]))
    with pytest.raises(MetricError, match=r"test label 7 is outside 0\.\.2 \(test image 1\)"):
        Evaluator(Pictures([0, 7]), num_classes=3, transform=normalise)


# --- labels ---------------------------------------------------------------------------------------------------------


class Renamed:
    """An experience whose items have other labels than its `targets` say, as a foreign benchmark may."""

    def __init__(self, dataset, label):
        self.dataset, self.label = dataset, label

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, target, *rest = self.dataset[index]
        return image, self.label if index == 5 else target, *rest


@pytest.mark.parametrize("name", ["mvp", "ncm"])
@pytest.mark.parametrize("label", [-1, -100, CLASSES, 10**9])
def test_a_label_out_of_range_in_a_batch_is_one_line_with_its_sample(name, label, tiny_backbone):
    strategy = make_strategy(name, tiny_backbone)
    keep = learned(strategy)
    prepare = strategy.train_dataset_adaptation

    def rename(*arguments, **keywords):
        prepare(*arguments, **keywords)
        strategy.adapted_dataset = Renamed(strategy.adapted_dataset, label)

    strategy.train_dataset_adaptation = rename
    with pytest.raises(StrategyError, match=rf"\Asample 5: label {label} is outside 0\.\.5; [^\n]*\Z"):
        train(strategy, stream_of([labels(8, range(CLASSES))]))
    assert_same(keep, learned(strategy))


@pytest.mark.parametrize("label, advice", [(-1, "correct the labels"), (7, "give num_classes=8 or more")])
def test_a_label_out_of_range_in_an_experience_is_one_line_with_its_sample(label, advice, short_backbone):
    strategy = make_strategy("ncm", short_backbone)

    class Experience:
        dataset = type("Dataset", (), {"targets": [0, 1, label, 2], "sample_ids": [9, 8, 7, 6]})()

    strategy.experience = Experience()
    with pytest.raises(StrategyError, match=rf"\Alabel {label} of sample 7 is outside 0\.\.5; {advice}\Z"):
        strategy._before_training_exp()
    del Experience.dataset.__class__.sample_ids
    with pytest.raises(StrategyError, match=rf"\Alabel {label} of position 2 of the stream is outside"):
        strategy._before_training_exp()


def test_replayed_labels_are_looked_at_too(tiny_backbone):
    class Replay(Reservoir):
        def before_forward(self, strategy, *arguments, **keywords):
            before = len(strategy.mb_y)
            super().before_forward(strategy, *arguments, **keywords)
            strategy.mbatch[1][before:] = CLASSES

    strategy = make_strategy("mvp", tiny_backbone, plugins=[Replay(4, 2)])
    with pytest.raises(StrategyError, match=r"\Asample [0-7]: label 6 is outside 0\.\.5; [^\n]*\Z"):
        train(strategy, stream_of([labels(20, range(CLASSES))]))


ROWS = {
    "too wide": (torch.zeros(2, 4), "sample 11: a row has 4 labels, the head 3 columns"),
    "beyond one": (
        torch.tensor([[0, 1, 0], [float("nan"), 0, 2.5]]),
        "sample 12: label 2.5 of class 2 is outside 0..1",
    ),
    "negative": (torch.tensor([[0, -1, 0], [0.0, 0, 0]]), "sample 11: label -1 of class 1 is outside 0..1"),
    "infinite": (torch.tensor([[0, 1, 0], [float("-inf"), 0, 0]]), "sample 12: label -inf of class 0 is outside 0..1"),
}


@pytest.mark.parametrize("rows, text", ROWS.values(), ids=ROWS)
def test_rows_of_labels_out_of_range_are_one_line(rows, text):
    with pytest.raises(StrategyError) as error:
        check_labels_of_batch(rows, 3, [11, 12])
    assert str(error.value).startswith(text)
    with pytest.raises(StrategyError, match=r"row [01] of the batch"):
        check_labels_of_batch(rows, 3)


def test_labels_that_can_be_pass_in_both_forms():
    check_labels_of_batch(torch.tensor([0, 2]), 3)
    check_labels_of_batch(torch.empty(0, dtype=torch.int64), 3)
    check_labels_of_batch(torch.tensor([[0.0, 1.0, float("nan")]]), 3)


def test_other_strategies_get_the_same_line_from_the_mask():
    with pytest.raises(StrategyError, match=r"row 1 of the batch: label -1 is outside 0\.\.3"):
        ClassTracker(4).observe(torch.tensor([0, -1]))


# --- who is trained -------------------------------------------------------------------------------------------------


def sgd(tensors):
    return torch.optim.SGD(list(tensors), lr=0.1)


def test_an_optimizer_of_the_backbone_is_refused_by_name(make_vit):
    backbone = make_vit(depth=2)
    optimizer = lambda tensors: sgd([*tensors, backbone.model.pos_embed])  # noqa: E731
    strategy = make_strategy("linear_probe", backbone, optimizer=optimizer)
    keep = learned(strategy)
    with pytest.raises(StrategyError, match=r"\Athe optimizer holds backbone\.model\.pos_embed, which is fro[^\n]*\Z"):
        train(strategy, stream_of([labels(8, range(CLASSES))]))
    assert_same(keep, learned(strategy))


FROZEN = [torch.nn.Parameter(torch.zeros(3), requires_grad=False)]


def test_a_frozen_tensor_of_anyone_is_refused(short_backbone):
    strategy = make_strategy("linear_probe", short_backbone, optimizer=lambda tensors: sgd([*tensors, *FROZEN]))
    with pytest.raises(StrategyError, match=r"the optimizer holds a tensor \(3,\), which is frozen"):
        train(strategy, stream_of([labels(8, range(CLASSES))]))


@pytest.mark.parametrize("name", ["mvp", "ncm"])
def test_a_backbone_that_asks_for_gradients_is_refused_by_name(name, make_vit):
    backbone = make_vit(depth=6)
    strategy = make_strategy(name, backbone)
    backbone.model.blocks[1].attn.qkv.weight.requires_grad_(True)
    with pytest.raises(StrategyError, match=r"backbone\.model\.blocks\.1\.attn\.qkv\.weight of the backbone would be"):
        train(strategy, stream_of([labels(8, range(CLASSES))]))


def test_an_optimizer_that_forgets_tensors_is_refused_by_name(short_backbone):
    strategy = make_strategy("linear_probe", short_backbone, optimizer=lambda tensors: sgd(tensors[:1]))
    names = [name for name, _ in strategy.model.named_trainables()]
    assert len(names) == 2
    with pytest.raises(StrategyError, match=rf"\Athe optimizer leaves out {names[1]}, which would never be[^\n]*\Z"):
        train(strategy, stream_of([labels(8, range(CLASSES))]))


def test_an_optimizer_put_in_between_sessions_is_looked_at_too(short_backbone):
    strategy = make_strategy("linear_probe", short_backbone)
    first, second = stream_of([labels(8, [0, 1]), labels(8, [2, 3])]).train_stream
    strategy.train(first)
    strategy.optimizer = sgd([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(StrategyError, match=r"leaves out .* and 1 more"):
        strategy.train(second)


def test_tensors_of_ones_own_may_be_trained_beside(short_backbone):
    own = torch.nn.Parameter(torch.zeros(2))
    strategy = make_strategy("linear_probe", short_backbone, optimizer=lambda tensors: sgd([*tensors, own]))
    train(strategy, stream_of([labels(8, range(CLASSES))]))
    assert strategy.samples_seen == 8
    assert np.isfinite(strategy.running_accuracy)
