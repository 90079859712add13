"""MISA on the command line: the recipe of its published row, and prompts of a file."""

from __future__ import annotations

import pytest

from cl_prompts.runs.compose import open_composer
from cl_prompts.runs.request import read_request


@pytest.fixture(scope="module")
def composer():
    with open_composer() as opened:
        yield opened


def test_the_recipe_is_that_of_the_published_row(composer, tmp_path):
    words = ["experiment=misa_cifar100", f"dataset.root={tmp_path}", "backbone.checkpoint=untrained"]
    (config,) = read_request(composer, words, multirun=False).configs
    protocol, strategy = config.protocol, config.strategy
    assert (protocol.stream_batch, protocol.updates_per_batch, protocol.lr, protocol.train_mask) == (
        32,
        3,
        5e-3,
        "batch",
    )
    assert (strategy.general_length, strategy.expert_length, strategy.pool_size) == (10, 20, 10)
    assert (strategy.variant, strategy.declared_needs().boundaries) == ("released", "required")
    assert any(sentence.startswith("warm_start=none") for sentence in strategy.deviations())


def test_a_missing_file_of_prompts_is_one_line_before_anything_loads(composer, tmp_path):
    path = tmp_path / "prompts.safetensors"
    words = ["strategy=misa", f"strategy.warm_start={path}"]
    request = read_request(composer, words, multirun=False)
    (problem,) = request.problems
    assert problem.startswith(f"strategy.warm_start={path}: there is no such file")
    assert "misa_warm_up" in problem
    assert "\n" not in problem
    path.write_bytes(b"")
    assert read_request(composer, words, multirun=False).problems == ()
