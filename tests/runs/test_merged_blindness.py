"""On a merged stream, a strategy that looks through everything it can reach finds no boundary before it is past."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import QUIET, checked, tiny_words

from cl_prompts.runs.build import build_data, build_learner
from scenarios import StreamPlan
from scenarios.benchmark import PlannedBenchmark

CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CodeType)


def parts(thing: Any) -> Iterable[Any]:
    """What attributes and items of `thing` lead to."""
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    yield from getattr(thing, "__dict__", {}).values()
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(thing, name, None)


def reachable(start: Any) -> Iterator[tuple[Any, str]]:
    """Every object behind `start`, without entering code, and the types on the way to it."""
    seen: dict[int, Any] = {}
    todo = [(start, type(start).__name__)]
    while todo:
        thing, way = todo.pop()
        if id(thing) in seen or isinstance(thing, CODE):
            continue
        seen[id(thing)] = thing
        yield thing, way
        if isinstance(thing, StreamPlan | PlannedBenchmark) or whole_numbers(thing) is not None:
            # Judged as a whole: an index of a sample says nothing, whatever its value.
            continue
        todo += [(part, f"{way} > {type(part).__name__}") for part in parts(thing)]


def whole_numbers(thing: Any) -> list[int] | None:
    """`thing` as whole numbers if it is a collection of them, else None."""
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray):
        return np.atleast_1d(thing).ravel().tolist() if np.issubdtype(thing.dtype, np.integer) else None
    if isinstance(thing, list | tuple | set | frozenset) and thing and all(type(one) is int for one in thing):
        return list(thing)
    return None


def traces(start: Any, telling: set[int], samples: int) -> list[str]:
    """Ways to a plan, to a number that is the end of a session still to come, or to a list of all such ends."""
    found = []
    for thing, way in reachable(start):
        if isinstance(thing, StreamPlan | PlannedBenchmark):
            found.append(way)
        elif isinstance(thing, int | np.integer) and int(thing) in telling:
            found.append(f"{way} {thing}")
        elif (held := whole_numbers(thing)) is not None and telling <= set(held) and len(held) < samples / 2:
            # Longer ones are indices or labels of the samples, among which any number is found.
            found.append(f"{way} {held[:5]}")
    return found


@pytest.fixture(scope="module")
def learner_and_plan():
    """The learner of a run on a merged stream, and the plan that it must not find."""
    words = tiny_words("mvp", *QUIET, "scenario.view=merged", "scenario.n_sessions=4", "scenario.seed=3")
    replay = ("dataset.train_per_class=97", "protocol.memory_size=20", "protocol.replay_batch=5")
    config = checked(*words, *replay)
    data = build_data(config)
    return build_learner(config, data, torch.device("cpu")), data.plan


def telling_ends(plan: StreamPlan, seen: int) -> set[int]:
    """Session ends beyond the sample seen, but for the last, which the length of the stream tells anyway."""
    return {int(end) for end in plan.session_ends[:-1] if end > seen}


def test_before_and_during_training_no_later_boundary_is_reachable(learner_and_plan):
    learner, plan = learner_and_plan
    strategy = learner.strategy
    ends = telling_ends(plan, 0)
    assert len(ends) == 3
    assert traces(strategy, ends, plan.num_samples) == []

    looked = []

    def look(watched: Any, point: Any) -> None:
        still_to_come = telling_ends(plan, point.samples_seen)
        if point.kind == "session" and still_to_come:
            looked.append(point.samples_seen)
            assert traces(watched, still_to_come, plan.num_samples) == []

    learner.evaluation.subscribe(look)
    (experience,) = learner.benchmark.train_stream
    strategy.train(experience)
    assert len(looked) == 2


@pytest.mark.parametrize(
    "hide",
    [
        lambda strategy, plan: setattr(strategy, "hint", plan),
        lambda strategy, plan: setattr(strategy.plugins[0], "ends", plan.session_ends.tolist()),
        lambda strategy, plan: setattr(strategy.model, "ends", {"deep": [torch.as_tensor(plan.session_ends)]}),
        lambda strategy, plan: setattr(strategy.model, "next", int(plan.session_ends[0])),
    ],
)
def test_the_search_finds_what_is_hidden(learner_and_plan, hide):
    learner, plan = learner_and_plan
    start = types.SimpleNamespace(plugins=[types.SimpleNamespace()], model=types.SimpleNamespace())
    # Scalars and empty tensors are on the way, too.
    start.method, start.scalar, start.empty = learner.strategy.model, torch.tensor(3), torch.empty(0)
    ends = telling_ends(plan, 0)
    assert traces(start, ends, plan.num_samples) == []
    hide(start, plan)
    assert len(traces(start, ends, plan.num_samples)) == 1
