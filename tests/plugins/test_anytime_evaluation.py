"""Where the evaluation points lie: both rules, sessions with and without a plan, replay, short and empty streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche_toys import LinearModel, float_stream, foreign, train_in_order
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CLASSES, Pictures, labels, make_strategy, stream_of, train

from cl_prompts.errors import MetricError
from cl_prompts.evaluation import EvaluationResult, Evaluator
from cl_prompts.plugins import AnytimeEvaluation
from cl_prompts.plugins.anytime_evaluation import RULES


class CountingEvaluator:
    """Every exposed class has one test image, classified as class 0; notes what it was asked."""

    num_classes = CLASSES
    point = Evaluator.point

    def __init__(self):
        self.asked: list[list[int]] = []

    def __call__(self, model, exposed):
        self.asked.append(exposed.nonzero().flatten().tolist())
        confusion = np.zeros((CLASSES, CLASSES), dtype=np.int64)
        confusion[exposed.numpy(), 0] = 1
        return EvaluationResult(confusion, 0.5 if exposed.any() else float("nan"))


def points(plugin):
    return [(point.samples_seen, point.nominal, point.kind) for point in plugin.points]


def session_points(plugin):
    return [(point.samples_seen, point.session, point.kind) for point in plugin.sessions]


def run(sizes, batch, every, *, rule="exact", session_ends=None, view="sessions", plugins=(), **keywords):
    """Evaluation plugin after training Naive on sessions of these sizes, and its evaluator."""
    evaluator = CountingEvaluator()
    plugin = AnytimeEvaluation(evaluator, every=every, rule=rule, session_ends=session_ends)
    sessions = [labels(size, range(CLASSES), size) for size in sizes]
    strategy = foreign("Naive", LinearModel(), [*plugins, plugin], train_mb_size=batch, **keywords)
    train_in_order(strategy, float_stream(sessions, view=view))
    return plugin, evaluator


@pytest.mark.parametrize(
    "rule, every, batch, expected",
    [
        # Batches of 4 in sessions of 9 and 14 end at 4 8 9 | 13 17 21 23.
        ("exact", 10, 4, [(13, 13), (21, 21)]),
        ("official", 10, 4, [(13, 10), (21, 20)]),
        # A batch that ends on the multiple: the published comparison is strict.
        ("exact", 8, 4, [(8, 8), (17, 17)]),
        ("official", 8, 4, [(9, 8), (17, 16)]),
        # Batches of 8 end at 8 9 | 17 23: several multiples in one batch give one point, and the official rule lags.
        ("exact", 3, 8, [(8, 8), (9, 9), (17, 17), (23, 23)]),
        ("official", 3, 8, [(8, 3), (9, 6), (17, 9), (23, 12)]),
        ("exact", 1, 8, [(8, 8), (9, 9), (17, 17), (23, 23)]),
        # The stream is shorter than the period, or the period is off.
        ("exact", 100, 4, []),
        ("official", 23, 4, []),
        ("exact", 23, 4, [(23, 23)]),
        ("exact", 0, 4, []),
        ("official", 0, 4, []),
    ],
)
@pytest.mark.parametrize("with_plan", [True, False])
def test_periodic_and_final_points(rule, every, batch, expected, with_plan):
    plugin, _ = run([9, 14], batch, every, rule=rule, session_ends=[9, 23] if with_plan else None)
    plugin.finish(None if with_plan else Strategy())
    assert points(plugin) == [*((seen, nominal, "periodic") for seen, nominal in expected), (23, 23, "final")]
    assert session_points(plugin) == [(9, 0, "session"), (23, 1, "session")]
    plugin.finish(None)
    assert len(plugin.points) == len(expected) + 1


class Strategy:
    """What `finish` needs of a strategy once nothing is evaluated anew."""

    evaluator = EvaluationPlugin()
    model = LinearModel()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_rules_against_their_definition(batches, every):
    ends = np.cumsum(batches).tolist()
    found: dict[str, list[tuple[int, int]]] = {"exact": [], "official": []}
    for rule, made in found.items():
        due = every
        for seen in ends:
            nominal, due = RULES[rule](seen, due, every)
            if nominal is not None:
                made.append((seen, nominal))
    # Exact: the first batch end at or beyond each multiple, named by where it lies.
    multiples = range(every, ends[-1] + 1, every)
    firsts = sorted({next(end for end in ends if end >= multiple) for multiple in multiples})
    assert found["exact"] == [(end, end) for end in firsts]
    # Official: the published counter, step by step.
    expected, upcoming = [], every
    for seen in ends:
        if seen > upcoming:
            expected.append((seen, upcoming))
            upcoming += every
    assert found["official"] == expected


def test_sessions_of_a_merged_stream_end_at_the_next_batch_end():
    plugin, _ = run([9, 14], 4, 0, session_ends=[9, 23], view="merged")
    assert session_points(plugin) == [(12, 0, "session"), (23, 1, "session")]
    assert points(plugin) == [(23, 23, "final")]


@pytest.mark.parametrize(
    "session_ends, expected",
    [
        ([0, 9, 23], [(0, 0), (9, 1), (23, 2)]),
        ([9, 9, 23], [(9, 0), (9, 1), (23, 2)]),
        ([9, 23, 23], [(9, 0), (23, 1), (23, 2)]),
        ([0, 0, 9, 9, 23, 23], [(0, 0), (0, 1), (9, 2), (9, 3), (23, 4), (23, 5)]),
    ],
)
def test_empty_sessions_repeat_the_state_before_them(session_ends, expected):
    plugin, evaluator = run([9, 14], 4, 0, session_ends=session_ends)
    assert [(point.samples_seen, point.session) for point in plugin.sessions] == expected
    empty_starts = [point for point in plugin.sessions if point.samples_seen == 0]
    assert all(np.isnan(point.accuracy) and not point.exposed.any() for point in empty_starts)
    assert len(evaluator.asked) == len({seen for seen, _ in expected})


def test_one_evaluation_serves_all_points_of_a_place():
    plugin, evaluator = run([8, 16], 4, 8, session_ends=[8, 24])
    assert points(plugin) == [(8, 8, "periodic"), (16, 16, "periodic"), (24, 24, "periodic"), (24, 24, "final")]
    assert len(evaluator.asked) == 3


def test_only_classes_of_the_stream_so_far_are_evaluated():
    evaluator = CountingEvaluator()
    plugin = AnytimeEvaluation(evaluator, every=2)
    strategy = foreign("Naive", LinearModel(), [plugin], train_mb_size=2)
    train_in_order(strategy, float_stream([[5, 5, 2, 5], [0, 3]]))
    assert evaluator.asked == [[5], [2, 5], [0, 2, 3, 5]]
    assert [point.exposed.nonzero()[0].tolist() for point in plugin.points] == evaluator.asked
    assert [point.count.sum() for point in plugin.points] == [1, 2, 4]


@pytest.mark.parametrize("batch_size, batch_size_mem", [(None, None), (None, 3), (4, 7), (2, 1)])
def test_replay_that_enlarges_batches_does_not_move_the_axis(batch_size, batch_size_mem):
    torch.manual_seed(0)
    plain, _ = run([9, 14], batch_size or 4, 5)
    replay = ReplayPlugin(mem_size=20, batch_size=batch_size, batch_size_mem=batch_size_mem)
    # Avalanche takes the replay plugin's own batch size from the second experience on only.
    plugin, evaluator = run([9, 14], batch_size or 4, 5, plugins=[replay])
    assert points(plugin) == points(plain)
    assert session_points(plugin) == session_points(plain)
    assert len(evaluator.asked) == len(plain.points) + len(plain.sessions) - len(
        {p.samples_seen for p in plain.points} & {s.samples_seen for s in plain.sessions}
    )


def test_the_replay_plugins_own_batch_size_counts():
    replay = ReplayPlugin(mem_size=20, batch_size=2, batch_size_mem=6)
    plugin, _ = run([8, 8], 4, 2, plugins=[replay])
    assert [point.samples_seen for point in plugin.points] == [4, 8, 10, 12, 14, 16]


def test_several_epochs_count_every_presentation():
    plugin, _ = run([8], 4, 8, train_epochs=3)
    assert [point.samples_seen for point in plugin.points] == [8, 16, 24]


@pytest.mark.parametrize("updates_per_batch", [0.5, 1, 3])
def test_updates_do_not_move_the_axis(updates_per_batch, tiny_backbone):
    plugin = AnytimeEvaluation(CountingEvaluator(), every=10, session_ends=[9, 23])
    strategy = make_strategy(
        "linear_probe", tiny_backbone, plugins=[plugin], updates_per_batch=updates_per_batch, train_mb_size=4
    )
    train(strategy, stream_of([labels(9, range(CLASSES)), labels(14, range(CLASSES))]))
    assert points(plugin) == [(13, 13, "periodic"), (21, 21, "periodic"), (23, 23, "final")]
    assert [point.samples_seen for point in plugin.sessions] == [9, 23]


def test_listeners_and_loggers_get_every_point_at_samples_seen():
    heard = []
    plugin = AnytimeEvaluation(CountingEvaluator(), every=10, rule="official", session_ends=[9, 23])
    plugin.subscribe(lambda strategy, point: heard.append((strategy, point)))
    metrics = EvaluationPlugin()
    strategy = foreign("Naive", LinearModel(), [plugin], train_mb_size=4, evaluator=metrics)
    train_in_order(strategy, float_stream([labels(9, range(CLASSES)), labels(14, range(CLASSES))]))
    assert len(heard) == 5
    assert {id(point) for _, point in heard} == {id(point) for point in [*plugin.points, *plugin.sessions]}
    assert [point.samples_seen for _, point in heard] == [9, 13, 21, 23, 23]
    assert all(source is strategy for source, _ in heard)
    published = metrics.get_all_metrics()
    assert published["anytime/accuracy"] == ([10, 20, 23], [point.accuracy for point in plugin.points])
    assert published["session/accuracy"] == ([9, 23], [point.accuracy for point in plugin.sessions])


def test_what_makes_no_sense_is_refused():
    evaluator = CountingEvaluator()
    with pytest.raises(MetricError, match=r"was given a Pictures; pass Evaluator\(test_dataset, num_classes=\.\.\.\)"):
        AnytimeEvaluation(Pictures([0, 1]), every=1)
    with pytest.raises(MetricError, match="every=-1"):
        AnytimeEvaluation(evaluator, every=-1)
    with pytest.raises(MetricError, match="rule 'offical' is unknown; choose one of exact, official"):
        AnytimeEvaluation(evaluator, every=1, rule="offical")
    with pytest.raises(MetricError, match="session_ends is empty"):
        AnytimeEvaluation(evaluator, every=1, session_ends=[])
