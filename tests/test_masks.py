"""Mask policies: worked cases by hand, and what must hold for any stream."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from avalanche.training.regularization import LearningWithoutForgetting
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_prompts.errors import StrategyError
from cl_prompts.masks import FINITE_FILL, MASK_POLICIES, ClassTracker, mask_logits

CLASSES = 6
PUBLISHED = {"none", "exposed", "task", "batch", "session"}


def classes_of(allowed: torch.Tensor) -> set[int]:
    return set(allowed.nonzero().flatten().tolist())


def tracker_with_history() -> ClassTracker:
    """Session 1 (task 0, 4): classes 4, 0, 0. Session 2 (task 1, 5, 4), so far: class 5."""
    tracker = ClassTracker(CLASSES)
    tracker.begin_session(torch.tensor([0, 4]))
    tracker.observe(torch.tensor([4, 0, 0]))
    tracker.begin_session(torch.tensor([1, 4, 5]))
    tracker.observe(torch.tensor([5]))
    return tracker


@pytest.mark.parametrize(
    "policy, stream_only, with_replay",
    [
        ("none", {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}),
        ("exposed", {0, 4, 5}, {0, 4, 5}),
        ("task", {1, 4, 5}, {0, 1, 4, 5}),
        ("batch", {5}, {0, 5}),
        ("session", {5}, {0, 5}),
    ],
)
def test_policies_on_a_worked_stream(policy, stream_only, with_replay):
    tracker = tracker_with_history()
    assert classes_of(tracker.allowed(policy, torch.tensor([5, 5]))) == stream_only
    assert classes_of(tracker.allowed(policy, torch.tensor([5, 0]))) == with_replay
    # Asking is not observing: replayed classes are not taken up by the session.
    assert classes_of(tracker.allowed(policy, torch.tensor([5, 5]))) == stream_only


def test_every_published_policy_is_here():
    assert set(MASK_POLICIES) == PUBLISHED


def test_session_and_task_are_reset_but_exposure_is_not():
    tracker = tracker_with_history()
    tracker.begin_session()
    assert classes_of(tracker.session) == set()
    assert tracker.task is None
    assert classes_of(tracker.exposed) == {0, 4, 5}


def test_a_stream_without_task_classes_refuses_the_task_policy():
    tracker = ClassTracker(CLASSES)
    tracker.begin_session()
    with pytest.raises(StrategyError, match="'task' needs the classes of the current task") as error:
        tracker.allowed("task", torch.tensor([0]))
    assert "\n" not in str(error.value)


def test_an_unknown_policy_is_refused_with_the_list():
    with pytest.raises(StrategyError, match="'exposd' is unknown; choose one of none, exposed"):
        ClassTracker(CLASSES).allowed("exposd", torch.tensor([0]))


def test_growing_forgets_nothing():
    tracker = tracker_with_history()
    tracker.grow(9)
    assert tracker.exposed.shape == tracker.session.shape == tracker.task.shape == (9,)
    assert (classes_of(tracker.exposed), classes_of(tracker.session)) == ({0, 4, 5}, {5})
    assert classes_of(tracker.task) == {1, 4, 5}
    tracker.observe(torch.tensor([8]))
    assert classes_of(tracker.allowed("exposed", torch.tensor([8]))) == {0, 4, 5, 8}


streams = st.lists(
    st.lists(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=5), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(streams, st.sampled_from(sorted(PUBLISHED)))
def test_whatever_the_stream_the_target_competes_and_the_inclusions_hold(stream, policy):
    tracker = ClassTracker(CLASSES)
    seen: set[int] = set()
    for session in stream:
        announced = {target for batch in session for target in batch}
        tracker.begin_session(torch.tensor(sorted(announced)))
        here: set[int] = set()
        for batch in session:
            targets = torch.tensor(batch)
            tracker.observe(targets)
            seen |= set(batch)
            here |= set(batch)
            allowed = classes_of(tracker.allowed(policy, targets))
            expected = {
                "none": set(range(CLASSES)),
                "exposed": seen,
                "task": announced,
                "batch": set(batch),
                "session": here,
            }
            assert allowed == expected[policy]
            assert set(batch) <= allowed


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from(sorted(PUBLISHED)))
def test_losses_and_gradients_are_finite_and_closed_columns_get_none(seed, batch, policy):
    generator = torch.Generator().manual_seed(seed)
    tracker = ClassTracker(CLASSES)
    tracker.begin_session(torch.tensor([0]))
    targets = torch.randint(CLASSES, (batch,), generator=generator)
    tracker.observe(targets)
    allowed = tracker.allowed(policy, targets)
    for fill in (float("-inf"), FINITE_FILL):
        logits = (torch.randn(batch, CLASSES, generator=generator) * 20).requires_grad_()
        masked = mask_logits(logits, allowed, fill)
        loss = F.cross_entropy(masked, targets)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad[:, ~allowed] == 0).all()
        assert torch.isfinite(masked[:, allowed]).all()


@pytest.mark.parametrize("fill", [float("-inf"), FINITE_FILL])
def test_a_batch_of_one_class_has_loss_and_gradient_zero_under_batch(fill):
    targets = torch.tensor([2, 2, 2])
    allowed = ClassTracker(CLASSES).allowed("batch", targets)
    logits = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = F.cross_entropy(mask_logits(logits, allowed, fill), targets)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert (logits.grad == 0).all()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sets(st.integers(0, CLASSES - 1), min_size=1),
    st.sets(st.integers(0, CLASSES - 1), min_size=1),
)
def test_masked_logits_survive_distillation(seed, open_classes, old_classes):
    """LwF compares masked logits with a teacher's: also where every old class is masked."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.zeros(CLASSES, dtype=torch.bool)
    allowed[list(open_classes)] = True
    logits = (torch.randn(3, CLASSES, generator=generator) * 10).requires_grad_()
    teacher = torch.randn(3, CLASSES, generator=generator) * 10
    penalty = LearningWithoutForgetting(1, 2)._distillation_loss(
        mask_logits(logits, allowed, FINITE_FILL), mask_logits(teacher, allowed, FINITE_FILL), old_classes
    )
    penalty.backward()
    assert torch.isfinite(penalty)
    assert torch.isfinite(logits.grad).all()


def test_masking_copies():
    logits = torch.zeros(2, CLASSES)
    masked = mask_logits(logits, torch.arange(CLASSES) < 2)
    assert (logits == 0).all()
    assert masked[0].tolist() == [0, 0, *[float("-inf")] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_finite_fill_has_probability_exactly_zero(dtype):
    masked = mask_logits(torch.zeros(1, 3, dtype=dtype), torch.tensor([True, True, False]), FINITE_FILL)
    assert torch.softmax(masked, -1)[0].tolist() == [0.5, 0.5, 0.0]
