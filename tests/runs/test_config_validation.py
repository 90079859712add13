"""The check of a composed configuration: single values, unknown keys, and every rule about combinations."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cl_prompts.config_folder import config_folder
from cl_prompts.runs.compose import open_composer, with_values
from cl_prompts.runs.fields import field_texts
from cl_prompts.runs.keys import owners, unknown_key_text
from cl_prompts.runs.rules import RULES
from cl_prompts.runs.schema import GROUPS, ProtocolSettings, RunConfig, group_schema, known_names
from cl_prompts.runs.validation import check_config
from cl_prompts.strategies.declaration import Needs, StrategySettings, strategy_names
from scenarios.datasets import read_dataset_settings


def _composed() -> dict:
    with open_composer() as composer:
        return with_values(composer.defaults.config, {})


DEFAULTS = _composed()
SINGLE_PROMPT = {"strategy": {"name": "single_prompt"}}


def changed(changes: dict) -> dict:
    raw = copy.deepcopy(DEFAULTS)
    for key, value in changes.items():
        group, _, leaf = key.partition(".")
        if leaf:
            raw[group][leaf] = value
        else:
            raw[group] = value
    return raw


def problems(changes: dict) -> dict[str, str]:
    _, found = check_config(changed(changes))
    return {problem.key: problem.text for problem in found}


def test_the_defaults_are_a_valid_configuration():
    config, found = check_config(DEFAULTS)
    assert found == []
    assert isinstance(config, RunConfig)
    assert (config.strategy_name, config.dataset_name, config.plan_seed) == ("mvp", "digits", 1)
    assert config.strategy_arguments()["general_layers"] == (0, 1)
    assert "name" not in config.strategy_arguments()
    assert config.dataset_arguments() == {"train_per_class": None, "subset_seed": 0, "test_pct": 20}


def test_a_configuration_written_as_yaml_is_the_same_when_read_back():
    config, _ = check_config(changed({"seed": 7, "scenario.seed": 3, "experiment": "mvp_mask"}))
    again, found = check_config(yaml.safe_load(config.to_yaml()))
    assert found == []
    assert again == config
    assert again.plan_seed == 3


def test_all_errors_of_all_groups_come_at_once():
    found = problems(
        {
            "strateg": "mvp",
            "protocol.lrr": 1,
            "strategy.pool_sise": 3,
            "scenario.mode": "oficial",
            "protocol.lr": -5,
            "protocol.stream_batch": "ten",
            "seed": 1.5,
            "protocol.momentum": 0.9,
            "protocol.memory_size": 10,
        }
    )
    assert found == {
        "strateg": "strateg=mvp: unknown key; did you mean strategy?",
        "protocol.lrr": "protocol.lrr=1: unknown key; did you mean protocol.lr?",
        "strategy.pool_sise": "strategy.pool_sise=3: unknown key; did you mean strategy.pool_size?",
        "scenario.mode": (
            "scenario.mode=oficial: did you mean official? must be exact, official or misa (default exact)"
        ),
        "protocol.lr": "protocol.lr=-5: must be a number greater than 0 (default 0.005)",
        "protocol.stream_batch": "protocol.stream_batch=ten: must be a whole number of at least 1 (default 10)",
        "seed": "seed=1.5: must be a whole number of at least 0 and below 2^63 (default 1)",
        "protocol.momentum": (
            "protocol.momentum=0.9: protocol.optimizer=adam has no such setting; use sgd, or set it to 0"
        ),
        "protocol.replay_batch": (
            "protocol.replay_batch=0: protocol.memory_size=10 would never be read; set protocol.replay_batch above 0"
        ),
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("debug", "yes"),
        ("debug", 1),
        ("seed", True),
        ("seed", -1),
        ("device", "gpu"),
        ("device", "cuda:"),
        ("name", "a/b"),
        ("name", ".."),
        ("name", ""),
        ("output", ""),
        ("progress", "fancy"),
        ("num_workers", -1),
        ("mode", "look"),
        ("protocol.updates_per_batch", 0),
        ("protocol.lr", math.inf),
        ("protocol.lr", math.nan),
        ("protocol.lr", "0.1"),
        ("protocol.lr", {"x": 3}),
        ("protocol.momentum", 1.0),
        ("protocol.eval_every", -1),
        ("protocol.eval_batch", 0),
        ("protocol.precision", "fp16"),
        ("scenario.n_sessions", 0),
        ("scenario.disjoint_class_pct", 101),
        ("scenario.blurry_sample_pct", 10.5),
        ("scenario.seed", -1),
        ("scenario.task_label", -1),
        ("strategy.pool_size", 0),
        ("strategy.general_layers", 3),
        ("strategy.general_layers", [0, -1]),
        ("strategy.alpha", 1.1),
        ("strategy.contrast", "yes"),
        ("backbone.mean", [0.5, 0.5]),
        ("backbone.img_size", 0),
        ("dataset.train_per_class", 0),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_what_is_allowed(key, value):
    found = problems({key: value})
    assert set(found) == {key}
    assert found[key].startswith(f"{key}=")
    assert "must be" in found[key]
    assert "\n" not in found[key]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 2024),
        ("name", "first-run_2"),
        ("device", "cuda:1"),
        ("protocol.lr", 1),
        ("protocol.updates_per_batch", 0.5),
        ("protocol.eval_every", 0),
        ("strategy.general_layers", []),
        ("scenario.n_sessions", 1),
    ],
)
def test_values_at_the_edge_of_what_is_allowed_pass(key, value):
    assert problems({key: value}) == {}


def test_a_missing_group_or_method_is_said_and_the_rest_checked():
    assert "choose a file of configs/strategy" in problems({"strategy": None})["strategy"]
    found = problems({"strategy": {"name": "mpv", "pool_sise": 3}, "protocol.lr": 0})
    assert found["strategy.name"].startswith(
        f"strategy.name=mpv: did you mean mvp? choose one of {', '.join(strategy_names()[:3])}"
    )
    assert set(found) == {"strategy.name", "protocol.lr"}


def test_a_key_of_another_choice_names_that_choice():
    found = problems({"dataset.root": "/images"})
    assert "dataset=digits has no such key" in found["dataset.root"]
    assert "dataset=image_folder" in found["dataset.root"]


def test_weights_that_no_hub_has_say_where_they_are_got():
    backbone = yaml.safe_load((config_folder() / "backbone" / "ibot_base.yaml").read_text(encoding="utf-8"))
    found = problems({"backbone": backbone, "strategy.expert_layers": [2]})
    assert set(found) == {"backbone.checkpoint"}
    assert "backbone.checkpoint=hub: vit_base_patch16_224.ibot_in1k is not on the hub" in found["backbone.checkpoint"]
    assert "https://github.com/bytedance/ibot" in found["backbone.checkpoint"]


def test_weights_that_are_not_cached_are_missed_before_the_run_where_connections_are_forbidden(monkeypatch, tmp_path):
    backbone = yaml.safe_load((config_folder() / "backbone" / "vit_base.yaml").read_text(encoding="utf-8"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert problems({"backbone": backbone}) == {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = problems({"backbone": backbone})
    assert set(found) == {"backbone.checkpoint"}
    page = "https://huggingface.co/timm/vit_base_patch16_224.orig_in21k"
    assert f"get it from {page} and set backbone.checkpoint=/path/to/" in found["backbone.checkpoint"]
    assert problems({"backbone": backbone | {"checkpoint": "untrained"}}) == {}
    folder = tmp_path / "models--timm--vit_base_patch16_224.orig_in21k" / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert problems({"backbone": backbone}) == {}


def test_constants_of_a_data_set_that_has_none_are_refused_before_it_is_read(tmp_path):
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "1.png").touch()
    own = {"dataset": {"name": "image_folder", "root": str(tmp_path)}, "scenario.n_sessions": 2}
    assert problems(own) == {}
    assert problems(own | {"backbone.normalisation": "dataset"}) == {
        "backbone.normalisation": "backbone.normalisation=dataset: dataset=image_folder has no constants of its own; "
        "use checkpoint, imagenet or none"
    }
    assert problems({"backbone.normalisation": "dataset"}) == {}


# A key of these lengths with one letter missing can only have meant itself.
LONG_KEYS = [
    (group, name, key)
    for group in GROUPS
    for name in (known_names(group) or (DEFAULTS[group]["name"],))
    for key in field_texts(group_schema(group, name))
    if len(key) >= 5 and key != "name"
]


@given(st.sampled_from(LONG_KEYS), st.data())
def test_a_key_with_one_letter_missing_is_recognised(case, data):
    group, name, key = case
    at = data.draw(st.integers(1, len(key) - 2))
    typed = key[:at] + key[at + 1 :]
    names = {other: DEFAULTS[other]["name"] for other in GROUPS} | {group: name}
    if typed in owners(group):
        return
    assert unknown_key_text(f"{group}.{typed}", names) == f"unknown key; did you mean {group}.{key}?"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("strateg", "strategy"),
        ("experimnt", "experiment"),
        ("seeed", "seed"),
        ("lr", "protocol.lr"),
        ("pool_size", "strategy.pool_size"),
        ("n_session", "scenario.n_sessions"),
        ("strateg.pool_size", "strategy.pool_size"),
        ("protocol.blurry_sample_pct", "scenario.blurry_sample_pct"),
        ("train_mask", "protocol.train_mask"),
        ("batch_size", "protocol.stream_batch"),
        ("protocol.learning_rate", "protocol.lr"),
        ("n_tasks", "scenario.n_sessions"),
        ("model", "backbone"),
    ],
)
def test_what_an_unknown_key_meant(key, meant):
    names = {group: DEFAULTS[group]["name"] for group in GROUPS}
    assert unknown_key_text(key, names) == f"unknown key; did you mean {meant}?"


def test_words_that_need_more_than_another_key():
    names = {group: DEFAULTS[group]["name"] for group in GROUPS}
    assert "protocol.epochs" in unknown_key_text("epochs", names)
    assert "device=cuda" in unknown_key_text("gpu", names)


def test_a_key_like_nothing_lists_what_there_is():
    names = {group: DEFAULTS[group]["name"] for group in GROUPS}
    assert unknown_key_text("strategy.zzz", names).startswith("unknown key; strategy=mvp has variant, pool_size")
    assert unknown_key_text("zzzzzzzz", names) == "unknown key; see --help for all keys"


MLCIL = {"name": "mlcil", "generator": "mlcil"}
SEVERAL = {"dataset": {"name": "digit_mosaics"}, "scenario": MLCIL, "strategy": {"name": "linear_probe"}}
LANES = {**SEVERAL, "strategy": {"name": "multi_lane"}}
# rule -> (changes that break it, the key it complains about, a word of the advice, changes that keep it)
CASES = {
    "published_samplers_return_home": (
        {"scenario.mode": "official", "scenario.allow_home": True},
        "scenario.allow_home",
        "mode=exact",
        {"scenario.allow_home": True},
    ),
    "boundary_masks_need_sessions": (
        {"protocol.train_mask": "session", "scenario.view": "merged"},
        "protocol.train_mask",
        "exposed or batch",
        {"protocol.train_mask": "session"},
    ),
    "task_mask_needs_disjoint_classes": (
        {"protocol.train_mask": "task"},
        "protocol.train_mask",
        "scenario=disjoint",
        {"protocol.train_mask": "task", "scenario.disjoint_class_pct": 100},
    ),
    "memory_and_replay_go_together": (
        {"protocol.replay_batch": 4},
        "protocol.replay_batch",
        "protocol.memory_size above 0",
        {"protocol.replay_batch": 4, "protocol.memory_size": 40},
    ),
    "memory_suits_method": (
        {"strategy": {"name": "ncm"}, "protocol.memory_size": 40, "protocol.replay_batch": 4},
        "protocol.memory_size",
        "strategy=ncm uses no memory",
        {"strategy": {"name": "linear_probe"}, "protocol.memory_size": 40, "protocol.replay_batch": 4},
    ),
    "memory_needs_the_planned_order": (
        {"protocol.memory_size": 40, "protocol.replay_batch": 4, "protocol.shuffle": True},
        "protocol.shuffle",
        "set it to false",
        {"protocol.memory_size": 40, "protocol.replay_batch": 4},
    ),
    "momentum_is_of_sgd": (
        {"protocol.momentum": 0.9},
        "protocol.momentum",
        "use sgd",
        {"protocol.momentum": 0.9, "protocol.optimizer": "sgd"},
    ),
    "blocks_exist": (
        {"strategy.expert_layers": [2, 6]},
        "strategy.expert_layers",
        "counted from 0 to 5",
        {"strategy.expert_layers": [2, 5], "strategy.query_blocks": 6},
    ),
    "dataset_is_there": (
        {"dataset": {"name": "image_folder", "root": "/nowhere/at/all"}},
        "dataset",
        "/nowhere/at/all",
        {"dataset": {"name": "cifar10"}},
    ),
    "plan_is_there": (
        {"scenario.plan": "/nowhere/at/all"},
        "scenario.plan",
        "plan.npz and plan.json",
        {},
    ),
    "labels_suit_scenario": (
        {"dataset": {"name": "digit_mosaics"}, "strategy": {"name": "linear_probe"}},
        "dataset",
        "scenario=mlcil or ml_si_blurry",
        {"dataset": {"name": "digit_mosaics"}, "scenario": MLCIL, "strategy": {"name": "linear_probe"}},
    ),
    "tasks_divide_the_classes": (
        {**SEVERAL, "scenario": {**MLCIL, "increment": 3}},
        "scenario.increment",
        "1, 2, 5 or 10",
        SEVERAL,
    ),
    "visible_labels_are_the_mask": (
        {**SEVERAL, "protocol.train_mask": "batch"},
        "protocol.train_mask",
        "set it to exposed",
        SEVERAL,
    ),
    "visible_labels_show_sessions": (
        {**SEVERAL, "scenario": {**MLCIL, "view": "merged"}},
        "scenario.view",
        "use sessions",
        SEVERAL,
    ),
    "order_can_change": (
        {"scenario.view": "merged", "protocol.epochs": 2},
        "protocol.epochs",
        "passes once",
        {"protocol.epochs": 2, "protocol.shuffle": True},
    ),
    "sessions_can_be_deferred": (
        {"protocol.session_evaluation": "deferred"},
        "protocol.session_evaluation",
        "protocol.eval_every=0",
        {**LANES, "protocol.session_evaluation": "deferred", "protocol.eval_every": 0},
    ),
    "output_can_be_written": ({"output": __file__}, "output", "is a file", {"output": "not/made/yet"}),
}
# The same for combinations that the settings of a method refuse themselves.
OWN_CASES = {
    "selection_fits_pool": (
        {"strategy.selection_size": 11, "strategy.contrast": "none"},
        "strategy.selection_size",
        "strategy.pool_size=10",
        {"strategy.selection_size": 10, "strategy.contrast": "none"},
    ),
    "contrast_is_for_one_prompt": (
        {"strategy.selection_size": 2},
        "strategy.selection_size",
        "strategy.contrast=none",
        {"strategy.selection_size": 2, "strategy.contrast": "none"},
    ),
    "contrast_needs_other_prompts": (
        {"strategy.pool_size": 1, "strategy.variant": "paper"},
        "strategy.pool_size",
        "at least 2",
        {"strategy.pool_size": 1},
    ),
    "prefix_is_for_one_prompt": (
        {"strategy.insertion": "prefix_tuning", "strategy.selection_size": 2, "strategy.contrast": "none"},
        "strategy.insertion",
        "strategy.selection_size=1",
        {"strategy.insertion": "prefix_tuning"},
    ),
    "a_block_is_named_once": (
        {"strategy.expert_layers": [2, 2]},
        "strategy.expert_layers",
        "strategy.expert_layers=[2,2]: names a block twice; name each once",
        {"strategy.expert_layers": [2, 1]},
    ),
}
NOT_BY_VALUES = {
    "required_boundaries_are_visible",
    "required_task_ids_exist",
    "labels_suit_method",
    "weights_are_there",
    "constants_are_known",
    "starting_prompts_are_there",
}


def test_every_rule_has_a_case():
    assert {rule.check.__name__ for rule in RULES} == set(CASES) | NOT_BY_VALUES


@pytest.mark.parametrize("name", [*CASES, *OWN_CASES])
def test_a_rule_refuses_what_it_is_for_and_nothing_else(name):
    breaking, key, advice, keeping = (CASES | OWN_CASES)[name]
    found = problems(breaking)
    assert set(found) == {key}
    assert advice in found[key]
    assert "\n" not in found[key]
    assert problems(keeping) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol.train_mask": "task", "scenario.blurry_sample_pct": 0},
        {"protocol.train_mask": "task", "scenario.n_sessions": 1},
        {"scenario.mode": "official", "scenario.allow_empty_sessions": True},
        SINGLE_PROMPT | {"protocol.train_mask": "batch"},
        {"strategy": {"name": "ncm"}, "protocol.updates_per_batch": 3.0},
    ],
)
def test_possible_combinations_pass(changes):
    assert problems(changes) == {}


@pytest.mark.parametrize(
    ("strategy", "key"),
    [
        ({"name": "single_prompt", "prompt_layers": 7}, "strategy.prompt_layers"),
        (DEFAULTS["strategy"] | {"query_blocks": 7}, "strategy.query_blocks"),
        (DEFAULTS["strategy"] | {"general_layers": [0, 6]}, "strategy.general_layers"),
    ],
)
def test_blocks_beyond_the_backbone_are_refused_if_its_depth_is_known(strategy, key):
    assert set(problems({"strategy": strategy})) == {key}
    unknown = {
        "backbone.depth": None,
        "backbone.timm_name": "vit_base_patch16_224.mae",
        "backbone.checkpoint": "untrained",
    }
    assert problems({"strategy": strategy} | unknown) == {}


@pytest.mark.parametrize("name", ["deit_tiny", "vit_base", "dinov2_reg_base", "clip_base", "mocov3_base"])
def test_the_usual_backbones_have_twelve_blocks(name):
    backbone = yaml.safe_load((config_folder() / "backbone" / f"{name}.yaml").read_text(encoding="utf-8"))
    changes = {"backbone": backbone | {"checkpoint": "untrained"}, "strategy.expert_layers": [2, 11]}
    assert problems(changes) == {}
    found = problems(changes | {"strategy.expert_layers": [2, 12]})
    assert found == {
        "strategy.expert_layers": f"strategy.expert_layers=[2,12]: backbone={name} has 12 blocks, counted from 0 to 11"
    }


def test_every_combination_a_method_refuses_is_a_line_of_its_own():
    changes = {"strategy.selection_size": 2, "strategy.insertion": "prefix_tuning", "strategy.general_layers": [1, 1]}
    found = problems(changes | {"protocol.replay_batch": 4})
    assert set(found) == {*changes, "protocol.replay_batch"}
    assert all(text.startswith(f"{key}=") and "\n" not in text for key, text in found.items())


def test_a_combination_with_a_wrong_value_is_not_judged():
    assert set(problems({"strategy.pool_size": -20, "strategy.selection_size": 15})) == {"strategy.pool_size"}


def test_a_combination_that_names_no_key_is_said_of_the_group():
    found = problems({"backbone.img_size": 33})
    assert found["backbone"].startswith("backbone=vit_nano: img_size=33 is not a multiple of the patch size")
    assert set(found) == {"backbone"}


class Needy(StrategySettings):
    """A method that asks for what few streams have."""

    name: str = "needy"


class NeedsBoundaries(Needy):
    """Wants boundaries."""

    needs = Needs(boundaries="required")


class NeedsTasks(Needy):
    """Wants task identities."""

    needs = Needs(task_ids=True)


class NeedsReplay(Needy):
    """Wants a memory."""

    needs = Needs(replay="required")


@pytest.mark.parametrize(
    ("method", "broken", "fine", "advice"),
    [
        (NeedsBoundaries, {"scenario.view": "merged"}, {}, "scenario.view=sessions"),
        (NeedsTasks, {}, {"scenario.disjoint_class_pct": 100}, "scenario=disjoint"),
        (NeedsTasks, {"scenario.disjoint_class_pct": 100, "scenario.view": "merged"}, None, "scenario=disjoint"),
        (NeedsReplay, {}, {"protocol.memory_size": 5, "protocol.replay_batch": 5}, "protocol.memory_size"),
    ],
)
def test_what_a_method_declares_is_held_against_stream_and_protocol(method, broken, fine, advice):
    def texts(changes):
        config, _ = check_config(changed(changes))
        needy = config.model_copy(update={"strategy": method()})
        rules = [rule for rule in RULES if not any(key.startswith("strategy.") for key in rule.reads)]
        return [problem.text for rule in rules for problem in rule.check(needy)]

    assert len(texts(broken)) == 1
    assert advice in texts(broken)[0]
    if fine is not None:
        assert texts(fine) == []


def test_several_labels_an_image_need_a_method_for_them():
    config, _ = check_config(DEFAULTS)

    class Several(read_dataset_settings("digits")):
        multi_label: ClassVar[bool] = True
        name: str = "several"

    rule = next(rule for rule in RULES if rule.check.__name__ == "labels_suit_method")
    assert not list(rule.check(config))
    broken = config.model_copy(update={"dataset": Several()})
    (problem,) = rule.check(broken)
    assert "strategy=mvp: learns one label" in problem.text


def test_every_key_can_be_explained():
    for group in GROUPS:
        for name in known_names(group) or (DEFAULTS[group]["name"],):
            for text in field_texts(group_schema(group, name)).values():
                assert text.description, (group, name, text.key)
                assert text.allowed
                assert "a value" not in text.allowed, (group, name, text.key)


def test_ranges_in_words():
    allowed = {key: text.allowed for key, text in field_texts(ProtocolSettings).items()}
    assert allowed["momentum"] == "a number of at least 0 and less than 1"
    assert allowed["lr"] == "a number greater than 0"
    assert allowed["reservoir"] == "exact or released"
    assert field_texts(group_schema("strategy", "mvp"))["query_blocks"].allowed == (
        "a whole number of at least 1, or null"
    )
