"""The evaluator: what it counts, what it computes once, what it leaves alone, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CLASSES, Pictures, labels, make_strategy, normalise, stream_of, train

import cl_prompts.evaluation.images
from cl_prompts.errors import MetricError
from cl_prompts.evaluation import Evaluator
from cl_prompts.evaluation.logits import ModelLogits
from cl_prompts.plugins import AnytimeEvaluation
from cl_prompts.strategies.declaration import strategy_names


class Floats:
    """A test set of float images: class k is an image of the value k."""

    def __init__(self, targets):
        self.targets = list(targets)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.full((3, 2, 2), float(self.targets[index])), self.targets[index], index


class Script(torch.nn.Module):
    """Answers with a fixed row of logits for each class."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("rows", torch.tensor(rows))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.rows[images[:, 0, 0, 0].long()])


def exposed(*classes, count=4):
    return torch.isin(torch.arange(count), torch.tensor(classes, dtype=torch.int64))


ROWS = [
    [1.0, 0.0, 0.0, 9.0],  # class 0: best is 3, then 0
    [2.0, 1.0, 0.0, 0.0],  # class 1: best is 0, then 1
    [0.0, 0.0, 5.0, 0.0],  # class 2: right
    [0.0, 0.0, 0.0, 1.0],
]


def test_confusion_and_loss_by_hand():
    evaluator = Evaluator(Floats([0, 2, 1, 0, 3]), num_classes=4)
    result = evaluator(Script(ROWS).train(), exposed(0, 1, 2))
    assert result.confusion.tolist() == [[2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]

    def loss(row, target):
        row = np.array(row[:3])
        return float(np.log(np.exp(row).sum()) - row[target])

    expected = (2 * loss(ROWS[0], 0) + loss(ROWS[1], 1) + loss(ROWS[2], 2)) / 4
    assert result.loss == pytest.approx(expected, rel=1e-6)


def test_without_a_mask_all_columns_compete_but_only_exposed_images_count():
    result = Evaluator(Floats([0, 2, 1, 0, 3]), num_classes=4, mask="none")(Script(ROWS), exposed(0, 1, 2))
    assert result.confusion[0].tolist() == [0, 0, 0, 2]
    assert result.confusion.sum() == 4


def test_nothing_exposed_gives_zero_counts_and_no_loss():
    def explode(images):
        raise AssertionError("no image is to be looked at")

    model = Script(ROWS)
    model.forward = explode
    result = Evaluator(Floats([0, 1]), num_classes=4)(model, exposed())
    assert result.confusion.sum() == 0
    assert np.isnan(result.loss)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.sets(st.integers(0, 3)), st.integers(1, 25))
def test_the_batch_size_changes_nothing_and_counts_are_complete(targets, classes, batch_size):
    result = Evaluator(Floats(targets), num_classes=4, batch_size=batch_size)(Script(ROWS), exposed(*classes))
    counts = np.bincount([target for target in targets if target in classes], minlength=4)
    assert result.confusion.sum(1).tolist() == counts.tolist()
    assert result.confusion[:, [c for c in range(4) if c not in classes]].sum() == 0


def test_modes_of_every_module_are_restored():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.Dropout(), torch.nn.ReLU())
    model.train()
    model[3].eval()
    Evaluator(Floats([0, 1]), num_classes=4)(model, exposed(0, 1))
    assert [module.training for module in model] == [True, True, True, False]
    assert model.training


def test_modes_are_restored_after_an_error():
    model = torch.nn.Linear(5, 4).train()
    with pytest.raises(RuntimeError):
        Evaluator(Floats([0, 1]), num_classes=4)(model, exposed(0, 1))
    assert model.training


def test_a_head_that_has_grown_only_so_far_is_evaluated_as_it_is():
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    before = head[1].weight.shape
    result = Evaluator(Floats([0, 1, 3]), num_classes=4)(head, exposed(0, 1))
    assert result.confusion.sum() == 2
    assert head[1].weight.shape == before


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_images_are_the_same_with_and_without_the_decoded_cache(cache_bytes, monkeypatch, tiny_backbone):
    monkeypatch.setattr(cl_prompts.evaluation.images, "CACHE_BYTES", cache_bytes)
    strategy = train(make_strategy("mvp", tiny_backbone), stream_of([labels(16, range(CLASSES))]))
    test = Pictures(labels(20, range(CLASSES), 3))
    dataset = [(torch.from_numpy(image).permute(2, 0, 1), target) for image, target, _ in test]

    class Decoded:
        targets = test.targets
        reads = 0

        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            self.reads += 1
            return dataset[index]

    source = Decoded()
    evaluator = Evaluator(source, num_classes=CLASSES, transform=normalise, batch_size=8)
    first = evaluator(strategy.model, strategy.exposed)
    second = evaluator(strategy.model, strategy.exposed)
    assert (first.confusion == second.confusion).all()
    assert first.loss == second.loss
    logits = strategy.model.eval()(normalise(torch.stack([image for image, _ in dataset])))
    expected = logits.masked_fill(~strategy.exposed, -torch.inf).argmax(-1)
    assert first.confusion.trace() == (expected == torch.from_numpy(test.targets)).sum()
    assert (source.reads <= 1 + 1 + 20) == bool(cache_bytes)


@pytest.mark.parametrize("name", strategy_names())
def test_queries_of_test_images_are_computed_once_a_run(name, tiny_backbone, monkeypatch):
    benchmark = stream_of([labels(40, range(CLASSES))])
    size = len(benchmark.test_stream[0].dataset)
    asked = []
    original = type(tiny_backbone).query

    def counted(self, images=None, **keywords):
        result = original(self, images, **keywords)
        if torch.is_inference_mode_enabled():
            asked.append(len(result))
        return result

    monkeypatch.setattr(type(tiny_backbone), "query", counted)
    evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=CLASSES, transform=normalise, batch_size=7)
    evaluation = AnytimeEvaluation(evaluator, every=8)
    strategy = make_strategy(name, tiny_backbone, plugins=[evaluation])
    train(strategy, benchmark)
    assert len(evaluation.points) == 5
    has_query = strategy.model.query(Pictures([0]).tensors()) is not None
    assert sum(asked) == (size if has_query else 0)


def test_known_queries_belong_to_one_model(tiny_backbone):
    benchmark = stream_of([labels(40, range(CLASSES))])
    dataset = benchmark.test_stream[0].dataset
    shared = Evaluator(dataset, num_classes=CLASSES, transform=normalise)
    for name in ("mvp", "linear_probe", "mvp"):
        strategy = train(make_strategy(name, tiny_backbone), benchmark)
        ours = shared(strategy.model, strategy.exposed)
        fresh = Evaluator(dataset, num_classes=CLASSES, transform=normalise)(strategy.model, strategy.exposed)
        assert ours.loss == fresh.loss
        assert (ours.confusion == fresh.confusion).all()


def test_known_queries_change_no_number(tiny_backbone, monkeypatch):
    benchmark = stream_of([labels(40, range(CLASSES))])
    strategy = train(make_strategy("mvp", tiny_backbone), benchmark)
    dataset = benchmark.test_stream[0].dataset
    known = Evaluator(dataset, num_classes=CLASSES, transform=normalise)(strategy.model, strategy.exposed)
    monkeypatch.setattr(ModelLogits, "_query_all", lambda self, model, device: None)
    anew = Evaluator(dataset, num_classes=CLASSES, transform=normalise)(strategy.model, strategy.exposed)
    assert known.loss == pytest.approx(anew.loss, rel=1e-6)
    assert (known.confusion == anew.confusion).all()


@pytest.mark.parametrize(
    "dataset, keywords, match",
    [
        (Floats([]), {}, "the test set is empty"),
        (Floats([0, 4]), {}, r"test label 4 is outside 0\.\.3"),
        (Floats([0, -1]), {}, r"test label -1 is outside 0\.\.3"),
        (Floats([0.5, 1.0]), {}, "accuracy needs one integer class id an image"),
        (Floats([[0, 1], [1, 1]]), {}, "got targets of shape .2, 2."),
        (Floats([0]), {"mask": "exposd"}, "evaluation mask 'exposd' is unknown; choose one of exposed, none"),
        (Floats([0]), {"transform": normalise}, "the test set gives float images already: pass no transform"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(dataset, keywords, match):
    with pytest.raises(MetricError, match=match) as error:
        Evaluator(dataset, num_classes=4, **keywords)
    assert "\n" not in str(error.value)


def test_raw_test_images_without_transform_are_refused():
    with pytest.raises(MetricError, match="the test set gives uint8 images: pass a transform"):
        Evaluator(stream_of([[0]]).test_stream[0].dataset, num_classes=CLASSES)


def test_a_head_with_more_columns_than_classes_is_refused():
    with pytest.raises(MetricError, match="the model has 4 logits, the evaluator num_classes=3"):
        Evaluator(Floats([0]), num_classes=3)(Script(ROWS), exposed(0, count=3))
