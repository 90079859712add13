"""What a strategy promises about predictions: images alone decide them, and they change nothing."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from cl_prompts.contract.check import Promise, require
from cl_prompts.contract.subject import Subject
from cl_prompts.contract.toys import CLASSES, Pictures, assert_same, learned

CLOSE = 1e-4
"""Absolute and relative; the backbone's own rounding depends on the batch."""


def logits_have_one_column_a_class(subject: Subject) -> None:
    """Predictions are float32 logits of all classes, finite where a class was seen."""
    strategy = subject.reference.strategy
    logits = subject.logits(strategy)
    require(tuple(logits.shape) == (len(subject.images), CLASSES), f"logits have shape {tuple(logits.shape)}")
    require(logits.dtype == torch.float32, f"logits are {logits.dtype}")
    require(bool(torch.isfinite(logits).all()), "logits are not finite; fill with cl_prompts.masks.FINITE_FILL")
    require(not logits.requires_grad, "logits carry a graph without gradients")


def prediction_takes_images_alone(subject: Subject) -> None:
    """Prediction takes images and their query, nothing else: no labels, no task."""
    taken = list(inspect.signature(type(subject.make().model).forward).parameters)
    require(taken == ["self", "images", "query"], f"forward takes {', '.join(taken[1:])}")


def neighbours_in_the_batch_change_nothing(subject: Subject) -> None:
    """The prediction of an image is the same in any order and any company."""
    strategy = subject.reference.strategy
    whole = subject.logits(strategy)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    shuffled = torch.empty_like(whole)
    shuffled[order] = subject.logits(strategy, subject.images[order])
    _require_same(shuffled, whole, "in another order")
    company = Pictures([3] * 7, seed=8).tensors()
    beside = subject.logits(strategy, torch.cat([subject.images[:4], company]))[:4]
    _require_same(beside, whole[:4], "beside other images")


def the_batch_size_changes_nothing(subject: Subject) -> None:
    """An image alone is predicted as in a batch of any size."""
    strategy = subject.reference.strategy
    whole = subject.logits(strategy)
    for size in (1, 7):
        parts = torch.cat([subject.logits(strategy, part) for part in subject.images.split(size)])
        _require_same(parts, whole, f"in batches of {size}")


def a_known_query_changes_nothing(subject: Subject) -> None:
    """The query of an image, computed once, gives the prediction that the image gives."""
    strategy = subject.reference.strategy
    model = strategy.model.eval()
    with torch.no_grad():
        query = model.query(subject.images)
        again = model.query(subject.images)
        _require_same(model(subject.images, query), subject.logits(strategy), "with a known query")
        if model.predicts_from_query:
            _require_same(model(None, query), subject.logits(strategy), "from the query alone")
    if query is not None and again is not None:
        require(torch.equal(query, again), "the query of an image changes from call to call")
        require(not query.requires_grad, "the query carries a graph")


def the_query_is_of_the_frozen_backbone(subject: Subject) -> None:
    """Training does not change the query of an image."""
    with torch.no_grad():
        fresh = subject.make().model.query(subject.images)
        trained = subject.reference.strategy.model.query(subject.images)
    require((fresh is None) == (trained is None), "it has a query only before or only after training")
    if fresh is not None and trained is not None:
        require(torch.equal(fresh, trained), "the query of an image changed with training")


def prediction_changes_nothing(subject: Subject) -> None:
    """Predicting moves no tensor and no generator, and gives the same again."""
    strategy = subject.reference.strategy
    before, generator = learned(strategy), strategy.model.generator.get_state()
    first = subject.logits(strategy)
    subject.logits(strategy, subject.images[:3])
    require(torch.equal(subject.logits(strategy), first), "the same images are predicted otherwise the second time")
    assert_same(learned(strategy), before, "tensors before and after a prediction")
    require(torch.equal(strategy.model.generator.get_state(), generator), "the method's generator was drawn from")


def an_untrained_strategy_predicts(subject: Subject) -> None:
    """Predictions are finite before the first image was learned."""
    strategy = subject.make()
    strategy.model.begin_session(None)
    require(bool(torch.isfinite(subject.logits(strategy)).all()), "logits are not finite")


def _require_same(found: Tensor, expected: Tensor, where: str) -> None:
    deviation = float((found - expected).abs().max())
    close = torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE)
    require(close, f"{where} logits deviate by {deviation:.2g}")
    lost = expected.amax(-1) - expected.gather(-1, found.argmax(-1, keepdim=True))[:, 0]
    require(
        bool((lost <= 2 * CLOSE * expected.abs().amax(-1).clamp(min=1)).all()), f"{where} another class is predicted"
    )


PROMISES: tuple[Promise[Subject], ...] = (
    Promise(logits_have_one_column_a_class),
    Promise(prediction_takes_images_alone),
    Promise(neighbours_in_the_batch_change_nothing),
    Promise(the_batch_size_changes_nothing),
    Promise(a_known_query_changes_nothing),
    Promise(the_query_is_of_the_frozen_backbone),
    Promise(prediction_changes_nothing),
    Promise(an_untrained_strategy_predicts),
)
