"""Both forms of the lanes against each other and against explicit loops, values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import slow_lanes
import torch
from hypothesis import given, settings
from lane_cases import ABLATIONS, MAKES, cases, gradients, make_backbone, make_images, make_inputs, of_lanes, same

from cl_prompts.backbones.attention_input import AttentionInput
from cl_prompts.errors import BackboneError
from cl_prompts.lanes import fast_class_tokens, selector_path, selector_weights, token_class_tokens

EXACT = 1e-10
FORMS = {"fast": fast_class_tokens, "token": token_class_tokens}
MODES = {"recorded": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def run(form, backbone, images, inputs):
    return FORMS[form](backbone.blocks, backbone.normed_stream(images), inputs)


def evaluate(form, backbone, images, inputs):
    """Without recording: where the fast form reads the keys and values of the stream."""
    with torch.no_grad():
        return run(form, backbone, images, inputs)


def check_against_loops(form, backbone, images, inputs):
    found, expected = run(form, backbone, images, inputs), slow_lanes.class_tokens(backbone.model, images, inputs)
    same(found, expected, EXACT)
    same(evaluate(form, backbone, images, inputs), expected, EXACT)
    of_loops = gradients(expected, inputs)
    for name, gradient in gradients(found, inputs).items():
        same(gradient, of_loops[name], EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_values_and_gradients_are_those_of_the_definition(form, ablation):
    backbone = make_backbone()
    check_against_loops(form, backbone, make_images(), make_inputs(backbone, **ABLATIONS[ablation]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", MAKES)
def test_every_make_of_backbone(form, make):
    backbone = make_backbone(make)
    check_against_loops(form, backbone, make_images(), make_inputs(backbone))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_fast_equals_token_for_any_lanes(case):
    backbone, images, inputs = case
    fast, token = run("fast", backbone, images, inputs), run("token", backbone, images, inputs)
    same(fast, token, EXACT)
    same(evaluate("fast", backbone, images, inputs), token, EXACT)
    of_token = gradients(token, inputs)
    for name, gradient in gradients(fast, inputs).items():
        same(gradient, of_token[name], EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"num_prompts": 0},
        {"prompt_layers": 0},
        {"lanes": 1},
        {"lanes": 7},
        {"num_selectors": 1},
        {"prompt_layers": 3, "num_prompts": 1},
        {"num_prompts": 0, "num_selectors": 0},
    ],
    ids=str,
)
def test_sizes_at_the_edge(form, sizes):
    backbone = make_backbone()
    check_against_loops(form, backbone, make_images(), make_inputs(backbone, **sizes))


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_no_lane_gives_no_class_token(ablation):
    backbone = make_backbone()
    inputs = make_inputs(backbone, lanes=0, **ABLATIONS[ablation])
    for compute in (run, evaluate):
        assert compute("fast", backbone, make_images(2), inputs).shape == (2, 0, backbone.width)


@pytest.mark.parametrize("compute", [run, evaluate])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_lane_does_not_depend_on_the_lanes_beside_it(ablation, compute):
    backbone, images = make_backbone(), make_images()
    inputs = make_inputs(backbone, lanes=4, **ABLATIONS[ablation])
    together = compute("fast", backbone, images, inputs)
    for lane in range(4):
        same(together[:, [lane]], compute("fast", backbone, images, of_lanes(inputs, [lane])), EXACT)
    same(together[:, [3, 1]], compute("fast", backbone, images, of_lanes(inputs, [3, 1])), EXACT)


@pytest.mark.parametrize("compute", [run, evaluate])
@pytest.mark.parametrize("ablation", ["default", "off", "merged_to_7"])
def test_an_image_does_not_depend_on_the_images_beside_it(ablation, compute):
    backbone, images = make_backbone(), make_images(3)
    inputs = make_inputs(backbone, **ABLATIONS[ablation])
    together = compute("fast", backbone, images, inputs)
    same(together, torch.cat([compute("fast", backbone, image[None], inputs) for image in images]), EXACT)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ablation", ["blind", "blind_off"])
def test_without_selectors_every_image_gives_the_same(form, ablation):
    backbone = make_backbone()
    found = run(form, backbone, make_images(3), make_inputs(backbone, **ABLATIONS[ablation]))
    same(found, found[:1].expand_as(found), EXACT)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_single_precision_is_near_double(ablation):
    double = make_backbone()
    single = make_backbone(dtype=torch.float32)
    exact = run("fast", double, make_images(), make_inputs(double, **ABLATIONS[ablation]))
    inputs = make_inputs(single, **ABLATIONS[ablation])
    found = run("fast", single, make_images(dtype=torch.float32), inputs)
    assert found.dtype == torch.float32
    same(found.double(), exact, 2e-5)
    same(evaluate("fast", single, make_images(dtype=torch.float32), inputs).double(), exact, 2e-5)
    of_token = gradients(run("token", single, make_images(dtype=torch.float32), inputs), inputs)
    for name, gradient in gradients(found, inputs).items():
        same(gradient, of_token[name], 2e-4)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_bfloat16_autocast_is_near_single_precision_and_trains(ablation):
    backbone, images = make_backbone(dtype=torch.float32), make_images(dtype=torch.float32)
    inputs = make_inputs(backbone, **ABLATIONS[ablation])
    exact = run("fast", backbone, images, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run("fast", backbone, images, inputs)
        evaluated = evaluate("fast", backbone, images, inputs)
    for rounded in (found, evaluated):
        assert torch.isfinite(rounded).all()
        assert float((rounded.float() - exact).detach().norm() / exact.detach().norm()) < 0.02
    assert evaluated.dtype == found.dtype
    of_single = gradients(exact, inputs)
    for name, gradient in gradients(found.float(), inputs).items():
        assert gradient.dtype == torch.float32
        assert torch.isfinite(gradient).all()
        if float(of_single[name].norm()):
            assert float((gradient - of_single[name]).norm() / of_single[name].norm()) < 0.1, name


@pytest.mark.parametrize("compute", [run, evaluate])
@pytest.mark.parametrize("ablation", ["default", "reset", "blind", "merged_to_7"])
def test_every_softmax_is_at_least_single_precision(ablation, compute, monkeypatch):
    backbone, images = make_backbone(dtype=torch.float32), make_images(dtype=torch.float32)
    inputs = make_inputs(backbone, **ABLATIONS[ablation])
    computed = []
    softmax = torch.softmax

    def watched(*arguments, **keywords):
        computed.append(softmax(*arguments, **keywords))
        return computed[-1]

    monkeypatch.setattr(torch, "softmax", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if inputs.num_selectors:
            seen = next(iter(backbone.normed_stream(images))).normed
            weights = selector_weights(selector_path(backbone.blocks, inputs)[0], seen)
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), rtol=0, atol=1e-5)
        if ablation != "blind":  # without selectors lanes are sequences, which go through the fused attention
            compute("fast", backbone, images, inputs)
            assert computed
    assert {weights.dtype for weights in computed} <= {torch.float32}


def test_a_path_that_is_known_gives_the_same_numbers():
    backbone, images = make_backbone(), make_images()
    inputs = make_inputs(backbone)
    path = selector_path(backbone.blocks, inputs)
    again = fast_class_tokens(backbone.blocks, backbone.normed_stream(images), inputs, path)
    assert torch.equal(again, run("fast", backbone, images, inputs))
    other = [selectors + 1 for selectors in path]
    moved = fast_class_tokens(backbone.blocks, backbone.normed_stream(images), inputs, other)
    assert not torch.allclose(again, moved)


@pytest.mark.parametrize("mode", MODES)
def test_keys_and_values_of_the_stream_are_read_where_no_gradient_is_recorded(mode, monkeypatch):
    backbone, images = make_backbone(), make_images()
    inputs, asked = make_inputs(backbone), []
    of_the_stream = AttentionInput.keys_and_values

    def watched(seen):
        asked.append(of_the_stream(seen))
        return asked[-1]

    monkeypatch.setattr(AttentionInput, "keys_and_values", watched)
    with MODES[mode]():
        found = run("fast", backbone, images, inputs)
    same(found.detach().clone(), run("token", backbone, images, inputs).detach(), EXACT)
    known = [answer is not None for answer in asked]
    assert known == ([] if mode == "recorded" else [True] * (backbone.depth - 1) + [False])


def test_weights_of_selectors_are_the_softmax_of_scaled_products():
    backbone, images = make_backbone(), make_images()
    inputs = make_inputs(backbone)
    seen = list(backbone.normed_stream(images))[1].normed
    selectors = selector_path(backbone.blocks, inputs)[1]
    expected = torch.einsum("tsd,bnd->btsn", selectors, seen) / backbone.width**0.5
    same(selector_weights(selectors, seen), expected.exp() / expected.exp().sum(-1, keepdim=True), EXACT)


def test_keys_that_are_normalised_are_refused():
    backbone = make_backbone(qk_norm=True)
    inputs = make_inputs(backbone)
    with pytest.raises(BackboneError, match="form=token"):
        run("fast", backbone, make_images(), inputs)
    assert run("token", backbone, make_images(), inputs).shape == (2, 2, backbone.width)


def test_inputs_count_their_lanes_and_selectors():
    inputs = make_inputs(make_backbone(), lanes=4, num_selectors=3)
    assert (inputs.lanes, inputs.num_selectors) == (4, 3)
    assert of_lanes(inputs, [1]).lanes == 1
    assert replace(inputs, selectors=inputs.selectors[:, :0]).num_selectors == 0
