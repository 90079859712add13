"""The contract of scenarios and backbones: kept by all that exist, and each broken one fails the right check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_prompts.backbones import FrozenViT, load_backbone
from cl_prompts.config_folder import config_folder
from cl_prompts.contract import check_backbone, check_scenario
from cl_prompts.contract.__main__ import main as contract
from cl_prompts.contract.toys import tiny_vit
from cl_prompts.runs.build import GENERATORS

SCENARIOS = sorted(path.stem for path in Path(config_folder() / "scenario").glob("*.yaml"))
BACKBONE_CHECKS = {check.id: check for check in check_backbone(tiny_vit(depth=3))}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_keeps_its_promises(name):
    checks = check_scenario(name)
    assert len({check.id for check in checks}) == len(checks) >= 12
    for check in checks:
        check.run()


@pytest.mark.parametrize("check_id", BACKBONE_CHECKS)
def test_a_backbone_keeps_its_promise(check_id):
    BACKBONE_CHECKS[check_id].run()


def test_the_bundled_backbone_keeps_its_promises():
    for check in check_backbone(load_backbone("vit_nano")):
        check.run()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_base_patch16_clip_224"]
)
def test_models_of_timm_keep_their_promises(name):
    for check in check_backbone(name):
        check.run()


# --- what is broken is found ----------------------------------------------------------------------------------------


def line_of(checks, check_id: str) -> str:
    """What the check with this id says; nothing if its promise is kept."""
    (check,) = (check for check in checks if check.id == check_id)
    try:
        check.run()
    except AssertionError as error:
        return str(error)
    return ""


def drawn_globally(config, train):
    order = np.random.permutation(len(train.targets))  # noqa: NPY002
    plan = HONEST(config, train)
    return replace(plan, sessions=tuple(order[np.isin(order, session)] for session in plan.sessions))


def without_a_sample(config, train):
    plan = HONEST(config, train)
    return replace(plan, sessions=(plan.sessions[0][1:], *plan.sessions[1:]))


def always_the_same(config, train):
    config.scenario = config.scenario.model_copy(update={"seed": 3})
    config.plan_seed = 3
    return HONEST(config, train)


HONEST = GENERATORS["si_blurry"]
BROKEN_STREAMS = {
    drawn_globally: ("global_generators_are_left_alone", "the_seed_decides_the_stream"),
    without_a_sample: ("samples_come_once",),
    always_the_same: ("the_seed_decides_the_stream",),
}


@pytest.mark.parametrize("generator", BROKEN_STREAMS)
def test_a_broken_stream_fails_the_check_about_its_fault(generator, monkeypatch):
    monkeypatch.setitem(GENERATORS, "si_blurry", generator)
    for check_id in BROKEN_STREAMS[generator]:
        line = line_of(check_scenario("si_blurry"), check_id)
        assert line.startswith(f"si_blurry, {check_id}: ")
        assert "\n" not in line


class LeaksTheBatch(FrozenViT):
    def forward(self, images=None, insertions=None, **keywords):
        features = super().forward(images, insertions, **keywords)
        return features - 0.1 * features.mean(0) if insertions else features


class ShiftsItsFeatures(FrozenViT):
    def query(self, images=None, **keywords):
        return super().query(images, **keywords) + 1e-3


class TrimsWrongly(FrozenViT):
    def forward(self, images=None, insertions=None, *, trim=True, **keywords):
        return super().forward(images, insertions, trim=trim, **keywords) * (1.01 if insertions and trim else 1)


class IgnoresPrompts(FrozenViT):
    def forward(self, images=None, insertions=None, **keywords):
        return super().forward(images, None, **keywords)


class Remembers(FrozenViT):
    calls = 0

    def query(self, images=None, **keywords):
        self.calls += 1
        return super().query(images, **keywords) * (1 + 1e-3 * self.calls)


class FollowsItsParent(FrozenViT):
    def train(self, mode=True):
        return torch.nn.Module.train(self, mode)


class AcceptsAnyBlock(FrozenViT):
    def forward(self, images=None, insertions=None, **keywords):
        known = {block: given for block, given in (insertions or {}).items() if block < self.depth}
        return super().forward(images, known, **keywords)


BROKEN_BACKBONES = {
    LeaksTheBatch: "images_do_not_see_each_other",
    ShiftsItsFeatures: "features_are_those_of_timm",
    TrimsWrongly: "a_trimmed_pass_is_the_whole_one",
    IgnoresPrompts: "prompts_of_each_form_act",
    Remembers: "nothing_is_remembered",
    FollowsItsParent: "it_stays_frozen",
    AcceptsAnyBlock: "wrong_prompts_are_refused",
}


@pytest.mark.parametrize("kind", BROKEN_BACKBONES, ids=lambda kind: kind.__name__)
def test_a_broken_backbone_fails_the_check_about_its_fault(kind):
    check_id = BROKEN_BACKBONES[kind]
    line = line_of(check_backbone(kind(tiny_vit(depth=3).model)), check_id)
    assert line.startswith(f"backbone, {check_id}: ")
    assert "\n" not in line


def test_a_model_that_is_no_vit_breaks_its_first_promise():
    line = line_of(check_backbone("resnet10t"), "features_are_those_of_timm")
    assert "BackboneError: ResNet is not supported as a backbone" in line


def test_the_command_prints_every_promise(capsys):
    assert contract(["scenario", "disjoint"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "all promises are kept"
    assert out.count("kept    ") == len(check_scenario("disjoint"))
    assert contract(["scenario", "no_such"]) == 2
    assert capsys.readouterr().err == "error: scenario no_such: 'no_such'\n"
