"""Session ends measured after the last one, in one pass: the same numbers as live, or a refusal.

All lanes in one call round otherwise than one lane after the other, in the last bits of the logits.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from multi_label_toys import CLASSES, LANES, blurry, evaluation, learner, mlcil, same_points, same_results, trained_with
from toys import labels, make_strategy, normalise, stream_of, train

from cl_prompts.errors import MetricError
from cl_prompts.evaluation import Evaluator
from cl_prompts.metrics.trajectory import trajectory
from cl_prompts.plugins import AnytimeEvaluation

ROUNDING = 1e-6
RULES = ("seen", "all", "final_seen")


@pytest.fixture(scope="module")
def stream():
    return mlcil()


class ForwardPasses:
    """Counts the images that go through the backbone of a model, and through how many lanes."""

    def __init__(self, monkeypatch, strategy) -> None:
        self.images: list[int] = []
        self.parts: list[list[int]] = []
        part_outputs = strategy.model.part_outputs

        def counted(images, parts):
            self.images.append(len(images))
            self.parts.append(list(parts))
            return part_outputs(images, parts)

        def no_forward(*arguments):
            raise AssertionError("a whole forward pass in an evaluation of finished parts")

        monkeypatch.setattr(strategy.model, "part_outputs", counted)
        monkeypatch.setattr(strategy.model, "forward", no_forward)


def watching_both_ways(backbone, benchmark, *, epochs=1, **keywords):
    """Rule -> the same run measured live and deferred under it; measuring changes no weight."""
    watched = {
        rule: [evaluation(benchmark, epochs=epochs, deferred=later, eval_images=rule) for later in (False, True)]
        for rule in RULES
    }
    *others, last = (plugin for pair in watched.values() for plugin in pair)
    trained_with(backbone, benchmark, last, plugins=others, epochs=epochs, **keywords)
    return watched


@pytest.mark.parametrize(
    "settings", [{}, {"num_selectors": 0, "tome": 3}, {"dandr": "off"}, {"form": "token"}], ids=str
)
def test_deferred_is_live_and_both_follow_from_the_stored_logits(short_backbone, stream, settings):
    """One run, measured six times: under every rule, live and deferred."""
    watched = watching_both_ways(short_backbone, stream, settings=settings, epochs=2)
    for rule, (live, deferred) in watched.items():
        assert [len(live.sessions), len(live.points)] == [3, 1]
        for left, right in zip(live.sessions + live.points, deferred.sessions + deferred.points, strict=True):
            same_points(left, right, ROUNDING)
        for plugin in (live, deferred):
            latest = plugin.evaluator.latest
            assert latest.rows.all()  # nothing missing that an earlier session was measured on
            results = trajectory(latest.logits, latest.targets, stream.plan.seen_after, eval_images=rule)
            assert len(results) == 3
            for result, point in zip(results, plugin.sessions, strict=True):
                same_results(result, point.result)


def test_lanes_chosen_by_key_are_those_that_were_there(short_backbone, stream):
    (_, live), (_, deferred) = (
        trained_with(
            short_backbone,
            stream,
            evaluation(stream, deferred=later),
            settings={"head_mode": "key"},
            optimizer=partial(torch.optim.SGD, lr=0.5),
        )
        for later in (False, True)
    )
    for left, right in zip(live.sessions + live.points, deferred.sessions + deferred.points, strict=True):
        same_points(left, right, ROUNDING)


def test_a_blurry_stream_where_lanes_stay_final_can_be_deferred(short_backbone):
    stream = blurry(seed=10)
    assert len({int(row.sum()) for row in stream.plan.seen_after}) > 1
    (_, live), (_, deferred) = (
        trained_with(short_backbone, stream, evaluation(stream, deferred=later), settings={"lane_policy": "current"})
        for later in (False, True)
    )
    for left, right in zip(live.sessions + live.points, deferred.sessions + deferred.points, strict=True):
        same_points(left, right, ROUNDING)


def test_live_each_lane_runs_once_and_deferred_all_run_in_one_pass(short_backbone, stream, monkeypatch):
    for deferred, expected in ((False, [[0], [1], [2]]), (True, [[0, 1, 2]])):
        plugin = evaluation(stream, deferred=deferred)
        strategy = learner(short_backbone, plugins=[plugin])
        passes = ForwardPasses(monkeypatch, strategy)
        train(strategy, stream)
        per_pass = [8, 8]  # 16 images in batches of 8
        assert passes.images == per_pass * len(expected)
        assert passes.parts == [parts for parts in expected for _ in per_pass]


def test_periodic_points_run_the_newest_lane_alone(short_backbone, stream, monkeypatch):
    plugin = evaluation(stream, every=8)
    strategy = learner(short_backbone, plugins=[plugin])
    passes = ForwardPasses(monkeypatch, strategy)
    train(strategy, stream)
    assert len(plugin.points) > 5
    assert {len(parts) for parts in passes.parts} == {1}
    assert [parts[0] for parts in passes.parts] == sorted(parts[0] for parts in passes.parts)


def test_listeners_hear_of_deferred_sessions_in_order_and_then_of_the_final_point(short_backbone, stream):
    plugin, heard = evaluation(stream, deferred=True), []
    plugin.subscribe(lambda strategy, point: heard.append((point.kind, point.session, point.samples_seen)))
    trained_with(short_backbone, stream, plugin)
    ends = stream.plan.session_ends.tolist()
    assert heard == [*(("session", number, end) for number, end in enumerate(ends)), ("final", None, ends[-1])]


def test_nothing_is_measured_before_the_end(short_backbone, stream):
    plugin = evaluation(stream, deferred=True)
    strategy = learner(short_backbone, plugins=[plugin])
    for experience in list(stream.train_stream)[:2]:
        strategy.train(experience)
    assert plugin.sessions == plugin.points == []
    assert plugin.evaluator.latest is None


def one_label(deferred: bool):
    stream = stream_of([labels(16, [2 * task, 2 * task + 1], task) for task in range(3)])
    evaluator = Evaluator(stream.test_stream[0].dataset, num_classes=CLASSES, transform=normalise)
    return stream, AnytimeEvaluation(evaluator, every=0, session_ends=stream.plan.session_ends, deferred=deferred)


def test_one_label_an_image_can_be_deferred_too(short_backbone):
    measured = []
    for deferred in (False, True):
        stream, plugin = one_label(deferred)
        train(make_strategy("multi_lane", short_backbone, settings=LANES, plugins=[plugin]), stream)
        measured.append(plugin.sessions + plugin.points)
    for left, right in zip(*measured, strict=True):
        assert np.array_equal(left.confusion, right.confusion)
        assert left.loss == pytest.approx(right.loss, abs=ROUNDING)
        assert (left.samples_seen, left.kind) == (right.samples_seen, right.kind)


@pytest.mark.parametrize("name", ["linear_probe", "single_prompt"])
def test_learners_without_parts_are_refused(short_backbone, name):
    stream, plugin = one_label(True)
    strategy = make_strategy(name, short_backbone, plugins=[plugin])
    with pytest.raises(MetricError, match=r"\A[^\n]*finished parts[^\n]*session_evaluation=live[^\n]*\Z"):
        train(strategy, stream)


def test_a_part_that_learns_on_is_refused(short_backbone):
    stream = blurry(seed=10)
    with pytest.raises(MetricError, match=r"\A[^\n]*part 0[^\n]*learned on[^\n]*\Z"):
        trained_with(short_backbone, stream, evaluation(stream, deferred=True))


def test_a_part_that_someone_else_moves_is_refused(short_backbone, stream):
    plugin = evaluation(stream, deferred=True)
    strategy = learner(short_backbone, plugins=[plugin])
    experiences = list(stream.train_stream)
    strategy.train(experiences[0])
    with torch.no_grad():
        strategy.model.lanes[0].selectors.add_(1)
    with pytest.raises(MetricError, match="part 0"):
        strategy.train(experiences[1])


@pytest.mark.parametrize("keywords", [{"every": 5}, {"session_ends": None}])
def test_deferred_needs_session_ends_and_no_period(stream, keywords):
    evaluator = evaluation(stream).evaluator
    with pytest.raises(MetricError, match=r"\A[^\n]*every=0[^\n]*\Z"):
        AnytimeEvaluation(evaluator, **{"every": 0, "session_ends": [3]} | keywords, deferred=True)
