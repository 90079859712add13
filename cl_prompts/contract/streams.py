"""What a strategy promises about streams: the plan and the seeds decide what is learned, nothing else."""

from __future__ import annotations

import copy
import random
from typing import Any, Literal

import numpy as np
import torch

from cl_prompts.contract.check import Promise, require, require_refusal
from cl_prompts.contract.subject import BLURRY, MEMORISED, Subject, Witness
from cl_prompts.contract.toys import Pictures, assert_same, learned, plan_of, stream_of, train
from cl_prompts.errors import StrategyError
from scenarios import benchmark_from_plan

ORDER_TOLERANCE = 1e-8
"""Relative, of tensors in float64, where the order of the stream cannot change the result."""


def samples_come_in_the_order_of_the_plan(subject: Subject) -> None:
    """Samples come in exactly the order of the plan, and batches end with a session."""
    run = subject.reference
    flat = [sample for ids in run.witness.ids for sample in ids]
    require(flat == run.benchmark.plan.order.tolist(), "samples came in another order")
    sizes = [len(ids) for ids in run.witness.ids]
    require(sizes == [6, 5, 6, 6, 1], f"batches have sizes {sizes}")


def new_classes_are_learned_in_any_order(subject: Subject) -> None:
    """Classes are exposed and learned as they come: not in numeric order, and in the middle of a batch."""
    strategy = subject.reference.strategy
    exposed = strategy.exposed.nonzero().flatten().tolist()
    require(exposed == [0, 2, 3, 4, 5], f"exposed are classes {exposed}, not 0, 2, 3, 4, 5")
    strategy, _ = subject.memorised
    test = Pictures(MEMORISED * 2)
    logits = subject.logits(strategy, test.tensors()).masked_fill(~strategy.exposed, float("-inf"))
    for target in dict.fromkeys(MEMORISED):
        rows = torch.as_tensor(test.targets) == target
        right = float((logits[rows].argmax(-1) == target).float().mean())
        require(right > 0.5, f"of class {target}, which came in the middle of a batch, {right:.2f} are recognised")


def evaluation_leaves_the_weights_alone(subject: Subject) -> None:
    """How often one evaluates, and the state of the global generators, change no bit of what is learned."""
    assert_same(learned(subject.disturbed()), subject.reference.after, "tensors with and without evaluation")


def workers_leave_the_weights_alone(subject: Subject) -> None:
    """Worker processes that load images change no bit of what is learned."""
    assert_same(learned(subject.with_workers()), subject.reference.after, "tensors with and without workers")


def global_generators_are_left_alone(subject: Subject) -> None:
    """Neither building nor training draws from the global generators of torch, NumPy or Python."""
    (torch_before, numpy_before, python_before), (torch_after, numpy_after, python_after) = (
        subject.reference.random_states
    )
    require(torch.equal(torch_before, torch_after), "torch's global generator was drawn from")
    require(bool(np.array_equal(numpy_before, numpy_after)), "NumPy's global generator was drawn from")
    require(python_before == python_after, "Python's global generator was drawn from")


def the_seed_decides_initial_values(subject: Subject) -> None:
    """The same seed gives the same initial tensors whatever the global generators are at, another seed others."""
    torch.manual_seed(1)
    random.seed(1)
    first = learned(subject.make(seed=4))
    torch.manual_seed(2)
    random.seed(2)
    assert_same(learned(subject.make(seed=4)), first, "initial tensors of one seed")
    if subject.needs.gradient:
        other = learned(subject.make(seed=5))
        require(any(not torch.equal(first[name], other[name]) for name in first), "two seeds give the same tensors")


def the_seed_of_the_augmentation_reaches_the_pixels(subject: Subject) -> None:
    """Another seed of the augmentation trains other weights."""
    other = learned(subject.augmented_otherwise())
    after = subject.reference.after
    require(any(not torch.equal(after[name], other[name]) for name in after), "the augmentation did not reach training")


def merged_sessions_are_the_same_stream(subject: Subject) -> None:
    """Without boundaries to declare, hidden ones change no bit: sessions that fill their batches can be merged."""
    results = []
    for view in ("sessions", "merged"):
        witness = Witness()
        strategy = subject.make(plugins=[witness], updates_per_batch=1.5, train_mb_size=4)
        train(strategy, stream_of([[5, 2, 5, 2], [3, 0, 0, 3, 4, 4, 3, 4]], view=view))
        results.append((learned(strategy), witness.ids))
    require(results[0][1] == results[1][1], "batches differ between the views")
    assert_same(results[0][0], results[1][0], "tensors of both views")


def merged_sessions_run(subject: Subject) -> None:
    """A method that can use boundaries does without them where the stream is merged."""
    strategy = train(subject.make(), stream_of(BLURRY, view="merged"))
    require(bool(torch.isfinite(subject.logits(strategy)).all()), "logits are not finite")


def merged_sessions_are_refused(subject: Subject) -> None:
    """A run of a method that needs boundaries is refused on a merged stream, in one line and before data loads."""
    from cl_prompts.runs.rules import required_boundaries_are_visible
    from cl_prompts.runs.schema import RunConfig, SiBlurryScenario, group_schema

    settings: Any = subject.settings_class(**subject.values)
    if isinstance(subject.strategy, str):
        settings = group_schema("strategy", subject.strategy)(**subject.values | {"name": subject.name})
    views: tuple[tuple[Literal["merged", "sessions"], int], ...] = (("merged", 1), ("sessions", 0))
    for view, expected in views:
        parts: dict[str, Any] = {"strategy": settings, "scenario": SiBlurryScenario(view=view)}
        problems = list(required_boundaries_are_visible(RunConfig.model_construct(**parts)))
        require(len(problems) == expected, f"view={view} has {len(problems)} problems, expected {expected}")


def the_order_of_the_stream_changes_nothing(subject: Subject) -> None:
    """A permuted stream in other batches gives the same state and predictions."""
    targets = [one for session in BLURRY for one in session]
    pictures = Pictures(targets)
    backbone = copy.deepcopy(subject.backbone)
    everything = torch.cat([pictures.tensors(), subject.images])
    # Features once and in one batch: a ViT's own rounding depends on the batch, the learner's must not.
    table = dict(zip((image.numpy().tobytes() for image in everything), backbone.query(everything), strict=True))
    backbone.query = lambda images, **_: torch.stack([table[image.numpy().tobytes()] for image in images])
    results, predictions = [], []
    for order, cut, size in ((np.arange(24), 11, 8), (np.random.default_rng(3).permutation(24), 5, 3)):
        sessions = [order[:cut].tolist(), order[cut:].tolist()]
        benchmark = benchmark_from_plan(plan_of(sessions, targets), pictures, Pictures([0, 1]))
        strategy = train(subject.make(backbone=backbone, train_mb_size=size), benchmark)
        results.append(learned(strategy))
        predictions.append(subject.logits(strategy))
    for name, tensor in results[0].items():
        other = results[1][name]
        scale = float(tensor.abs().max().clamp(min=1)) if tensor.numel() else 1.0
        tolerance = (ORDER_TOLERANCE if tensor.dtype == torch.float64 else 1e-5) * scale
        require(torch.allclose(tensor, other, rtol=0, atol=tolerance), f"{name} depends on the order")
    one, two = predictions
    require(torch.allclose(one, two, rtol=1e-5, atol=1e-5), "predictions depend on the order")


def labels_outside_the_head_are_refused(subject: Subject) -> None:
    """A label without a column is refused in one line before anything is learned."""
    strategy = subject.make(num_classes=4)
    before = learned(strategy)
    require_refusal(lambda: train(strategy, stream_of([[1, 5, 1, 2]])), StrategyError, "label 5 of 4 classes")
    after = learned(strategy)
    assert_same({name: after[name] for name in before}, before, "tensors before and after the refusal")


def _needs_no_boundaries(subject: Subject) -> bool:
    return subject.needs.boundaries == "none"


PROMISES: tuple[Promise[Subject], ...] = (
    Promise(samples_come_in_the_order_of_the_plan),
    Promise(new_classes_are_learned_in_any_order),
    Promise(evaluation_leaves_the_weights_alone),
    Promise(workers_leave_the_weights_alone, slow=True),
    Promise(global_generators_are_left_alone),
    Promise(the_seed_decides_initial_values),
    Promise(the_seed_of_the_augmentation_reaches_the_pixels, lambda subject: subject.needs.gradient),
    Promise(merged_sessions_are_the_same_stream, _needs_no_boundaries),
    Promise(merged_sessions_run, lambda subject: subject.needs.boundaries == "optional"),
    Promise(merged_sessions_are_refused, lambda subject: subject.needs.boundaries == "required"),
    Promise(the_order_of_the_stream_changes_nothing, lambda subject: subject.needs.order_invariant),
    Promise(labels_outside_the_head_are_refused),
)
