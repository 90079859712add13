"""ER, ER-ACE, DER++ and fine-tuning: losses by slow loops in double precision, and what their networks train."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models import VisionTransformer
from toys import CLASSES, Pictures, assert_same, fingerprint, learned, make_strategy, stream_of, train

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import StrategyError
from cl_prompts.plugins import Reservoir
from cl_prompts.strategies import ERSettings, FineTuneSettings, TrainingBatch

# Class ids do not come in numeric order, and class 3 comes first in the middle of a batch.
SESSIONS = [[5, 2, 5, 2, 2, 5, 2, 5, 2, 5, 5], [2, 0, 0, 3, 4, 0, 4, 3, 3, 0, 4, 0, 3]]
PROMPTS = {"prompt_layers": 2, "prompt_length": 2}


def memory(seed=1, draws=1):
    return Reservoir(6, 4, seed=seed, draws=draws)


def trained_on(name, backbone, settings, *, plugins=(), **keywords):
    return train(
        make_strategy(name, backbone, settings=settings, plugins=list(plugins), **keywords), stream_of(SESSIONS)
    )


def cross_entropy(logits, target: int, columns) -> float:
    """-log softmax of one row over some columns, by hand."""
    row = {column: float(logits[column].detach()) for column in columns}
    largest = max(row.values())
    return largest + math.log(sum(math.exp(value - largest) for value in row.values())) - row[target]


def columns_of(*classes):
    return torch.zeros(CLASSES, dtype=torch.bool).index_fill_(0, torch.tensor(classes), True)


# --- what is trained --------------------------------------------------------------------------------------------------


def test_er_on_a_head_is_the_linear_probe_with_the_same_memory(short_backbone):
    one = trained_on("er", short_backbone, {"trained": "head"}, plugins=[memory()])
    other = trained_on("linear_probe", short_backbone, {}, plugins=[memory()])
    assert_same(learned(one), learned(other))


def test_er_on_prompts_with_a_cosine_head_is_single_prompt_with_the_same_memory(short_backbone):
    one = trained_on("er", short_backbone, PROMPTS | {"head": "cosine"}, plugins=[memory()])
    other = trained_on("single_prompt", short_backbone, PROMPTS | {"position_code": False}, plugins=[memory()])
    assert_same({name.removeprefix("body."): tensor for name, tensor in learned(one).items()}, learned(other))


def test_fine_tuning_a_head_is_the_linear_probe(short_backbone):
    one = trained_on("fine_tune", short_backbone, {"trained": "head"})
    assert_same(learned(one), learned(trained_on("linear_probe", short_backbone, {})))


def test_fine_tuning_moves_every_weight_of_a_copy_and_none_of_the_backbone(short_backbone):
    strategy = make_strategy("fine_tune", short_backbone)
    before, backbone = learned(strategy), fingerprint(short_backbone)
    images = Pictures([0, 3]).tensors()
    torch.testing.assert_close(
        strategy.model.body(short_backbone, images), short_backbone(images), rtol=1e-4, atol=1e-4
    )
    train(strategy, stream_of(SESSIONS))
    after = learned(strategy)
    assert {name.removeprefix("body.model.") for name in after if name.startswith("body.")} == set(
        short_backbone.model.state_dict()
    )
    assert not [name for name in after if torch.equal(before[name], after[name])]
    assert fingerprint(short_backbone) == backbone
    assert not any(tensor.requires_grad for tensor in short_backbone.parameters())
    assert not any(module.training for module in strategy.model.body.modules())


def test_a_classifier_that_came_with_the_weights_is_not_part_of_the_copy():
    with torch.random.fork_rng():
        model = VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=7)
    strategy = make_strategy("fine_tune", FrozenViT(model))
    train(strategy, stream_of([[0, 1, 2]]))
    trained = dict(strategy.model.named_trainables())
    assert not any(name.startswith("body.model.head") for name in trained)
    assert all(tensor.grad is not None for tensor in trained.values())
    assert sum(tensor.numel() for tensor in model.head.parameters()) == 7 * 25


@pytest.mark.parametrize(("trained", "declared"), [("head", "head"), ("prompts", "prompts"), ("all", "backbone")])
def test_needs_follow_what_is_trained(trained, declared, short_backbone):
    assert ERSettings(trained=trained).declared_needs().trains == declared
    model = make_strategy("er", short_backbone, settings={"trained": trained}).model
    assert model.predicts_from_query == (trained == "head")
    assert [("1e-5" in notice) for notice in model.notices()] == [True] * (trained == "all")


def test_defaults_train_what_they_say():
    assert FineTuneSettings().trained == "all"
    assert FineTuneSettings().declared_needs() == FineTuneSettings.needs
    assert ERSettings().declared_needs() == ERSettings.needs


def test_more_prompted_blocks_than_there_are_is_refused(short_backbone):
    with pytest.raises(StrategyError, match=r"^strategy\.prompt_layers=7: the backbone has 3 blocks$"):
        make_strategy("er", short_backbone, settings={"prompt_layers": 7})


# --- losses -----------------------------------------------------------------------------------------------------------


def double(name, backbone, **settings):
    """The method in double precision with a head of large weights, so that errors of any part show."""
    import copy

    method = make_strategy(name, copy.deepcopy(backbone), settings={"trained": "head"} | settings).model.double()
    with torch.no_grad():
        method.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(4))
        method.head.bias.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    return method


def batch_of(stream, replay, allowed, exposed, **keywords):
    targets = torch.tensor([*stream, *replay])
    images = Pictures(targets.tolist(), seed=8).tensors().double()
    return TrainingBatch(images, targets, allowed, exposed, stream_size=len(stream), **keywords)


def test_er_is_one_mean_over_stream_and_memory(short_backbone):
    method = double("er", short_backbone)
    batch = batch_of([5, 2, 5], [0, 2], columns_of(0, 2, 3, 5), columns_of(0, 2, 3, 5))
    outputs = method.training_outputs(batch)
    logits = method(batch.images)
    rows = [cross_entropy(row, int(target), (0, 2, 3, 5)) for row, target in zip(logits, batch.targets, strict=True)]
    assert set(outputs.losses) == {"classification"}
    assert float(outputs.losses["classification"]) == pytest.approx(sum(rows) / 5, rel=1e-10)


def test_er_ace_masks_the_stream_by_its_batch_and_the_memory_by_what_was_seen(short_backbone):
    method = double("er_ace", short_backbone)
    # The mask of the protocol is another one: it plays no part.
    batch = batch_of([5, 2, 5], [0, 2, 4, 4], columns_of(0, 2, 4, 5), columns_of(0, 2, 3, 4, 5))
    outputs = method.training_outputs(batch)
    logits = method(batch.images)
    stream = [cross_entropy(logits[row], (5, 2, 5)[row], (2, 5)) for row in range(3)]
    replay = [cross_entropy(logits[3 + row], (0, 2, 4, 4)[row], (0, 2, 3, 4, 5)) for row in range(4)]
    assert float(outputs.losses["classification"]) == pytest.approx(sum(stream) / 3, rel=1e-10)
    assert float(outputs.losses["replay"]) == pytest.approx(sum(replay) / 4, rel=1e-10)
    competing = torch.isfinite(outputs.logits)
    assert competing.tolist() == [columns_of(2, 5).tolist()] * 3 + [columns_of(0, 2, 3, 4, 5).tolist()] * 4
    outputs.losses["classification"].backward()
    moved = method.head.bias.grad != 0
    assert moved.tolist() == columns_of(2, 5).tolist()


def test_er_ace_learns_nothing_from_a_stream_of_one_class_but_all_from_the_memory(short_backbone):
    method = double("er_ace", short_backbone)
    outputs = method.training_outputs(batch_of([4, 4], [1, 4], columns_of(1, 4), columns_of(1, 4)))
    assert float(outputs.losses["classification"].detach()) == 0.0
    assert float(outputs.losses["replay"].detach()) > 0
    (line,) = type(method).settings_class().deviations()
    assert "protocol.train_mask" in line


def stored_logits(exposed_then, seed=6):
    rows = torch.randn(len(exposed_then), CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    seen = torch.stack([columns_of(*classes) for classes in exposed_then])
    return rows.masked_fill(~seen, float("nan"))


def test_derpp_by_hand_when_classes_came_since_the_logits_were_stored(short_backbone):
    alpha, beta = 0.3, 0.7
    method = double("derpp", short_backbone, alpha=alpha, beta=beta)
    seen = columns_of(0, 2, 3, 4, 5)
    # The first draw is for the stored logits, the second for the labels; what was stored of the second plays no part.
    stored = stored_logits([(2, 5), (0, 2, 5), (0, 2, 3, 5), (2, 5), (2, 5)])
    stored = torch.cat([stored, torch.full((1, CLASSES), float("nan"), dtype=torch.float64)])
    batch = batch_of([4, 3], [5, 0, 3, 2, 5, 2], columns_of(0, 2, 4, 5, 3), seen, remembered={"logits": stored})
    outputs = method.training_outputs(batch)
    logits = method(batch.images)
    squares = []
    for row in range(3):
        for column in range(CLASSES):
            if not math.isnan(float(stored[row, column])):
                squares.append(float(logits[2 + row, column] - stored[row, column]) ** 2)
    assert len(squares) == 2 + 3 + 4
    allowed = (0, 2, 3, 4, 5)
    second = [cross_entropy(logits[5 + row], (2, 5, 2)[row], allowed) for row in range(3)]
    stream = [cross_entropy(logits[row], (4, 3)[row], allowed) for row in range(2)]
    assert float(outputs.losses["logits"]) == pytest.approx(alpha * sum(squares) / len(squares), rel=1e-10)
    assert float(outputs.losses["replay"]) == pytest.approx(beta * sum(second) / 3, rel=1e-10)
    assert float(outputs.losses["classification"]) == pytest.approx(sum(stream) / 2, rel=1e-10)
    outputs.losses["logits"].backward()
    # Class 4 came after all of them: nothing holds its row of the head.
    assert (method.head.bias.grad != 0).tolist() == columns_of(0, 2, 3, 5).tolist()


def test_derpp_keeps_unmasked_logits_of_the_classes_seen_so_far(short_backbone):
    method = double("derpp", short_backbone)
    batch = batch_of([5, 2], [], columns_of(2), columns_of(2, 4, 5))
    outputs = method.training_outputs(batch)
    kept, logits = outputs.remember["logits"], method(batch.images)
    assert torch.isnan(kept).tolist() == [(~columns_of(2, 4, 5)).tolist()] * 2
    assert torch.equal(kept[:, [2, 4, 5]], logits[:, [2, 4, 5]])
    assert not kept.requires_grad
    assert set(outputs.losses) == {"classification"}


def test_rows_without_stored_logits_leave_no_trace_in_the_distance(short_backbone):
    method = double("derpp", short_backbone)
    nothing = torch.full((2, CLASSES), float("nan"), dtype=torch.float64)
    batch = batch_of([5], [2, 2], columns_of(2, 5), columns_of(2, 5), remembered={"logits": nothing})
    loss = method.training_outputs(batch).losses["logits"]
    loss.backward()
    assert float(loss) == 0.0
    assert not method.head.weight.grad.any()


@pytest.mark.parametrize("updates", [2, 0.5])
def test_derpp_meets_the_logits_of_first_sight_in_its_loop(updates, short_backbone):
    strategy = make_strategy(
        "derpp", short_backbone, plugins=[memory(draws=2)], updates_per_batch=updates, train_mb_size=6, settings=PROMPTS
    )
    original, batches, kept = strategy.model.training_outputs, [], []

    def watched(batch):
        outputs = original(batch)
        batches.append(batch)
        kept.append(outputs.remember["logits"][: batch.stream_size])
        return outputs

    strategy.model.training_outputs = watched
    train(strategy, stream_of(SESSIONS))
    first_sight = {
        tuple(image.flatten().tolist()): row
        for number, batch in enumerate(batches)
        if number % max(int(updates), 1) == 0
        for image, row in zip(batch.images[batch.stream], kept[number], strict=True)
    }
    found = unknown = grown = 0
    for batch in batches:
        assert len(batch.images[batch.replay]) % 2 == 0
        for image, row in zip(batch.images[batch.replay], batch.remembered.get("logits", []), strict=False):
            expected = first_sight.get(tuple(image.flatten().tolist()))
            if expected is None:
                assert torch.isnan(row).all()
                unknown += 1
                continue
            torch.testing.assert_close(row, expected, equal_nan=True, rtol=0, atol=0)
            found += 1
            grown += int((~torch.isnan(row)).sum()) < int(batch.exposed.sum())
    assert found > 0
    assert grown > 0
    assert (unknown > 0) == (updates < 1)
    assert all(torch.isfinite(tensor).all() for tensor in learned(strategy).values())


def test_several_labels_by_hand(short_backbone):
    method = double("derpp", short_backbone)
    nan = float("nan")
    targets = torch.tensor([[1, 0, nan, nan, nan, nan], [nan, 1, 1, nan, nan, nan], [0, 1, nan, nan, nan, nan]])
    images = Pictures([0, 1, 2], seed=8).tensors().double()
    stored = stored_logits([(0, 1)])
    batch = TrainingBatch(
        images, targets, columns_of(0, 1, 2), columns_of(0, 1, 2), stream_size=1,
        remembered={"logits": torch.cat([stored, stored])},
    )  # fmt: skip
    outputs, logits = method.training_outputs(batch), method(images)

    def binary(row, column):
        probability = 1 / (1 + math.exp(-float(logits[row, column])))
        return -math.log(probability if float(targets[row, column]) else 1 - probability)

    squares = [float(logits[1, column] - stored[0, column]) ** 2 for column in (0, 1)]
    assert float(outputs.losses["classification"]) == pytest.approx((binary(0, 0) + binary(0, 1)) / 2, rel=1e-6)
    assert float(outputs.losses["replay"]) == pytest.approx(0.5 * (binary(2, 0) + binary(2, 1)) / 2, rel=1e-6)
    assert float(outputs.losses["logits"]) == pytest.approx(0.2 * sum(squares) / 2, rel=1e-10)
