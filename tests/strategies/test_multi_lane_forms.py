"""The fast form is the token form through a whole training run, in every ablation."""

from __future__ import annotations

import copy

import pytest
import torch
from multi_label_toys import Scenes, evaluation, label_rows, learner, mlcil, train_scenes
from toys import learned, normalise

from cl_prompts.backbones import FrozenViT

ABLATIONS = {
    "released": {},
    "every block prompted": {"prompt_layers": 3},
    "no prompts, one selector": {"prompt_layers": 0, "num_selectors": 1},
    "no drop-and-replace": {"dandr": "off"},
    "no drop-and-replace, no selectors": {"dandr": "off", "num_selectors": 0},
    "selectors reset": {"dandr": "reset"},
    "blind": {"num_selectors": 0},
    "merged tokens": {"num_selectors": 0, "tome": 3},
    "merged tokens, every block": {"num_selectors": 0, "tome": 2, "prompt_layers": 3},
    "key": {"head_mode": "key"},
    "key, no drop-and-replace": {"head_mode": "key", "dandr": "off"},
    "key, blind": {"head_mode": "key", "num_selectors": 0},
    "no norm, active labels": {"normalize": "none", "loss_norm": "active", "temperature": 2.0},
    "uniform, fresh": {"prompt_init": "uniform", "lane_init": "fresh"},
}


@pytest.fixture(scope="module")
def double_backbone(short_backbone) -> FrozenViT:
    return FrozenViT(copy.deepcopy(short_backbone.model).double())


class Double:
    """Toy normalisation in float64."""

    is_random = False

    def __call__(self, images, *rest):
        return normalise(images).double()


@pytest.mark.parametrize("settings", [pytest.param(value, id=name) for name, value in ABLATIONS.items()])
def test_a_whole_run_is_the_same_in_both_forms(double_backbone, settings):
    benchmark = mlcil(train_scenes(18), Scenes(label_rows(8, 50), 50))
    runs = []
    for form in ("fast", "token"):
        strategy = learner(
            double_backbone,
            settings=settings | {"form": form},
            train_transform=Double(),
            eval_transform=Double(),
            # Adam divides by gradients: those of 1e-8 would amplify rounding.
            optimizer=lambda tensors: torch.optim.SGD(tensors, lr=0.5, momentum=0.9),
        )
        strategy.model.double()
        strategy.optimizer = strategy.optimization.begin([tensor for _, tensor in strategy.model.named_trainables()])
        plugin = evaluation(benchmark, transform=Double())
        strategy.plugins.append(plugin)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        with torch.no_grad():
            images = torch.stack([Double()(item[0]) for item in benchmark.test_stream[0].dataset])
            runs.append((learned(strategy), strategy.model.eval()(images), plugin.sessions))
    (fast, fast_logits, fast_points), (token, token_logits, token_points) = runs
    assert fast.keys() == token.keys()
    for name, value in fast.items():
        torch.testing.assert_close(
            value, token[name], rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert fast_logits.dtype == torch.float64
    torch.testing.assert_close(fast_logits, token_logits, rtol=0, atol=1e-10)
    for left, right in zip(fast_points, token_points, strict=True):
        assert left.loss == pytest.approx(right.loss, abs=1e-6)


def test_the_forms_tell_ablations_apart(double_backbone):
    """What the comparison above could hide: settings that reach neither form."""
    x = Double()(torch.from_numpy(train_scenes(3).images).permute(0, 3, 1, 2))
    seen = []
    for settings in ABLATIONS.values():
        model = learner(double_backbone, settings=settings | {"prompt_init": "uniform"}).model.double()
        model.begin_session(torch.tensor([0, 1]))
        with torch.no_grad():
            seen.append(model.eval()(x))
    # Differing in training alone: keys, the loss, lane_init.
    same_forward = {"released", "uniform, fresh", "no drop-and-replace, no selectors"}
    same_forward |= {name for name in ABLATIONS if name.startswith("key")}
    different = [logits for name, logits in zip(ABLATIONS, seen, strict=True) if name not in same_forward]
    for index, logits in enumerate(different):
        assert not torch.allclose(logits, seen[0])
        assert not any(torch.allclose(logits, other) for other in different[:index])


def test_the_unit_norm_keeps_the_precision(double_backbone):
    x = Double()(torch.from_numpy(train_scenes(3).images).permute(0, 3, 1, 2))
    features = {}
    for normalize in ("none", "pre-head"):
        model = learner(double_backbone, settings={"normalize": normalize}).model.double()
        with torch.no_grad():
            features[normalize] = model._features(x, [0], needs_query=False)[0]
    raw = features["none"]
    torch.testing.assert_close(features["pre-head"].double(), raw / raw.norm(dim=-1, keepdim=True), rtol=0, atol=1e-14)
