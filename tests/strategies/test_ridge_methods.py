"""RanPAC and GACL as strategies: order of the stream, several labels, switches and what they declare."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import CLASSES, Pictures, labels, make_strategy, stream_of, train

from cl_prompts.closed_form.ridge import target_rows
from cl_prompts.strategies import GACLSettings, RanPACSettings, TrainingBatch
from cl_prompts.strategies.gacl import GACLMethod
from cl_prompts.strategies.ranpac import RanPACMethod

TARGETS = torch.tensor(labels(40, [5, 0, 3, 1]))
METHODS = {
    "ranpac": lambda backbone, **switches: RanPACMethod(
        backbone, CLASSES, RanPACSettings(projection=50, **switches), torch.Generator().manual_seed(3)
    ),
    "gacl": lambda backbone, **switches: GACLMethod(
        backbone, CLASSES, GACLSettings(expansion=50, gamma=1.0, **switches), torch.Generator().manual_seed(3)
    ),
}
FORMS = [
    ("ranpac", {}),
    ("ranpac", {"ridge": "cross_validation"}),
    ("gacl", {}),
    ("gacl", {"solver": "recursive"}),
]


def learn(method, features, targets, order, cut):
    for part in torch.as_tensor(order).split(cut):
        method.fit(TrainingBatch(torch.empty(0), targets[part], torch.empty(0), query=features[part]))
    return method


@pytest.fixture(scope="module")
def features(short_backbone):
    return short_backbone.query(Pictures(TARGETS.tolist()).tensors())


@pytest.mark.parametrize("name, switches", FORMS)
def test_a_permuted_stream_gives_the_same_head(name, switches, short_backbone, features):
    one = learn(METHODS[name](short_backbone, **switches), features, TARGETS, range(40), 40)
    order = np.random.default_rng(0).permutation(40)
    two = learn(METHODS[name](short_backbone, **switches), features, TARGETS, order, 3)
    assert one.settings.declared_needs().order_invariant
    head = one.classifier.head()
    assert float((head - two.classifier.head()).abs().max()) < 1e-8 * max(1.0, float(head.abs().max()))
    torch.testing.assert_close(one(None, features), two(None, features), rtol=0, atol=1e-6)


def test_the_solvers_of_gacl_agree_and_repetitions_divide_gamma(short_backbone, features):
    heads = [
        learn(METHODS["gacl"](short_backbone, **switches), features, TARGETS, range(40), 7).classifier.head()
        for switches in (
            {},
            {"solver": "recursive"},
            {"variant": "released"},
            {"repetitions": 3, "solver": "recursive"},
        )
    ]
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(heads[2], heads[3], rtol=0, atol=1e-10)
    assert not torch.allclose(heads[0], heads[2], rtol=1e-3)
    thrice = learn(METHODS["gacl"](short_backbone), features.repeat(3, 1), TARGETS.repeat(3), range(120), 7)
    torch.testing.assert_close(thrice.classifier.head(), heads[2], rtol=0, atol=1e-10)
    assert METHODS["gacl"](short_backbone, variant="released").effective_settings()["repetitions"] == 3
    assert "three times" in " ".join(GACLSettings(variant="released").deviations())


@pytest.mark.parametrize("name", METHODS)
def test_several_labels_are_regressed_on_and_zero_is_the_border(name, short_backbone, features):
    rows = torch.zeros(40, CLASSES)
    rows[torch.arange(40), TARGETS] = 1
    rows[:, 2] = rows[:, 5]
    every_other = torch.arange(40)[:, None] % 2 == 0
    hidden = rows.masked_fill((rows == 0) & every_other, float("nan"))
    method = learn(METHODS[name](short_backbone), features, hidden, range(40), 7)
    again = learn(METHODS[name](short_backbone), features, rows, range(40), 7)
    # Hidden labels that are absent cannot be told from visible ones that are: both count as 0.
    torch.testing.assert_close(method.classifier.head(), again.classifier.head(), rtol=0, atol=1e-10)
    expanded = method.classifier.expansion(features).numpy()
    ridge = 1.0 if name == "gacl" else 0.1 * (expanded**2).sum() / 50
    head = np.linalg.solve(expanded.T @ expanded + ridge * np.eye(50), expanded.T @ target_rows(rows, CLASSES).numpy())
    np.testing.assert_allclose(method(None, features).numpy(), expanded @ head - 0.5, atol=1e-5)
    assert ((again(None, features) > 0) == (rows > 0.5)).float().mean() > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_classes_that_begin_in_the_middle_of_a_batch_and_return(name, short_backbone):
    sessions = [labels(24, [5, 2], 1), [2, 2, 5, 5, 1, 1, 0, 0, 0, 1] * 2]
    strategy = train(make_strategy(name, short_backbone), stream_of(sessions))
    images = Pictures([5, 2, 1, 0] * 3, seed=3)
    assert (strategy.model.eval()(images.tensors()).argmax(1).numpy() == images.targets).mean() > 0.7


def test_rules_of_ranpac_declare_what_they_need():
    assert RanPACSettings().declared_needs() == RanPACSettings.needs
    grid = RanPACSettings(ridge="task_grid")
    assert grid.declared_needs().boundaries == "required"
    assert not grid.declared_needs().order_invariant
    assert not RanPACSettings(ridge="held_out").declared_needs().order_invariant
    assert RanPACSettings(ridge="held_out").declared_needs().boundaries == "none"
    said = {rule: " ".join(RanPACSettings(ridge=rule).deviations()) for rule in ("share", "held_out", "task_grid")}
    assert "0.1 of the features' scale" in said["share"]
    assert "200 samples" in said["held_out"]
    assert "ridge" not in said["task_grid"]
    assert all("without the first phase" in text for text in said.values())


@pytest.mark.parametrize("rule", ["held_out", "task_grid"])
def test_what_a_rule_keeps_is_saved_and_resumed_exactly(rule, short_backbone, features):
    whole, part, resumed = (METHODS["ranpac"](short_backbone, ridge=rule, held_out_samples=9) for _ in range(3))
    for method in (whole, part, resumed):
        method.begin_session(None)
    learn(whole, features, TARGETS, range(40), 8)
    learn(part, features, TARGETS, range(24), 8)
    resumed.load_state_dict(part.state_dict())
    resumed.generator.set_state(part.generator.get_state())
    learn(resumed, features, TARGETS, range(24, 40), 8)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert torch.equal(resumed.classifier.head(), whole.classifier.head())
