"""Recipes of prompt methods: weights, images and steps are those of the code that produced the published row."""

from __future__ import annotations

import pytest

from cl_prompts.backbones.records import find_record
from cl_prompts.runs.compose import open_composer
from cl_prompts.runs.request import read_request
from scenarios.presets import PRESETS

OFFLINE = {
    # recipe -> paper, weights, (batch, epochs, rate for 256 images or None, rate), schedule, clipping, evaluation mask
    "l2p_cifar100": ("L2P", "orig_in21k", (16, 5, 0.03), "constant", 1.0, "none"),
    "dualprompt_cifar100": ("DualPrompt", "orig_in21k", (24, 5, 0.03), "constant", 1.0, "none"),
    "dualprompt_imagenet_r": ("DualPrompt", "orig_in21k", (24, 50, 0.005), "constant", 1.0, "none"),
    "coda_prompt_cifar100": ("CODA-Prompt", "augreg_in21k_ft_in1k", (128, 20, 0.002), "cosine", 0.0, "exposed"),
    "coda_prompt_imagenet_r": ("CODA-Prompt", "augreg_in21k_ft_in1k", (128, 50, 0.002), "cosine", 0.0, "exposed"),
}
SI_BLURRY = ("l2p_siblurry_cifar100", "dualprompt_siblurry_cifar100")


@pytest.fixture(scope="module")
def composer():
    with open_composer() as opened:
        yield opened


def config_of(composer, name: str, folder):
    request = read_request(composer, [f"experiment={name}", f"dataset.root={folder}"], multirun=False)
    (config,) = request.configs
    return config


@pytest.mark.parametrize("name", OFFLINE)
def test_rows_of_ten_tasks(name, composer, tmp_path):
    paper, weights, (batch, epochs, rate_of_256), schedule, clipping, eval_mask = OFFLINE[name]
    config = config_of(composer, name, tmp_path)
    protocol, backbone = config.protocol, config.backbone
    assert backbone.timm_name == f"vit_base_patch16_224.{weights}"
    assert any(paper in user for user in find_record(backbone.timm_name).used_by)
    assert (protocol.stream_batch, protocol.epochs) == (batch, epochs)
    assert protocol.lr == pytest.approx(rate_of_256 * batch / 256)
    assert (protocol.optimizer, protocol.lr_schedule, protocol.clip_norm) == ("adam", schedule, clipping)
    assert (protocol.optimizer_scope, protocol.updates_per_batch, protocol.shuffle) == ("session", 1.0, True)
    assert (protocol.train_mask, protocol.eval_mask) == ("task", eval_mask)
    preset = PRESETS[protocol.augmentation]
    assert protocol.augment_per == preset.augment_per
    assert protocol.eval_crop == preset.eval_crop
    assert backbone.normalisation == preset.normalisation
    assert backbone.interpolation == preset.interpolation
    assert (config.scenario.n_sessions, config.scenario.disjoint_class_pct) == (10, 100)
    assert config.strategy.variant == "released"
    assert config.strategy.declared_needs().task_ids == (paper != "L2P")


@pytest.mark.parametrize("name", SI_BLURRY)
def test_rows_of_si_blurry(name, composer, tmp_path):
    config = config_of(composer, name, tmp_path)
    assert (config.protocol.name, config.scenario.mode, config.scenario.n_sessions) == ("si_blurry", "official", 5)
    assert config.strategy.variant == "siblurry"
    assert config.strategy.declared_needs().boundaries == "none"
    assert config.backbone.normalisation == "dataset"


@pytest.mark.parametrize(
    "word", ["strategy=dualprompt strategy.variant=paper", "strategy=coda_prompt strategy.task_count=5"]
)
def test_forms_with_tasks_are_refused_on_blurry_streams_in_one_line(word, composer):
    request = read_request(composer, ["scenario=si_blurry", *word.split()], multirun=False)
    assert not request.configs
    (problem,) = request.problems
    assert "needs the task of each batch" in problem
    assert "\n" not in problem
