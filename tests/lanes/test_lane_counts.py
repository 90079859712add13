"""The benchmark's counts against the published table of counts and against a counter on the running forms."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from lane_cases import make_backbone, make_images, make_inputs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cl_prompts.lanes import fast_class_tokens, selector_path, token_class_tokens

FILE = Path(__file__).parents[2] / "benchmarks" / "lane_counts.py"


def load():
    specification = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(specification)
    sys.modules[FILE.stem] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


counts = load()
SHAPES = {"base": {"width": 768, "depth": 12, "heads": 12}, "tiny": {"width": 192, "depth": 12, "heads": 3}}
# 10^9 multiply-accumulates: model, selectors = prompts, lanes, released code, token, fast
TABLE = [
    ("base", 20, 1, 19.431, 16.550, 16.466),
    ("base", 20, 5, 26.901, 18.315, 16.963),
    ("base", 20, 10, 36.240, 20.521, 17.584),
    ("base", 20, 20, 54.916, 24.933, 18.827),
    ("base", 10, 1, 18.537, 16.372, 16.447),
    ("base", 10, 5, 22.432, 17.425, 16.869),
    ("base", 10, 10, 27.300, 18.740, 17.396),
    ("base", 10, 20, 37.038, 21.371, 18.451),
    ("tiny", 20, 1, 1.386, 1.193, 1.181),
    ("tiny", 20, 5, 1.916, 1.358, 1.243),
    ("tiny", 20, 10, 2.578, 1.564, 1.321),
    ("tiny", 20, 20, 3.903, 1.977, 1.475),
    ("tiny", 10, 1, 1.322, 1.175, 1.177),
    ("tiny", 10, 5, 1.595, 1.268, 1.220),
    ("tiny", 10, 10, 1.936, 1.384, 1.274),
    ("tiny", 10, 20, 2.619, 1.618, 1.381),
]


@pytest.mark.parametrize(("model", "size", "lanes", "released", "token", "fast"), TABLE)
def test_counts_of_the_table(model, size, lanes, released, token, fast):
    shape = counts.Shape(**SHAPES[model], selectors=size, prompts=size)
    for form, expected in ((counts.official, released), (counts.token, token), (counts.fast, fast)):
        assert form(shape, lanes) / 1e9 == pytest.approx(expected, abs=6e-4)


def test_counts_that_are_known_to_the_last_digit():
    tiny = counts.Shape(**SHAPES["tiny"])
    assert counts.official(tiny, 3) == 1_650_949_632
    assert counts.bare(tiny) / 1e9 == pytest.approx(1.2535, abs=6e-5)
    assert counts.bare(counts.Shape(**SHAPES["base"])) / 1e9 == pytest.approx(17.563, abs=6e-4)


@pytest.fixture(scope="module")
def measured():
    """A small backbone, its shape, images and lanes, and a counter of multiply-accumulates."""
    backbone = make_backbone(heads=2, head_width=6, depth=3)
    shape = counts.Shape(
        width=12, depth=3, heads=2, tokens=17, patch=4, selectors=4, prompts=3, prompt_layers=2, classes=0
    )
    inputs = make_inputs(backbone, lanes=3, num_selectors=4, num_prompts=3, prompt_layers=2)
    for tensor in (inputs.selectors, *inputs.prompts.values()):
        tensor.requires_grad_(False)  # the counter's hooks refuse what asks for a gradient under no_grad

    def count(run, *, records=False):
        # The fused kernel of the processor is unknown to the counter.
        with (
            torch.set_grad_enabled(records),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            run()
        return counter.get_total_flops() // 2

    return backbone, shape, make_images(2), inputs, count


def test_a_counter_on_the_bare_pass(measured):
    backbone, shape, images, _, count = measured
    assert count(lambda: backbone.model.forward_features(images)) == 2 * counts.bare(shape)


def test_a_counter_on_the_token_form(measured):
    backbone, shape, images, inputs, count = measured
    found = count(lambda: token_class_tokens(backbone.blocks, backbone.normed_stream(images), inputs))
    assert found == 2 * counts.token_as_built(shape, 3)


@pytest.mark.parametrize("records", [False, True], ids=["evaluation", "training"])
def test_a_counter_on_the_fast_form(measured, records):
    backbone, shape, images, inputs, count = measured
    with torch.no_grad():
        path = selector_path(backbone.blocks, inputs)
    found = count(
        lambda: fast_class_tokens(backbone.blocks, backbone.normed_stream(images), inputs, path), records=records
    )
    form, projections = (counts.fast_training, 4) if records else (counts.fast_evaluation, 3)
    width, lanes, batch = shape.width, inputs.lanes, len(images)
    not_products_of_matrices = batch * lanes * shape.depth * 2 * width  # a class token's own key and value
    # Of the first block: query, key, value and, in training, folding; the prompts' scores.
    once_a_batch = projections * width**2 + lanes * shape.prompts * width
    counted_for_each_image = batch * lanes * shape.prompts * width
    expected = batch * form(shape, lanes) - not_products_of_matrices
    assert found == expected - counted_for_each_image + once_a_batch


@pytest.mark.parametrize("model", SHAPES)
def test_what_a_lane_saves_in_evaluation(model):
    shape = counts.Shape(**SHAPES[model])
    saved = 2 * shape.width**2 + 2 * (shape.heads - 1) * shape.tokens * shape.width

    def of_a_lane(form):
        return form(shape, 6) - form(shape, 5)

    # In the first block, where all lanes ask one question, half of it; in the last nothing.
    first = shape.width**2 + (shape.heads - 1) * shape.tokens * shape.width
    expected = (shape.depth - 2) * saved + first
    assert of_a_lane(counts.fast_training) - of_a_lane(counts.fast_evaluation) == expected
