"""The counts of an inspection are those of the run, update by update and image by image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_prompts.evaluation.logits import ModelLogits
from cl_prompts.runs.build import build_data
from cl_prompts.runs.inspection.work import first_shown, planned_work
from cl_prompts.strategies.base import ContinualStrategy
from scenarios.ml_si_blurry import ml_si_blurry_plan
from scenarios.mlcil import mlcil_plan
from scenarios.plan import StreamPlanWarning
from scenarios.si_blurry import si_blurry_plan


@pytest.fixture
def counted(monkeypatch):
    """What runs really do: images in updates, and images in evaluations, one number a call."""
    rows: list[int] = []
    evaluated: list[int] = []
    forward, logits_of = ContinualStrategy.forward, ModelLogits.of

    def counting_forward(strategy):
        if not strategy.is_eval:
            rows.append(len(strategy.mb_y))
        return forward(strategy)

    def counting_logits(logits, model, positions, *rest):
        evaluated.append(len(positions))
        return logits_of(logits, model, positions, *rest)

    monkeypatch.setattr(ContinualStrategy, "forward", counting_forward)
    monkeypatch.setattr(ModelLogits, "of", counting_logits)
    return rows, evaluated


def assert_work_is_what_was_done(run, counted, words, epochs=1):
    from tiny_runs import QUIET, checked

    rows, evaluated = counted
    config = checked(*QUIET, *words)
    data = build_data(config)
    work = planned_work(config, data)
    strategy = run.learner.strategy
    assert work.samples == strategy.samples_seen == len(data.plan.order) * epochs
    assert work.updates == strategy.updates == len(rows)
    assert work.rows == sum(rows)
    assert work.evaluations == len(evaluated)
    assert work.evaluated_images == sum(evaluated)
    assert work.test_images == len(data.test)


REPLAY = (
    "scenario.view=merged",
    "protocol.memory_size=9",
    "protocol.replay_batch=6",
    "protocol.updates_per_batch=0.7",
    "protocol.anytime_rule=official",
    "protocol.eval_every=5",
    "protocol.stream_batch=3",
)
EPOCHS = ("scenario=disjoint", "protocol.epochs=2", "protocol.updates_per_batch=2", "protocol.stream_batch=3")


@pytest.mark.parametrize(("words", "epochs"), [(REPLAY, 1), (EPOCHS, 2)], ids=["replay", "epochs"])
def test_counts_of_one_label_an_image(run_tiny, counted, words, epochs):
    from tiny_runs import tiny_words

    run = run_tiny("linear_probe", *words)
    assert_work_is_what_was_done(run, counted, tiny_words("linear_probe", *words), epochs)


@pytest.mark.parametrize(
    ("scenario", "words"),
    [("mlcil", ("scenario.eval_images=seen",)), ("ml_si_blurry", ("protocol.eval_every=15",))],
)
def test_counts_of_several_labels_an_image(run_several, counted, scenario, words):
    from tiny_runs import several_words

    run = run_several(scenario, "multi_lane", *words)
    epochs = 2 if scenario == "mlcil" else 1
    assert_work_is_what_was_done(run, counted, several_words(scenario, "multi_lane", *words), epochs)


def first_shown_slowly(plan, epochs):
    """Walk along the whole stream and look at every label."""
    seen, first = 0, {}
    for session, rows in enumerate(plan.sessions):
        for _ in range(epochs):
            for place, sample in enumerate(rows):
                if plan.targets.ndim == 1:
                    shown = [int(plan.targets[sample])]
                else:
                    shown = np.flatnonzero(plan.visible(session)[place]).tolist()
                for label in shown:
                    first.setdefault(label, seen)
                seen += 1
    return [first.get(label) for label in range(plan.num_classes)], seen


@pytest.mark.filterwarnings("ignore::scenarios.plan.StreamPlanWarning")
@given(
    samples=st.integers(12, 40),
    classes=st.integers(3, 6),
    sessions=st.integers(1, 3),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
    kind=st.sampled_from(["si_blurry", "mlcil", "ml_si_blurry"]),
)
@settings(max_examples=60, deadline=None)
def test_classes_are_first_shown_where_a_walk_along_the_stream_finds_them(
    samples, classes, sessions, epochs, seed, kind
):
    generator = np.random.default_rng(seed)
    ids = np.arange(samples) % classes
    rows = (generator.random((samples, classes)) < 0.3).astype(np.uint8)
    rows[np.arange(samples), ids] = 1
    known = (generator.random(rows.shape) < 0.8) | (rows == 1)
    plans = {
        "si_blurry": lambda: si_blurry_plan(ids, num_classes=classes + 1, n_sessions=sessions, seed=seed),
        "mlcil": lambda: mlcil_plan(rows, known=known, base=0, increment=classes, seed=seed),
        "ml_si_blurry": lambda: ml_si_blurry_plan(
            rows, known=known, n_sessions=sessions, stream_batch=5, seed=seed, allow_empty_sessions=True
        ),
    }
    plan = plans[kind]()
    expected, length = first_shown_slowly(plan, epochs)
    found = first_shown(plan, epochs).tolist()
    assert [place if place < length else None for place in found] == expected


def test_sessions_of_a_plan_with_an_empty_one_are_walked_in_order():
    with pytest.warns(StreamPlanWarning, match="empty"):
        plan = si_blurry_plan(
            np.arange(12) % 3, n_sessions=5, disjoint_class_pct=100, seed=3, allow_empty_sessions=True
        )
    lengths = [len(session) for session in plan.sessions]
    assert 0 in lengths
    expected, _ = first_shown_slowly(plan, 2)
    assert first_shown(plan, 2).tolist() == expected
