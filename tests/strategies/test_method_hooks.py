"""The hooks through which a method sees the loop: session ends, steps, what a memory keeps for it, clipping."""

from __future__ import annotations

import torch
from toys import CLASSES, Pictures, TrainNormalise, labels, learned, normalise, stream_of, train

from cl_prompts.plugins import Reservoir
from cl_prompts.strategies import ContinualStrategy
from cl_prompts.strategies.linear_probe import LinearProbeMethod, LinearProbeSettings

SESSIONS = [labels(19, [5, 2, 4], 1), labels(25, [3, 0, 4], 2)]


class Bounded(LinearProbeSettings):
    """A probe that declares boundaries, and draws twice."""

    def declared_needs(self):
        return self.needs.model_copy(update={"boundaries": "optional", "replay_draws": 2})


class WatchingMethod(LinearProbeMethod):
    """Keeps what its hooks are given; remembers its logits as they were at first sight."""

    settings_class = LinearProbeSettings

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sessions, self.steps, self.batches, self.kept = [], 0, [], []

    def end_session(self, images):
        self.sessions.append([list(images()), list(images())])

    def after_step(self):
        self.steps += 1

    def training_outputs(self, batch):
        outputs = super().training_outputs(batch)
        self.batches.append(batch)
        outputs.remember["logits"] = outputs.logits.detach().clone()
        self.kept.append(outputs.remember["logits"][: batch.stream_size])
        return outputs


class Watching(ContinualStrategy):
    method_class = WatchingMethod


def watching(backbone, settings=None, **keywords):
    return Watching(
        backbone=backbone,
        num_classes=CLASSES,
        settings=settings or LinearProbeSettings(),
        train_transform=TrainNormalise(),
        eval_transform=normalise,
        **{"updates_per_batch": 2, "train_mb_size": 8, "eval_mb_size": 6} | keywords,
    )


def test_a_session_end_gives_the_session_as_often_as_asked(short_backbone):
    strategy = train(watching(short_backbone, Bounded()), stream_of(SESSIONS))
    pictures, start = Pictures([label for session in SESSIONS for label in session]).tensors(), 0
    assert len(strategy.model.sessions) == 2
    for session, passes in zip(SESSIONS, strategy.model.sessions, strict=True):
        for batches in passes:
            assert [len(targets) for _, targets in batches] == [6] * (len(session) // 6) + [len(session) % 6]
            assert torch.cat([targets for _, targets in batches]).tolist() == session
            assert torch.equal(torch.cat([images for images, _ in batches]), pictures[start : start + len(session)])
        start += len(session)


def test_a_method_without_boundaries_is_told_of_no_session_end(short_backbone):
    assert train(watching(short_backbone), stream_of(SESSIONS)).model.sessions == []


def test_steps_are_told_after_the_optimizer(short_backbone):
    strategy = train(watching(short_backbone, updates_per_batch=1.5), stream_of(SESSIONS))
    assert strategy.model.steps == strategy.updates > 0


def test_a_batch_says_where_its_rows_come_from_and_what_was_kept_of_them(short_backbone):
    reservoir = Reservoir(10, 3, seed=2, draws=2)
    strategy = watching(short_backbone, Bounded(), plugins=[reservoir])
    train(strategy, stream_of(SESSIONS))
    at_first_sight: dict[int, torch.Tensor] = {}
    pictures = Pictures([label for session in SESSIONS for label in session]).tensors()
    number_of = {picture.numpy().tobytes(): number for number, picture in enumerate(pictures)}
    replayed = 0
    for update, batch in enumerate(strategy.model.batches):
        numbers = [number_of[image.numpy().tobytes()] for image in batch.images]
        assert torch.equal(batch.targets[batch.stream], batch.targets[: batch.stream_size])
        replay = numbers[batch.replay]
        assert len(replay) == (6 if at_first_sight else 0)
        # Two draws, each without repetition.
        assert len(set(replay[:3])) == len(set(replay[3:])) == len(replay) // 2
        for number, row in zip(replay, batch.remembered.get("logits", []), strict=True):
            assert torch.equal(row, at_first_sight[number])
            replayed += 1
        if update % 2 == 1:
            # The first of its two updates decides what is kept.
            kept = strategy.model.kept[update - 1]
            at_first_sight |= dict(zip(numbers[: batch.stream_size], kept, strict=True))
    assert replayed > 40


def test_what_was_kept_survives_saving(short_backbone):
    reservoir = Reservoir(10, 3, seed=2)
    train(watching(short_backbone, plugins=[reservoir]), stream_of(SESSIONS))
    state = reservoir.state_dict()
    numbers = state["remembered"]["logits"]["numbers"]
    assert sorted(numbers) == sorted(reservoir.sampler.slots)
    other = Reservoir(10, 3, seed=2)
    other.load_state_dict(state)
    for number in numbers:
        assert torch.equal(other._remembered["logits"][number], reservoir._remembered["logits"][number])


def test_samples_of_a_batch_without_update_are_remembered_as_nan(short_backbone):
    strategy = watching(short_backbone, plugins=[Reservoir(44, 8, seed=2)], updates_per_batch=0.5)
    train(strategy, stream_of(SESSIONS))
    rows = torch.cat([batch.remembered["logits"] for batch in strategy.model.batches if batch.remembered])
    missing = torch.isnan(rows).all(1)
    assert 0 < int(missing.sum()) < len(rows)
    assert not bool(torch.isnan(rows[~missing]).any())


def test_gradients_are_clipped_together(short_backbone):
    def moved(clip_norm):
        strategy = watching(
            short_backbone,
            clip_norm=clip_norm,
            updates_per_batch=1,
            optimizer=lambda tensors: torch.optim.SGD(tensors, lr=1.0),
        )
        before = learned(strategy)
        train(strategy, stream_of([labels(8, range(CLASSES), 1)]))
        after = learned(strategy)
        return torch.cat([(after[name] - before[name]).flatten() for name in sorted(before)])

    free, clipped = moved(0.0), moved(0.05)
    assert float(free.norm()) > 0.1
    assert abs(float(clipped.norm()) - 0.05) < 1e-5
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-4, atol=1e-5)
