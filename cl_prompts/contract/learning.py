"""What a strategy promises about training: what moves, what it costs, and what it may not ask for."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from cl_prompts.contract.check import Promise, require, require_refusal
from cl_prompts.contract.subject import BATCHES_OF, MEMORISED, UPDATES, Subject
from cl_prompts.contract.toys import (
    CLASSES,
    SIZE,
    Pictures,
    fingerprint,
    label_rows,
    learned,
    stream_of,
    tiny_vit,
    train,
)
from cl_prompts.errors import StrategyError
from cl_prompts.masks import MASK_POLICIES, ClassTracker
from cl_prompts.strategies import TrainingBatch

LOSS_FALLS_TO = 0.7
"""Of its first value, at most, after thirty updates on one batch."""
ACCURACY = 1.0
"""Expected of a memorised batch, and of new images of its four classes."""
MEMORISED_TOLERANCE, NEW_TOLERANCE = 0.2, 0.4
BF16_DEVIATION = 0.1
"""Relative; eight bits of a product are right to 0.4 %, sums and steps carry that on."""


def optimizer_holds_what_is_trained(subject: Subject) -> None:
    """The optimizer holds exactly the trained tensors, and one optimizer serves as long as these stay the same."""
    run = subject.reference
    strategy = run.strategy
    trained = {id(tensor): name for name, tensor in strategy.model.named_trainables()}
    require(bool(trained), "it learns by gradient, but no tensor asks for one")
    held = _held(strategy.optimizer)
    require(held == trained.keys(), f"the optimizer holds {len(held)} tensors, {len(trained)} are trained")
    assert strategy.optimizer is not None
    steps = {int(state["step"]) for state in strategy.optimizer.state.values()}
    if subject.needs.grows_by_parts:
        # What it trains changes with the session, and with it the optimizer.
        require(strategy.optimizer is not run.first_optimizer, "new parts are trained by the old optimizer")
        require(max(steps) == UPDATES * BATCHES_OF[1], f"the new optimizer took {max(steps)} steps")
    elif strategy.optimizer is run.first_optimizer:
        require(steps == {strategy.updates}, f"tensors took {sorted(steps)} of {strategy.updates} steps")


def groups_of_the_optimizer_are_kept(subject: Subject) -> None:
    """An optimizer with two groups of parameters keeps them, at the learning rate it was given."""
    strategy = subject.make(optimizer=_two_groups, updates_per_batch=1)
    train(strategy, stream_of([[4, 1, 4, 1]]))
    assert strategy.optimizer is not None
    require(_held(strategy.optimizer) == {id(one) for _, one in strategy.model.named_trainables()}, "tensors are lost")
    rates = {group["lr"] for group in strategy.optimizer.param_groups}
    require(rates == {0.1}, f"the learning rate was 0.1, it is {sorted(rates)}")


def no_optimizer_without_gradient(subject: Subject) -> None:
    """A learner without gradient has no optimizer, and no tensor asks for a gradient unless a head is declared."""
    strategy = subject.make()
    require(strategy.optimizer is None, "it has an optimizer")
    asking = [name for name, _ in strategy.model.named_trainables()]
    require(not asking or subject.needs.trains != "nothing", f"{', '.join(asking)} ask for a gradient")


def every_trained_tensor_moves(subject: Subject) -> None:
    """Whatever is trained has moved at the end of the stream."""
    run = subject.reference
    trained = [name for name, _ in run.strategy.model.named_trainables() if name in run.before]
    still = [name for name in trained if torch.equal(run.before[name], run.after[name])]
    require(not still, f"{', '.join(still)} never moved")


def something_is_learned(subject: Subject) -> None:
    """A stream changes the state of a learner in closed form."""
    run = subject.reference
    changed = any(not torch.equal(run.before[name], run.after[name]) for name in run.before)
    require(changed or run.before.keys() != run.after.keys(), "no tensor changed")


def backbone_stays_as_it_is(subject: Subject) -> None:
    """Training leaves every bit of the backbone alone, gives it no gradient and keeps it in evaluation mode."""
    run, backbone = subject.reference, subject.backbone
    require(fingerprint(backbone) == subject.backbone_before, "weights or buffers of the backbone changed")
    require(not run.witness.trained, "a module of the backbone was in training mode")
    run.strategy.model.train()
    require(not any(module.training for module in backbone.modules()), "the backbone followed train() of its parent")
    asking = [name for name, one in backbone.named_parameters() if one.requires_grad or one.grad is not None]
    require(not asking, f"{', '.join(asking)} of the backbone ask for or hold a gradient")
    names = [name for name, _ in run.strategy.model.named_trainables() if name.startswith("backbone.")]
    require(not names, f"{', '.join(names)} are trained")


def steps_lower_the_loss(subject: Subject) -> None:
    """Steps on one batch lower its loss."""
    _, witness = subject.memorised
    losses = [one["classification"] for one in witness.losses]
    first, last = sum(losses[1:4]) / 3, sum(losses[-5:]) / 5
    require(last < LOSS_FALLS_TO * first, f"the loss went from {first:.4f} to {last:.4f}")


def memorised_stream_is_predicted(subject: Subject) -> None:
    """After thirty updates on one batch its images are recognised, and most new images of its classes."""
    strategy, _ = subject.memorised
    for seed, tolerance in ((0, MEMORISED_TOLERANCE), (1, NEW_TOLERANCE)):
        test = Pictures(MEMORISED, seed=seed)
        logits = subject.logits(strategy, test.tensors()).masked_fill(~strategy.exposed, float("-inf"))
        accuracy = float((logits.argmax(-1) == torch.as_tensor(test.targets)).float().mean())
        require(
            abs(accuracy - ACCURACY) <= tolerance,
            f"accuracy {accuracy:.2f} of {'new' if seed else 'memorised'} images, not {ACCURACY} within {tolerance}",
        )


def updates_are_counted(subject: Subject) -> None:
    """Each stream batch gets the updates it is due, a closed form one fit."""
    batches = sum(BATCHES_OF)
    strategy = subject.reference.strategy
    expected = batches * UPDATES if subject.needs.gradient else batches
    require(strategy.updates == expected, f"{strategy.updates} updates of {expected}")
    require(strategy.samples_seen == 24, f"{strategy.samples_seen} samples of 24")
    half = train(subject.make(updates_per_batch=0.5, train_mb_size=2), stream_of([[4, 1, 4, 1, 2, 4]]))
    expected = 1 if subject.needs.gradient else 3
    require(half.updates == expected, f"{half.updates} updates on three batches with half an update each")


def losses_are_named_numbers(subject: Subject) -> None:
    """Every update has a loss `classification`; the losses are finite and make up the total."""
    for losses in subject.reference.witness.losses:
        require("classification" in losses, f"the losses are named {', '.join(losses)}, classification is missing")
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        require(not wrong, f"{', '.join(wrong)} are not finite")


def outputs_have_the_declared_shapes(subject: Subject) -> None:
    """Training gives scalar losses, float logits (batch, classes) that are minus infinity where masked, features."""
    outputs = _step(_started(subject), *_batch_of([5, 2, 2, 0, 5]))
    require(tuple(outputs.logits.shape) == (5, CLASSES), f"logits have shape {tuple(outputs.logits.shape)}")
    require(outputs.logits.is_floating_point(), f"logits are {outputs.logits.dtype}")
    require(bool(torch.isneginf(outputs.logits[:, [1, 3, 4]]).all()), "classes outside the mask have a finite logit")
    require(bool(torch.isfinite(outputs.logits[:, [0, 2, 5]]).all()), "allowed classes have no finite logit")
    require(len(outputs.features) == 5, f"features have shape {tuple(outputs.features.shape)}")
    shapes = {name: tuple(loss.shape) for name, loss in outputs.losses.items() if loss.ndim}
    require(not shapes, f"losses are no scalars: {shapes}")
    kept = {name: tuple(rows.shape) for name, rows in outputs.remember.items() if len(rows) != 5 or rows.requires_grad}
    require(not kept, f"what a memory shall keep needs a detached row an image: {kept}")


def gradients_reach_what_is_trained_alone(subject: Subject) -> None:
    """The losses give gradients to every trained tensor, and to no other."""
    model = _started(subject)
    outputs = _step(model, *_batch_of([5, 2, 2, 0, 5]))
    sum(outputs.losses.values()).backward()
    trained = {name for name, _ in model.named_trainables()}
    reached = {name for name, tensor in model.named_parameters() if tensor.grad is not None}
    require(reached == trained, f"gradients and trained tensors differ in {', '.join(sorted(reached ^ trained))}")


def one_class_under_the_batch_mask_costs_nothing(subject: Subject) -> None:
    """A batch of one class has loss 0 under the batch mask, and its head stays as it is."""
    strategy = subject.make(train_mask="batch")
    before = learned(strategy)
    train(strategy, stream_of([[3] * 8]))
    loss = float(strategy.last_losses["classification"])
    require(loss == 0.0, f"the loss is {loss}")
    after = learned(strategy)
    head = [name for name, _ in strategy.model.named_trainables() if name.startswith("head.")]
    moved = [name for name in head if not torch.equal(before[name], after[name])]
    require(not moved, f"{', '.join(moved)} moved")


def a_batch_twice_has_the_same_loss(subject: Subject) -> None:
    """The classification loss is a mean over images: the same images twice in a batch do not change it."""
    images, targets = _batch_of([5, 2, 2, 0, 5])
    once = _step(_started(subject), images, targets).losses["classification"].detach()
    twice = _step(_started(subject), images.repeat(2, 1, 1, 1), targets.repeat(2)).losses["classification"].detach()
    close = bool(torch.isclose(once, twice, rtol=1e-4, atol=1e-5))
    require(close, f"the loss is {float(once):.6f} of the batch and {float(twice):.6f} of it twice")


def nothing_allowed_teaches_nothing(subject: Subject) -> None:
    """Where no class may compete the run stops with one line, or nothing is learned; no weight becomes NaN."""
    strategy = subject.make(updates_per_batch=1)
    before = learned(strategy)
    empty = torch.zeros(CLASSES, dtype=torch.bool)
    with mock.patch.object(ClassTracker, "allowed", return_value=empty):
        try:
            train(strategy, stream_of([[3, 4, 3]]))
        except StrategyError as error:
            require("\n" not in str(error), "it is refused in several lines")
            return
    broken = [name for name, tensor in learned(strategy).items() if not torch.isfinite(tensor).all()]
    require(not broken, f"{', '.join(broken)} are not finite and nothing was said")
    head = [name for name, _ in strategy.model.named_trainables() if name.startswith("head.")]
    moved = [name for name in head if not torch.equal(before[name], learned(strategy)[name])]
    require(not moved, f"{', '.join(moved)} learned from a batch in which no class competes")


def any_mask_runs(subject: Subject) -> None:
    """Every mask of the protocol trains to finite weights."""
    for policy in MASK_POLICIES:
        strategy = subject.make(train_mask=policy, updates_per_batch=1)
        train(strategy, stream_of([[4, 1, 4], [2, 2]]))
        _require_finite(strategy, f"train_mask={policy}")


def any_batch_size_runs(subject: Subject) -> None:
    """Batches of one image, and batches larger than a session, train to finite weights."""
    for size, expected in ((1, 5), (64, 2)):
        strategy = subject.make(train_mb_size=size, updates_per_batch=1)
        train(strategy, stream_of([[4, 1, 1, 4], [2]]))
        require(strategy.updates == expected, f"{strategy.updates} updates of {expected} with batches of {size}")
        exposed = strategy.exposed.nonzero().flatten().tolist()
        require(exposed == [1, 2, 4], f"exposed are {exposed}, not 1, 2, 4")
        _require_finite(strategy, f"batches of {size}")


def any_width_runs(subject: Subject) -> None:
    """Backbones of other widths and heads are trained on and predicted with."""
    for width, heads in ((16, 2), (40, 5)):
        strategy = subject.make(backbone=tiny_vit(width, subject.backbone.depth, heads), updates_per_batch=1)
        train(strategy, stream_of([[4, 1, 1, 4]]))
        shape = tuple(subject.logits(strategy, subject.images[:2]).shape)
        require(shape == (2, CLASSES), f"logits have shape {shape} at width {width}")


def every_head_learns(subject: Subject) -> None:
    """Each head that the settings offer trains to finite weights, and a temperature divides what it gives."""
    for kind in _choices(subject, "head"):
        strategy = train(subject.make(settings={"head": kind}), stream_of([[4, 1, 1, 4]]))
        _require_finite(strategy, f"head={kind}")
    if "cosine" in _choices(subject, "head"):
        spread = []
        for temperature in (0.1, 0.2):
            model = subject.make(settings={"head": "cosine", "temperature": temperature})
            spread.append(subject.logits(model).std())
        require(bool(torch.isclose(spread[0], 2 * spread[1], rtol=1e-3)), "temperature does not divide the logits")


def bf16_is_near_full_precision(subject: Subject) -> None:
    """Training in bf16 keeps the types of all tensors and predicts nearly what full precision does."""
    results, logits = {}, {}
    for precision in ("fp32", "bf16"):
        strategy = subject.make(precision=precision, updates_per_batch=1)
        train(strategy, stream_of([[5, 2, 4, 5, 2, 4, 5, 2], [3, 0, 4, 3, 0]]))
        results[precision] = learned(strategy)
        # In full precision both: what differs is what was learned.
        logits[precision] = subject.logits(strategy)[:, strategy.exposed]
    for name, tensor in results["fp32"].items():
        other = results["bf16"][name]
        require(other.dtype == tensor.dtype, f"{name} became {other.dtype}")
        require(bool(torch.isfinite(other).all()), f"{name} is not finite")
    deviation = float((logits["bf16"] - logits["fp32"]).norm() / logits["fp32"].norm())
    require(0 < deviation < BF16_DEVIATION, f"predictions deviate by {deviation:.4f}, allowed are {BF16_DEVIATION}")


def no_step_asks_the_device_for_a_value(subject: Subject) -> None:
    """A training step runs on the meta device, which has no values: it makes no GPU wait."""
    backbone = copy.deepcopy(subject.backbone)
    # Autocast is unknown to the meta device.
    with mock.patch.object(torch, "autocast", return_value=nullcontext()):
        model = subject.make(backbone=backbone).model
        model.begin_session(None)
        model.to("meta").train()
        images = torch.empty(8, 3, SIZE, SIZE, device="meta")
        targets = torch.empty(8, dtype=torch.int64, device="meta")
        outputs = _step(model, images, targets)
        sum(outputs.losses.values()).backward()
        if subject.needs.replay != "none":
            remembered = {name: rows[5:] for name, rows in outputs.remember.items()}
            _step(model, images, targets, stream_size=5, remembered=remembered)
        if subject.needs.multi_label:
            _step(model, images, torch.empty(8, CLASSES, device="meta"))
    wrong = [name for name, tensor in model.named_trainables() if tensor.grad is None or not tensor.grad.is_meta]
    require(not wrong, f"{', '.join(wrong)} got no gradient")


def wrong_forms_of_learning_are_refused(subject: Subject) -> None:
    """A closed form refuses to give losses, a learner by gradient to be fitted, in one line."""
    model = subject.make().model
    batch = TrainingBatch(*_batch_of([5, 2]), torch.ones(CLASSES, dtype=torch.bool))
    other = model.fit if subject.needs.gradient else model.training_outputs
    require_refusal(partial(other, batch), StrategyError, f"{other.__name__} of a learner without it")


def several_labels_are_learned(subject: Subject) -> None:
    """Images with several labels are learned; hidden labels are never read."""
    model = _started(subject)
    images = subject.images
    rows = torch.from_numpy(label_rows(16)).float()
    rows[:, 4] = float("nan")
    if not subject.needs.gradient:
        model.observe(torch.ones(CLASSES, dtype=torch.bool))
        model.fit(TrainingBatch(images, rows, torch.ones(CLASSES, dtype=torch.bool), torch.arange(CLASSES) != 4))
        wrong = [name for name, one in model.named_buffers() if one.is_floating_point() and torch.isnan(one).any()]
        require(not wrong, f"{', '.join(wrong)} are NaN: a hidden label was read")
        return
    optimizer = torch.optim.Adam([tensor for _, tensor in model.named_trainables()], lr=0.02)
    values = []
    for _ in range(12):
        outputs = _step(model, images, rows)
        total = torch.stack(list(outputs.losses.values())).sum()
        require(bool(torch.isfinite(total)), "a loss is not finite: a hidden label was read")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(float(outputs.losses["classification"].detach()))
    require(values[-1] < 0.95 * values[0], f"the loss went from {values[0]:.4f} to {values[-1]:.4f}")


def several_labels_are_refused(subject: Subject) -> None:
    """A learner of one label an image refuses a stream with several in one line."""
    from cl_prompts.contract.toys import Scenes
    from scenarios import benchmark_from_plan, mlcil_plan

    scenes = Scenes(label_rows(12))
    benchmark = benchmark_from_plan(mlcil_plan(scenes.targets, increment=2), scenes, Scenes(label_rows(6, 9)))
    strategy = subject.make()
    require_refusal(lambda: train(strategy, benchmark), StrategyError, "a stream with several labels an image")


def _held(optimizer: Any) -> set[int]:
    return {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}


def _two_groups(tensors: list[Any]) -> torch.optim.Optimizer:
    halves = [tensors[:1], tensors[1:]]
    return torch.optim.SGD([{"params": half, "lr": 0.1} for half in halves if half])


def _batch_of(targets: list[int]) -> tuple[Tensor, Tensor]:
    return Pictures(targets, seed=3).tensors(), torch.tensor(targets)


def _started(subject: Subject) -> Any:
    """A fresh method in its first session."""
    model = subject.make().model
    model.begin_session(None)
    return model


def _step(model: Any, images: Tensor, targets: Tensor, **parts: Any) -> Any:
    """`training_outputs` of a batch under the mask of the classes seen so far."""
    tracker = ClassTracker(CLASSES, images.device)
    tracker.observe(targets)
    if not images.is_meta:
        model.observe(tracker.exposed)
    return model.training_outputs(
        TrainingBatch(images, targets, tracker.allowed("exposed", targets), tracker.exposed, None, **parts)
    )


def _choices(subject: Subject, key: str) -> tuple[str, ...]:
    field = subject.settings_class.model_fields.get(key)
    return tuple(getattr(field.annotation, "__args__", ())) if field is not None else ()


def _require_finite(strategy: Any, where: str) -> None:
    broken = [name for name, tensor in learned(strategy).items() if not torch.isfinite(tensor).all()]
    require(not broken, f"{', '.join(broken)} are not finite with {where}")


def _by_gradient(subject: Subject) -> bool:
    return subject.needs.gradient


def _in_closed_form(subject: Subject) -> bool:
    return not subject.needs.gradient


PROMISES: tuple[Promise[Subject], ...] = (
    Promise(backbone_stays_as_it_is),
    Promise(optimizer_holds_what_is_trained, _by_gradient),
    Promise(groups_of_the_optimizer_are_kept, _by_gradient),
    Promise(no_optimizer_without_gradient, _in_closed_form),
    Promise(every_trained_tensor_moves, _by_gradient),
    Promise(something_is_learned, _in_closed_form),
    Promise(steps_lower_the_loss, _by_gradient),
    Promise(memorised_stream_is_predicted),
    Promise(updates_are_counted),
    Promise(losses_are_named_numbers, _by_gradient),
    Promise(outputs_have_the_declared_shapes, _by_gradient),
    Promise(gradients_reach_what_is_trained_alone, _by_gradient),
    Promise(one_class_under_the_batch_mask_costs_nothing, _by_gradient),
    Promise(a_batch_twice_has_the_same_loss, _by_gradient),
    Promise(nothing_allowed_teaches_nothing, _by_gradient),
    Promise(any_mask_runs),
    Promise(any_batch_size_runs),
    Promise(any_width_runs),
    Promise(every_head_learns, lambda subject: bool(_choices(subject, "head"))),
    Promise(bf16_is_near_full_precision),
    Promise(no_step_asks_the_device_for_a_value, _by_gradient),
    Promise(wrong_forms_of_learning_are_refused),
    Promise(several_labels_are_learned, lambda subject: subject.needs.multi_label),
    Promise(several_labels_are_refused, lambda subject: not subject.needs.multi_label),
)
