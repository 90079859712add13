"""What a strategy promises about its state: tensors hold all of it, and a run goes on where it was saved."""

from __future__ import annotations

import copy
import io
import pickle

import torch

from cl_prompts.contract.check import Promise, require, require_refusal
from cl_prompts.contract.subject import Subject
from cl_prompts.contract.toys import assert_same, learned, stream_of, train
from cl_prompts.errors import StrategyError
from cl_prompts.strategies.state import method_state, restore_method


def a_saved_method_predicts_the_same(subject: Subject) -> None:
    """Tensors saved to a file and read without executing code give a fresh method the same predictions."""
    strategy = subject.reference.strategy
    file = io.BytesIO()
    torch.save(method_state(strategy.model), file)
    file.seek(0)
    fresh = subject.make(seed=9)
    restore_method(fresh.model, torch.load(file, weights_only=True))
    fresh.model.observe(strategy.exposed)
    assert_same(learned(fresh), subject.reference.after, "saved and restored tensors")
    same = torch.equal(subject.logits(fresh), subject.logits(strategy))
    require(same, "the restored method predicts otherwise: some of its state is in no parameter and no buffer")


def a_run_goes_on_inside_a_session(subject: Subject) -> None:
    """A strategy resumed inside a session ends with the bits of one that was never stopped."""
    resumed = subject.resumed()
    assert_same(learned(resumed), subject.reference.after, "tensors of a resumed and an uninterrupted run")
    require(resumed.samples_seen == 24, f"{resumed.samples_seen} samples of 24")
    same = torch.equal(subject.logits(resumed), subject.logits(subject.reference.strategy))
    require(same, "the resumed strategy predicts otherwise: some of its state is in no parameter and no buffer")


def a_foreign_state_is_refused(subject: Subject) -> None:
    """The state of another method is refused in one line."""
    state = method_state(subject.make().model)
    state["tensors"] = {"no_such_tensor": torch.zeros(1)}
    require_refusal(lambda: restore_method(subject.make().model, state), StrategyError, "a foreign state")


def copies_go_their_own_way(subject: Subject) -> None:
    """Deep and pickled copies predict the same, and training one leaves the other alone."""
    original = subject.make(updates_per_batch=1)
    train(original, stream_of([[5, 2, 5, 2]]))
    before, logits = learned(original), subject.logits(original)
    for twin in (copy.deepcopy(original.model), pickle.loads(pickle.dumps(_without_generator(original.model)))):
        with torch.no_grad():
            require(torch.equal(twin.eval()(subject.images), logits), "a copy predicts otherwise")
            for tensor in [*twin.parameters(), *twin.buffers()]:
                tensor.zero_()
        assert_same(learned(original), before, "tensors before and after a change of the copy")


def _without_generator(model: torch.nn.Module) -> torch.nn.Module:
    twin = copy.copy(model)
    twin.generator = None  # type: ignore[assignment]  # torch's own cannot be pickled
    return twin


PROMISES: tuple[Promise[Subject], ...] = (
    Promise(a_saved_method_predicts_the_same),
    Promise(a_run_goes_on_inside_a_session),
    Promise(a_foreign_state_is_refused),
    Promise(copies_go_their_own_way),
)
