"""What recipes say that papers report: composed, checked, recorded by the run, and told from what was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from saved_folders import config_of
from tiny_runs import checked, tiny_words

from cl_prompts.config_folder import config_folder
from cl_prompts.metrics.summary import METRICS
from cl_prompts.reports.formulas import FORMULAS
from cl_prompts.reports.published import recipe_changes
from cl_prompts.runs.identity import HARMLESS, deciding_keys
from cl_prompts.runs.validation import check_config

RECIPES = sorted((config_folder() / "experiment").glob("*.yaml"))
ENTRY = {"paper": "Authors 2030", "table": "Table 1", "metric": "a_last", "value": 62, "spread": 1.5, "seeds": 5}


def recipe(folder: Path, *entries: dict) -> Path:
    (folder / "experiment").mkdir()
    content = {"defaults": [{"override /strategy": "mvp"}], "published": list(entries)}
    text = "# @package _global_\n# Mine\n" + yaml.safe_dump(content)
    (folder / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    return folder


def test_a_run_records_what_its_recipe_says(tmp_path):
    folder = recipe(tmp_path, ENTRY, {key: ENTRY[key] for key in ("paper", "table", "metric", "value")})
    config = checked("experiment=mine", "backbone.checkpoint=untrained", config_dir=folder)
    first, second = config.published
    assert (first.value, first.spread, first.seeds, second.spread) == (62.0, 1.5, 5, None)
    saved = yaml.safe_load(config.to_yaml())
    assert saved["published"][0] == ENTRY
    assert check_config(saved)[0] == config
    assert "published" in HARMLESS
    assert "published" not in deciding_keys(config)


def test_without_a_recipe_nothing_is_published():
    assert checked(*tiny_words("linear_probe")).published == ()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"valeu": 3}, "published.0.valeu: extra inputs are not permitted; an entry has paper, table, metric, value"),
        ({"value": "high"}, "published.0.value: input should be a valid number"),
        ({"spread": -1}, "published.0.spread: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_entry_is_one_line(change, line):
    raw = config_of() | {"published": [ENTRY | change]}
    raw = {key: value for key, value in raw.items() if key != "experiment"}
    config, problems = check_config(raw, rules=())
    assert config is None
    (problem,) = problems
    assert problem.text.startswith(line)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_metrics_have_names_that_summaries_use(path):
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for entry in entries.get("published", []):
        assert entry["metric"] in {*METRICS, *FORMULAS}
        assert 1 < entry["value"] <= 100  # percent, not a fraction


def test_a_run_of_the_recipe_is_not_called_changed_and_another_is():
    config = config_of("mvp")
    for group, choice in (("scenario", "si_blurry"), ("protocol", "si_blurry"), ("backbone", "vit_base")):
        text = (config_folder() / group / f"{choice}.yaml").read_text(encoding="utf-8")
        config[group] = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
    config["dataset"] = yaml.safe_load((config_folder() / "dataset" / "cifar100.yaml").read_text(encoding="utf-8"))
    values = yaml.safe_load((config_folder() / "experiment" / "mvp_cifar100.yaml").read_text(encoding="utf-8"))
    for group in ("scenario", "backbone", "strategy"):
        config[group] |= values[group]
    config["dataset"]["root"], config["backbone"]["checkpoint"] = "/somewhere/else", "a.npz"
    assert recipe_changes("mvp_cifar100", config) == ()
    config["protocol"]["lr"], config["dataset"]["name"] = 0.1, "cifar10"
    assert recipe_changes("mvp_cifar100", config) == ("dataset=cifar10", "protocol.lr=0.1")
