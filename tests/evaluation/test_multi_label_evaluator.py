"""`MultiLabelEvaluator` against scikit-learn, and what it may not do: draw, change modes, forget, compute twice."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multi_label_toys import CLASSES, blurry, label_rows, learner, mlcil, same_results, trained_with, unseen_scenes
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from torch import nn
from toys import normalise

from cl_prompts.errors import MetricError, PlanError
from cl_prompts.evaluation import Evaluator, MultiLabelEvaluator
from cl_prompts.metrics.multi_label import evaluate_logits

NAN = float("nan")
RULES = ("seen", "all", "final_seen")


class Rows:
    """`label_rows` of a test set."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.asarray(array, dtype=np.float32)

    def __iter__(self):
        return iter(self.array)


class NumberedImages:
    """A test set whose image `i` says only that it is the i-th; `rows` are its labels (images, classes)."""

    def __init__(self, rows: np.ndarray) -> None:
        self.label_rows = Rows(rows)

    def __len__(self) -> int:
        return len(self.label_rows.array)

    def __getitem__(self, index: int):
        return torch.full((3, 2, 2), index, dtype=torch.uint8), self.label_rows.array[index]


class LookUp(nn.Module):
    """Gives the logits of a table; dropout, in training mode, would spoil them."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("table", torch.as_tensor(table, dtype=torch.float32))
        self.dropout = nn.Dropout(0.9)
        self.frozen = nn.BatchNorm1d(table.shape[1]).eval()
        self.calls: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(images))
        return self.dropout(self.table[images[:, 0, 0, 0].long()])


def as_floats(images: torch.Tensor) -> torch.Tensor:
    return images.float()


def numbered(rows: np.ndarray, **keywords) -> MultiLabelEvaluator:
    defaults = {"num_classes": np.shape(rows)[1], "transform": as_floats, "batch_size": 4}
    return MultiLabelEvaluator(NumberedImages(rows), **defaults | keywords)


def mask(*columns: int, classes: int = CLASSES) -> torch.Tensor:
    return torch.zeros(classes, dtype=torch.bool).index_fill_(0, torch.tensor(columns, dtype=torch.int64), True)


# --- numbers ---------------------------------------------------------------------------------------------------------


@st.composite
def measurements(draw):
    """Logits with many ties, labels of which some are unknown, and the classes seen now and at the end."""
    images, classes = draw(st.integers(1, 9)), draw(st.integers(1, 4))

    def rows_of(cell):
        row = st.lists(cell, min_size=classes, max_size=classes)
        return np.array(draw(st.lists(row, min_size=images, max_size=images)), np.float32)

    logits = rows_of(st.sampled_from([-30.0, -2.0, -0.5, 0.0, 0.5, 1.5, 2.0, 30.0]))
    labels = rows_of(st.sampled_from([0.0, 0.0, 1.0, NAN]))
    seen = np.array(draw(st.lists(st.booleans(), min_size=classes, max_size=classes)))
    final = seen | np.array(draw(st.lists(st.booleans(), min_size=classes, max_size=classes)))
    return logits, labels, seen, final


def chosen_images(labels, seen, final, rule):
    """Image by image."""
    columns = {"seen": seen, "all": np.ones_like(seen), "final_seen": final}[rule]
    return np.array([any(label == 1 and column for label, column in zip(row, columns, strict=True)) for row in labels])


def sklearn_scores(probabilities, labels, threshold):
    """AP of each column, CF1 in both meanings and OF1, on the known labels."""
    precisions, f1, precision, recall, everything = [], [], [], [], []
    for column in range(labels.shape[1]):
        known = ~np.isnan(labels[:, column])
        truth, scores = labels[known, column].astype(int), probabilities[known, column]
        guess = (scores > np.float32(threshold)).astype(int)
        precisions.append(average_precision_score(truth, scores) if truth.any() else NAN)
        everything.append((truth, guess))
        for values, function in ((f1, f1_score), (precision, precision_score), (recall, recall_score)):
            values.append(function(truth, guess, zero_division=0) if len(truth) else 0.0)
    p, r = np.mean(precision), np.mean(recall)
    truths, guesses = (np.concatenate(part) for part in zip(*everything, strict=True))
    overall = f1_score(truths, guesses, zero_division=0) if len(truths) else 0.0
    return precisions, [np.mean(f1), 2 * p * r / (p + r) if p + r else 0.0, overall]


def entropy(logits, labels):
    known = ~np.isnan(labels)
    x, y = logits[known].astype(np.float64), labels[known].astype(np.float64)
    return np.mean(np.logaddexp(0, x) - x * y) if known.any() else NAN


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(measurement=measurements(), threshold=st.sampled_from([0.8, 0.3]))
@example((np.zeros((2, 1), np.float32), np.array([[NAN], [0]], np.float32), np.array([True]), np.array([True])), 0.8)
def test_numbers_are_those_of_scikit_learn(rule, measurement, threshold):
    logits, labels, seen, final = measurement
    evaluator = numbered(labels, eval_images=rule, final_seen=final, threshold=threshold)
    evaluation = evaluator(LookUp(logits), torch.from_numpy(seen))
    rows = chosen_images(labels, seen, final, rule)
    result, latest = evaluation.result, evaluator.latest
    assert np.array_equal(latest.rows, rows)
    assert result.images == rows.sum()
    assert np.array_equal(result.columns, seen)
    assert np.isnan(result.average_precision[~seen]).all()
    if not (rows.any() and seen.any()):
        assert np.isnan([evaluation.loss, result.mean_average_precision, result.at(threshold).of1]).all()
        return
    scores, part = (1 / (1 + np.exp(-logits)))[rows][:, seen], labels[rows][:, seen]
    for at in (threshold, 0.5):
        precisions, values = sklearn_scores(scores, part, at)
        np.testing.assert_allclose(result.at(at)[1:], values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.average_precision[seen], precisions, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(result.positives[seen], (part == 1).sum(0))
    np.testing.assert_allclose(evaluation.loss, entropy(logits[rows][:, seen], part), rtol=1e-6, atol=1e-12)


def test_ties_of_saturated_sigmoids_are_broken_by_logits_where_asked():
    labels, logits = np.array([[1, 0], [0, 1], [0, 0]]), np.array([[40.0, 0.0], [30.0, 1.0], [20.0, -1.0]])
    found = {
        scores: numbered(labels, scores=scores, eval_images="all")(LookUp(logits), mask(0, 1, classes=2)).result
        for scores in ("sigmoid", "logit")
    }
    assert found["sigmoid"].average_precision.tolist() == [0.5, 1.0]  # the two labelled images are equally certain
    assert found["logit"].average_precision.tolist() == [1.0, 1.0]
    assert found["sigmoid"].thresholds == found["logit"].thresholds


def test_the_threshold_of_one_half_is_measured_once():
    result = numbered(label_rows(4), threshold=0.5)(LookUp(np.zeros((4, CLASSES))), mask(0, 1)).result
    assert [scores.threshold for scores in result.thresholds] == [0.5]


def test_unseen_columns_change_nothing_whatever_they_hold():
    labels, logits = label_rows(12), np.random.default_rng(1).normal(size=(12, CLASSES))
    spoiled = logits.copy()
    spoiled[:, 3:] = [[NAN, np.inf, -np.inf]]
    left, right = (numbered(labels)(LookUp(table), mask(0, 1, 2)) for table in (logits, spoiled))
    same_results(left.result, right.result)
    assert left.loss == right.loss


# --- what it holds ---------------------------------------------------------------------------------------------------


def test_latest_holds_what_was_computed_from():
    labels = label_rows(10).astype(np.float32)
    labels[0, 1:] = NAN
    logits = np.random.default_rng(2).normal(size=labels.shape).astype(np.float32)
    evaluator = numbered(labels)
    assert evaluator.latest is None
    exposed = mask(0, 2)
    result = evaluator(LookUp(logits), exposed).result
    latest = evaluator.latest
    assert latest.rows.tolist() == [bool(set(np.flatnonzero(row == 1)) & {0, 2}) for row in labels]
    assert 0 < latest.rows.sum() < 10
    assert np.array_equal(latest.logits[latest.rows], logits[latest.rows])
    assert np.isnan(latest.logits[~latest.rows]).all()
    assert (latest.logits.dtype, latest.targets.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(latest.targets, labels)
    again = evaluate_logits(latest.logits[latest.rows], latest.targets[latest.rows], latest.columns)
    same_results(result, again)


def test_latest_keeps_its_columns_when_more_classes_are_seen():
    evaluator, model = numbered(label_rows(10)), LookUp(np.zeros((10, CLASSES)))
    exposed = mask(0, 2)
    evaluator(model, exposed)
    latest = evaluator.latest
    exposed[5] = True  # the stream goes on
    assert np.flatnonzero(latest.columns).tolist() == [0, 2]
    evaluator(model, exposed)
    assert np.flatnonzero(evaluator.latest.columns).tolist() == [0, 2, 5]
    assert np.flatnonzero(latest.columns).tolist() == [0, 2]


def test_the_point_of_an_evaluation():
    evaluator = numbered(label_rows(10))
    evaluation = evaluator(LookUp(np.random.default_rng(3).normal(size=(10, CLASSES))), mask(1, 4))
    point = evaluator.point(evaluation, samples_seen=7, kind="session", session=2, exposed=mask(1, 4).numpy())
    assert (point.samples_seen, point.kind, point.session, point.loss) == (7, "session", 2, evaluation.loss)
    assert point.score == evaluation.result.mean_average_precision == np.nanmean(point.class_average_precision)
    assert point.score_name == "mAP"


@pytest.mark.parametrize("exposed", [(), (5,)])
def test_without_an_image_nothing_runs(exposed):
    labels = label_rows(6)
    labels[:, 5] = 0
    labels[:, 0] = 1
    model = LookUp(np.zeros((6, CLASSES)))
    evaluation = numbered(labels)(model, mask(*exposed))
    assert (evaluation.result.images, model.calls) == (0, [])
    assert np.isnan([evaluation.loss, evaluation.result.mean_average_precision]).all()


# --- what it leaves alone --------------------------------------------------------------------------------------------


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


class Failing(LookUp):
    def forward(self, images):
        if self.calls:
            raise RuntimeError("broken")
        return super().forward(images)


@pytest.mark.parametrize(
    ("model", "error"),
    [(LookUp, None), (Failing, RuntimeError), (lambda table: LookUp(table[:, :4]), MetricError)],
    ids=["fine", "fails in the second batch", "too few logits"],
)
def test_modes_and_contexts_are_what_they_were_also_after_an_error(model, error):
    model = model(np.zeros((10, CLASSES)))
    before = modes(model)
    assert set(before) == {True, False}
    evaluator = numbered(np.ones((10, CLASSES)), autocast=torch.bfloat16)
    with nullcontext() if error is None else pytest.raises(error):
        evaluator(model, mask(0))
    assert modes(model) == before
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


def test_no_random_state_is_drawn():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 -- the very state that libraries draw from
    states = [torch.get_rng_state(), np.random.get_state()[1].copy()]  # noqa: NPY002
    evaluator = numbered(label_rows(10))
    model = LookUp(np.zeros((10, CLASSES)))
    for columns in ((0, 1), (0, 1, 2)):
        evaluator(model, mask(*columns))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def test_autocast_computes_in_bfloat16_and_stores_float32():
    model, dataset = Linear(), NumberedImages(label_rows(6))
    images = torch.stack([dataset[index][0] for index in range(6)])
    found = {}
    for autocast in (None, torch.bfloat16):
        evaluator = numbered(dataset.label_rows.array, autocast=autocast, batch_size=6, eval_images="all")
        evaluator(model, mask(*range(CLASSES)))
        found[autocast] = evaluator.latest.logits
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(images.float())
    assert expected.dtype == torch.bfloat16
    assert found[torch.bfloat16].dtype == np.float32
    assert np.array_equal(found[torch.bfloat16], expected.float().numpy())
    assert not np.array_equal(found[torch.bfloat16], found[None])


def test_autocast_reaches_the_parts(short_backbone):
    benchmark = mlcil()
    model, found = trained_with(short_backbone, benchmark)[0].model, []
    for autocast in (None, torch.bfloat16):
        evaluator = evaluator_of(benchmark, autocast=autocast)
        evaluator(model, mask(*range(CLASSES)))
        found.append(evaluator.latest.logits)
    assert found[1].dtype == np.float32
    assert 0 < np.abs(found[1] - found[0]).max() < 0.05 * np.abs(found[0]).max()


# --- parts -----------------------------------------------------------------------------------------------------------


def evaluator_of(benchmark, **keywords) -> MultiLabelEvaluator:
    defaults = {"num_classes": CLASSES, "transform": normalise, "batch_size": 8, "eval_images": "all"}
    return MultiLabelEvaluator(benchmark.test_stream[0].dataset, **defaults | keywords)


def test_images() -> torch.Tensor:
    return normalise(torch.from_numpy(unseen_scenes().images).permute(0, 3, 1, 2))


test_images.__test__ = False  # type: ignore[attr-defined]


class Counted:
    """An evaluator, and the parts it asked a model for."""

    def __init__(self, monkeypatch, model, benchmark, **keywords) -> None:
        self.model, self.evaluator = model, evaluator_of(benchmark, **keywords)
        self.asked: list[list[int]] = []
        self.queries = 0
        part_outputs, query = model.part_outputs, model.query

        def counted_parts(images, parts):
            self.asked.append(list(parts))
            return part_outputs(images, parts)

        def counted_query(images):
            self.queries += 1
            return query(images)

        monkeypatch.setattr(model, "part_outputs", counted_parts)
        monkeypatch.setattr(type(model), "query", lambda self_, images: counted_query(images))

    def logits(self, columns=range(CLASSES)) -> np.ndarray:
        self.asked.clear()
        self.evaluator(self.model, mask(*columns))
        return self.evaluator.latest.logits

    def check(self) -> None:
        """What was put together is what the whole model says."""
        with torch.no_grad():
            expected = self.model.eval()(test_images()).numpy()
        np.testing.assert_allclose(self.evaluator.latest.logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["concat", "key"])
def test_each_part_runs_once_and_the_store_follows_every_change(short_backbone, monkeypatch, mode):
    benchmark = mlcil()
    first, second, third = benchmark.train_stream
    strategy = learner(short_backbone, settings={"head_mode": mode}, optimizer=partial(torch.optim.SGD, lr=0.5))
    strategy.train(first)
    counted = Counted(monkeypatch, strategy.model, benchmark)
    batches = 2  # 16 images in batches of 8
    old = counted.logits([0, 1])
    assert counted.asked == [[0]] * batches
    for columns in ([0], range(CLASSES)):
        assert np.array_equal(counted.logits(columns), old)
        assert counted.asked == []
    for number, experience in enumerate((second, third), start=1):
        strategy.train(experience)
        counted.logits()
        assert counted.asked == [[number]] * batches
        counted.check()
    saved = {name: tensor.clone() for name, tensor in strategy.model.state_dict().items()}
    at_the_end = counted.logits()
    with torch.no_grad():
        strategy.model.lanes[1].prompts[0].add_(1)
    moved = counted.logits()
    assert counted.asked == [[1]] * batches
    assert not np.array_equal(moved, at_the_end)
    counted.check()
    strategy.model.load_state_dict(saved)
    # All lanes in one call round otherwise than one after the other.
    np.testing.assert_allclose(counted.logits(), at_the_end, rtol=0, atol=1e-6)
    counted.check()


def test_the_store_follows_a_head_that_is_loaded_alone(short_backbone, monkeypatch):
    benchmark = mlcil()
    strategy = trained_with(short_backbone, benchmark)[0]
    counted = Counted(monkeypatch, strategy.model, benchmark)
    before = counted.logits()
    other = {
        name: tensor + 1 for name, tensor in strategy.model.head.state_dict().items() if tensor.is_floating_point()
    }
    strategy.model.head.load_state_dict(other, strict=False)
    assert not np.array_equal(counted.logits(), before)
    counted.check()


def test_another_model_starts_anew_and_the_first_comes_back(short_backbone):
    benchmark = mlcil()
    evaluator = evaluator_of(benchmark)
    models = [
        trained_with(short_backbone, benchmark, settings={"head_mode": mode})[0].model for mode in ("concat", "key")
    ]
    found = []
    for model in (*models, models[0]):
        evaluator(model, mask(*range(CLASSES)))
        found.append(evaluator.latest.logits)
        with torch.no_grad():
            np.testing.assert_allclose(found[-1], model.eval()(test_images()).numpy(), rtol=0, atol=1e-6)
    assert np.array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])


def test_first_parts_are_the_learner_as_it_was(short_backbone):
    benchmark = mlcil()
    strategy, evaluator = learner(short_backbone), evaluator_of(benchmark, eval_images="seen")
    live = []
    for number, experience in enumerate(benchmark.train_stream, start=1):
        strategy.train(experience)
        live.append(evaluator(strategy.model, mask(*range(2 * number))))
    for number, then in enumerate(live, start=1):
        now = evaluator(strategy.model, mask(*range(2 * number)), number)
        same_results(now.result, then.result)
        assert now.loss == then.loss


def test_frozen_queries_are_computed_once(short_backbone, monkeypatch):
    benchmark = mlcil()
    first, second, _ = benchmark.train_stream
    strategy = learner(short_backbone, settings={"head_mode": "key"})
    strategy.train(first)
    counted = Counted(monkeypatch, strategy.model, benchmark)
    counted.logits()
    assert counted.queries == 2
    strategy.train(second)
    trained = counted.queries
    counted.logits()
    assert counted.queries == trained


@pytest.mark.parametrize("name", ["linear_probe", "single_prompt"])
def test_learners_that_are_one_whole_are_measured_as_they_are(short_backbone, name):
    benchmark = blurry(n_sessions=2)
    strategy, plugin = trained_with(short_backbone, benchmark, name=name)
    evaluator = evaluator_of(benchmark)
    evaluator(strategy.model, mask(*range(CLASSES)))
    with torch.no_grad():
        expected = strategy.model.eval()(test_images()).numpy()
    np.testing.assert_allclose(evaluator.latest.logits, expected, rtol=0, atol=1e-6)
    again = evaluate_logits(expected, unseen_scenes().targets, np.ones(CLASSES, bool))
    assert plugin.points[-1].score == pytest.approx(again.mean_average_precision, abs=1e-6)


# --- refusals --------------------------------------------------------------------------------------------------------


class SeveralTargets:
    targets = label_rows(4)

    def __len__(self) -> int:
        return 4


class OneLabel:
    targets = np.arange(4)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        return torch.zeros(3, 2, 2, dtype=torch.uint8), index


class Floats(NumberedImages):
    def __getitem__(self, index: int):
        return torch.zeros(3, 2, 2), self.label_rows.array[index]


ROWS = label_rows(4)


@pytest.mark.parametrize(
    ("dataset", "keywords", "words"),
    [
        (NumberedImages(ROWS), {"num_classes": 5}, f"{CLASSES} label columns.*num_classes={CLASSES}"),
        (OneLabel(), {}, r"use Evaluator \(accuracy\)"),
        (NumberedImages(ROWS), {"transform": None}, "uint8 images: pass a transform"),
        (Floats(ROWS), {}, "float images already: pass no transform"),
        (NumberedImages(ROWS), {"eval_images": "some"}, "eval_images='some': choose seen, all, final_seen"),
        (NumberedImages(ROWS), {"eval_images": "final_seen"}, "final_seen.*classes seen by the end"),
        (NumberedImages(ROWS[:0]), {}, "empty"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_evaluated_is_one_line(dataset, keywords, words):
    with pytest.raises((MetricError, PlanError)) as caught:
        MultiLabelEvaluator(dataset, **{"num_classes": CLASSES, "transform": as_floats} | keywords)
    text = str(caught.value)
    assert "\n" not in text
    assert re.search(words, text), text


def test_an_unknown_kind_of_score_is_one_line():
    with pytest.raises(MetricError, match=r"\A[^\n]*scores='softmax': choose one of sigmoid, logit\Z"):
        numbered(ROWS, scores="softmax")(LookUp(np.zeros((4, CLASSES))), mask(0))


def test_a_model_with_another_number_of_logits_is_one_line():
    with pytest.raises(MetricError, match=r"\A[^\n]*the model has 4 logits[^\n]*num_classes=6\Z"):
        numbered(ROWS)(LookUp(np.zeros((4, 4))), mask(*range(CLASSES)))


def test_accuracy_of_several_labels_is_refused_by_the_right_name():
    for dataset in (mlcil().test_stream[0].dataset, NumberedImages(ROWS), SeveralTargets()):
        with pytest.raises(MetricError, match=r"\A[^\n]*MultiLabelEvaluator \(mAP, CF1, OF1\)[^\n]*\Z"):
            Evaluator(dataset, num_classes=CLASSES, transform=as_floats)
