"""Config files against schemas: what a file says is what the code does by default, and every file composes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import cl_prompts
from cl_prompts.backbones.records import find_record
from cl_prompts.runs.compose import config_folder, open_composer
from cl_prompts.runs.help import summary
from cl_prompts.runs.request import read_request
from cl_prompts.runs.schema import GROUPS, RunSettings, group_schema, schema_name

CONFIGS = config_folder()
FILES = sorted(CONFIGS.glob("*/*.yaml"))
GROUP_FILES = [path for path in FILES if path.parent.name in GROUPS]
OFFLINE = {
    "stream_batch",
    "epochs",
    "shuffle",
    "updates_per_batch",
    "optimizer_scope",
    "lr",
    "lr_schedule",
    "eval_every",
}
MUST_DIFFER_FROM_DEFAULT = {
    # group/name -> keys whose values make the choice what it is; every other value is the schema's default
    "scenario/i_blurry": {"varying"},
    "scenario/disjoint": {"varying", "disjoint_class_pct", "blurry_sample_pct"},
    "scenario/iid": {"varying", "disjoint_class_pct", "blurry_sample_pct", "allow_home"},
    "scenario/mlcil": {"generator"},
    "scenario/ml_si_blurry": {"generator"},
    **{
        f"scenario/{name}": {"generator", "increment"}  # B0: as many classes as every other task has
        for name in ("voc_b0_c4", "coco_b0_c10")
    },
    "scenario/coco_b40_c10": {"generator", "base", "increment"},
    "scenario/voc_b4_c2": {"generator", "base"},
    "scenario/voc_b10_c2": {"generator", "base"},
    "protocol/si_blurry": {"stream_batch", "augmentation", "augment_per", "eval_every", "anytime_rule"},
    "protocol/offline": OFFLINE,
    "protocol/multi_lane_voc2007": OFFLINE | {"augmentation", "eval_crop", "eval_batch"},
    "protocol/multi_lane_coco2014": OFFLINE | {"augmentation", "eval_crop", "eval_batch"},
    "protocol/single_prompt": {"stream_batch", "augmentation", "train_mask", "eval_every", "anytime_rule"},
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def content(path: Path) -> dict:
    """The keys of a file; what a scenario brings along is Hydra's list of defaults."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "scenario":
        values.pop("defaults", None)
    return values


def schema_of(path: Path) -> type:
    return group_schema(path.parent.name, schema_name(path.parent.name, content(path)))


@pytest.fixture(scope="module")
def composer():
    with open_composer() as opened:
        yield opened


@pytest.mark.parametrize("path", GROUP_FILES, ids=name_of)
def test_a_group_file_has_every_key_of_its_schema_and_is_named_like_its_choice(path):
    values = content(path)
    assert values["name"] == path.stem
    assert next(iter(values)) == "name"
    assert set(values) == set(schema_of(path).model_fields)


@pytest.mark.parametrize("path", [path for path in GROUP_FILES if path.parent.name != "backbone"], ids=name_of)
def test_values_are_the_defaults_of_the_schema_but_for_what_defines_the_choice(path):
    schema = schema_of(path)
    differ = {
        key
        for key, value in dict(schema.model_validate(content(path))).items()
        if key != "name" and value != schema.model_fields[key].default
    }
    assert differ == MUST_DIFFER_FROM_DEFAULT.get(name_of(path), set())


def test_the_primary_file_has_the_defaults_of_the_schema():
    values = content(CONFIGS / "run.yaml")
    own = {key: value for key, value in values.items() if key not in ("defaults", "hydra")}
    assert own == RunSettings().model_dump()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_opens_with_its_summary_and_its_command(path, composer):
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    texts = [line for line in comments if not line.startswith("# @")]
    assert summary(composer, path.parent.name, path.stem) == texts[0].lstrip("# ") != ""
    if path.parent.name in ("scenario", "strategy", "protocol", "experiment"):
        assert texts[1].startswith("# python run.py ")


def commands(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# python run.py ") for line in lines if line.startswith("# python run.py ")]


def coco_tree(folder: Path) -> Path:
    """What can be seen of a data set before it is read."""
    for part in ("train", "val"):
        (folder / "coco" / f"{part}2014").mkdir(parents=True, exist_ok=True)
        annotations = folder / "coco" / "annotations"
        annotations.mkdir(exist_ok=True)
        (annotations / f"instances_{part}2014.json").write_text("{}")
    return folder / "coco"


@pytest.mark.parametrize("path", [CONFIGS / "run.yaml", *FILES], ids=name_of)
def test_the_command_of_a_file_is_accepted(path, composer, tmp_path):
    weights = tmp_path / "weights.npz"
    weights.write_bytes(b"")
    for command in commands(path):
        command = re.sub(r"/path/to/\S+\.(npz|safetensors|pth)", str(weights), command)
        words = command.replace("/path/to/coco", str(coco_tree(tmp_path))).split()
        request = read_request(composer, [word for word in words if word != "-m"], multirun="-m" in words)
        assert not request.problems
        assert request.configs


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "experiment"], ids=name_of)
def test_an_experiment_composes_and_is_recorded(path, composer, tmp_path):
    words = [f"experiment={path.stem}"]
    text = path.read_text(encoding="utf-8")
    words += ["backbone.checkpoint=untrained"] if "backbone: vit_base" in text else []
    words += [f"dataset.root={coco_tree(tmp_path)}"] if "coco2014" in text else []
    request = read_request(composer, words, multirun=False)
    assert request.problems == ()
    (config,) = request.configs
    assert config.experiment == (None if path.stem == "none" else path.stem)
    assert path.stem == "none" or path.stem.startswith(config.strategy_name)


@pytest.mark.parametrize(
    ("experiment", "weights", "normalisation"),
    [
        ("mvp_cifar100", "orig_in21k", "dataset"),
        ("multi_lane_cifar100", "augreg_in21k_ft_in1k", "none"),
        ("multi_lane_voc2007", "augreg_in21k_ft_in1k", "none"),
        ("multi_lane_coco2014", "augreg_in21k_ft_in1k", "none"),
    ],
)
def test_a_recipe_takes_the_weights_and_the_input_of_its_paper(experiment, weights, normalisation, composer, tmp_path):
    words = [f"experiment={experiment}", *([f"dataset.root={coco_tree(tmp_path)}"] if "coco" in experiment else [])]
    (config,) = read_request(composer, words, multirun=False).configs
    backbone = config.backbone
    assert (backbone.timm_name, backbone.checkpoint) == (f"vit_base_patch16_224.{weights}", "hub")
    assert backbone.normalisation == normalisation
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    papers = {"mvp": "MVP", "multi": "MULTI-LANE"}
    assert any(papers[experiment.split("_")[0]] in paper for paper in find_record(backbone.timm_name).used_by)


def parts(composer, experiment: str) -> tuple:
    (config,) = read_request(composer, [f"experiment={experiment}"], multirun=False).configs
    strategy = config.strategy
    return strategy.logit_mask, strategy.contrast, strategy.focal, strategy.feature_scaling, strategy.route


def test_the_ablation_grid_switches_what_its_names_say(composer):
    full = (True, "released", "batch", True, "count")
    grid = {
        "mvp_base": (False, "none", "none", False, "count"),
        "mvp_mask": (True, "none", "none", False, "count"),
        "mvp_contrastive": (False, "released", "none", False, "count"),
        "mvp_focal_batch": (False, "none", "batch", False, "count"),
        "mvp_focal_sample": (False, "none", "sample", False, "count"),
        "mvp_feature_scaling": (False, "none", "none", True, "count"),
        "mvp_mask_contrastive": (True, "released", "none", False, "count"),
        "mvp_focal_feature_scaling": (False, "none", "batch", True, "count"),
        "mvp_all_released": full,
        "mvp_all_paper": (True, "per_query", "sample", True, "count"),
        "mvp_plain_routing": (*full[:4], "plain"),
        "mvp_without_mask": (False, *full[1:]),
        "mvp_without_contrastive": (True, "none", "batch", True, "count"),
        "mvp_without_focal": (True, "released", "none", True, "count"),
        "mvp_without_feature_scaling": (True, "released", "batch", False, "count"),
    }
    assert {name: parts(composer, name) for name in grid} == grid


def test_the_default_protocol_gives_enough_updates_and_points():
    protocol = content(CONFIGS / "protocol" / "online.yaml")
    training_images = 1437
    assert training_images // protocol["stream_batch"] * protocol["updates_per_batch"] >= 300
    assert training_images // protocol["eval_every"] >= 20


def test_the_published_protocol_has_the_values_of_the_published_script():
    protocol = content(CONFIGS / "protocol" / "si_blurry.yaml")
    assert (protocol["stream_batch"], protocol["updates_per_batch"], protocol["lr"]) == (64, 3, 0.005)
    assert (protocol["optimizer"], protocol["eval_every"], protocol["anytime_rule"]) == ("adam", 1000, "official")


def test_the_version_is_the_one_of_the_distribution():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.+)"$', text, re.M).group(1) == cl_prompts.__version__
