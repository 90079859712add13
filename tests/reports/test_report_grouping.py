"""Which runs may share a table, which make one row, and which are in no mean."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from saved_folders import config_of, write_run

from cl_prompts.errors import UserError
from cl_prompts.reports.blocks import make_blocks
from cl_prompts.reports.report import common_settings, read_report, side_by_side
from cl_prompts.reports.saved_run import SavedRun, find_runs
from cl_prompts.runs.identity import HARMLESS
from cl_prompts.runs.report_files import deciding_values

MASKS = ("exposed", "batch")


def report_of(folder: Path, **options):
    return read_report(folder, deciding_values, **options)


def masks_by_methods(root: Path) -> None:
    for mask in MASKS:
        for seed in (1, 2, 3):
            for place, strategy in enumerate(("linear_probe", "mvp")):
                write_run(root, strategy, seed, 0.3 + place / 10, changes={"protocol.train_mask": mask})
    for seed in (1, 2, 3):
        write_run(root, "ncm", seed, 0.6)


def test_masks_make_blocks_and_closed_forms_stand_in_each(tmp_path):
    masks_by_methods(tmp_path)
    report = report_of(tmp_path)
    assert [block.condition for block in report.blocks] == [f"protocol.train_mask={mask}" for mask in sorted(MASKS)]
    for block in report.blocks:
        assert [(row.method.name, len(row.runs)) for row in block.rows] == [("ncm", 3), ("mvp", 3), ("linear_probe", 3)]
        assert any(note.startswith("ncm: fitted in closed form; train_mask") for note in block.notes)
        (mvp,) = (row for row in block.rows if row.method.name == "mvp")
        assert {run.config["protocol"]["train_mask"] for run in mvp.runs} == {block.condition.partition("=")[2]}
    assert report.runs == 15
    assert any(warning.startswith("2 blocks:") for warning in report.warnings)
    (table,) = [side_by_side(blocks) for _, blocks in report.families]
    assert len(table.blocks) == 2
    assert {label.split()[0] for label, _ in table.rows} == {"ncm", "mvp", "linear_probe"}
    assert "protocol.train_mask" not in common_settings(report.blocks)
    assert common_settings(report.blocks)["protocol.stream_batch"] == "10"


def test_a_closed_form_swept_over_masks_counts_once_a_seed(tmp_path):
    for mask in MASKS:
        for seed in (1, 2):
            write_run(tmp_path, "ncm", seed, changes={"protocol.train_mask": mask, "protocol.lr": 0.1})
            write_run(tmp_path, "linear_probe", seed, changes={"protocol.train_mask": mask})
    report = report_of(tmp_path)
    assert [[len(row.runs) for row in block.rows] for block in report.blocks] == [[2, 2], [2, 2]]
    assert [one.status for one in report.left_out] == ["duplicate"] * 2
    assert all("its metrics are equal" in one.reason for one in report.left_out)


def test_closed_forms_alone_make_one_block(tmp_path):
    for mask in MASKS:
        write_run(tmp_path, "ncm", 1, changes={"protocol.train_mask": mask})
    (block,) = report_of(tmp_path).blocks
    assert block.condition == ""
    assert "protocol.train_mask" not in block.identity
    assert (block.reference, len(block.rows)) == (None, 1)


def test_a_memory_that_a_closed_form_does_not_use_leaves_it_where_it_is(tmp_path):
    write_run(tmp_path, "ncm", 1)
    write_run(tmp_path, "linear_probe", 1, changes={"protocol.memory_size": 500, "protocol.replay_batch": 32})
    (block,) = report_of(tmp_path).blocks
    assert len(block.rows) == 2


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "other" if value is None or isinstance(value, str) else [*value, 7]


KEYS = sorted(
    f"{group}.{key}"
    for group in ("scenario", "dataset", "protocol")
    for key in config_of()[group]
    if key not in ("name", "generator")
)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    write_run(root)
    return find_runs(root)[0][0]


def variant_of(run: SavedRun, name: str, config, seed: int = 2) -> SavedRun:
    hashes = run.manifest["hashes"] | {"plan": f"plan of seed {seed}"}
    return SavedRun(run.folder, name, config, {**run.manifest, "hashes": hashes}, run.summary)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_decides_a_number_makes_a_block_of_its_own(one_run, key):
    group, leaf = key.split(".")
    other = variant_of(one_run, "other", config_of(seed=2, changes={key: changed(config_of()[group][leaf])}))
    blocks, _ = make_blocks([one_run, other], deciding_values)
    harmless = key in HARMLESS - {"scenario.plan"}
    assert len(blocks) == (1 if harmless else 2)
    if not harmless:
        shown = {"scenario.seed": "scenario.stream_seed"}.get(key, key)
        assert all(shown in block.differing for block in blocks)


def test_names_of_choices_seeds_and_order_of_the_runs_make_no_difference(one_run):
    names = {f"{group}.name": "mine" for group in ("scenario", "protocol")}
    runs = [one_run, variant_of(one_run, "2", config_of(seed=2)), variant_of(one_run, "3", config_of("mvp", 2), 2)]
    runs += [variant_of(one_run, "4", config_of(seed=4, changes={"protocol.lr": 0.5}), 4)]
    (first, second), _ = make_blocks(runs, deciding_values)
    random.Random(0).shuffle(runs)
    assert make_blocks(runs, deciding_values)[0] == [first, second]
    renamed = variant_of(one_run, "named", config_of(seed=5, changes={"protocol.name": names["protocol.name"]}), 5)
    (block,), _ = make_blocks([one_run, renamed], deciding_values)
    assert block.rows[0].seeds == (1, 5)


def test_a_key_that_is_newer_than_a_run_counts_as_its_default(one_run):
    config = config_of(seed=2)
    del config["protocol"]["clip_norm"], config["strategy"]["temperature"]
    blocks, _ = make_blocks([one_run, variant_of(one_run, "older", config)], deciding_values)
    assert [[row.seeds for row in block.rows] for block in blocks] == [[(1, 2)]]


@pytest.mark.parametrize(
    ("part", "key"), [("backbone", "sha256"), ("backbone", "img_size"), ("train", "sha256"), ("test", "sha256")]
)
def test_other_weights_or_images_under_the_same_names_are_another_block(one_run, part, key):
    hashes = {**one_run.manifest["hashes"], part: {**one_run.manifest["hashes"][part], key: "e" * 64}}
    other = SavedRun(
        one_run.folder, "other", config_of(seed=2), {**one_run.manifest, "hashes": hashes}, one_run.summary
    )
    blocks, _ = make_blocks([one_run, other], deciding_values)
    assert len(blocks) == 2
    assert all(block.condition for block in blocks)


def test_settings_make_rows_which_name_head_variant_and_what_is_no_default(tmp_path):
    write_run(tmp_path, "linear_probe", 1, 0.2)
    write_run(tmp_path, "linear_probe", 1, 0.3, changes={"strategy.head": "cosine", "strategy.temperature": 0.5})
    write_run(tmp_path, "mvp", 1, 0.4, changes={"strategy.pool_size": 5, "strategy.general_layers": [0]})
    (block,) = report_of(tmp_path).blocks
    assert [row.label for row in block.rows] == [
        "mvp variant=released pool_size=5 general_layers=[0]",
        "linear_probe head=cosine temperature=0.5",
        "linear_probe head=linear",
    ]
    assert [row.number for row in block.rows] == [1, 2, 3]


def test_what_a_null_stands_for_comes_from_the_manifest(tmp_path):
    recorded = {"strategy": {"name": "mvp", "variant": "released", "focal": "batch", "query_blocks": 5}}
    write_run(tmp_path, "mvp", 1, manifest=recorded)
    (block,) = report_of(tmp_path).blocks
    assert (block.rows[0].method.settings["focal"], block.rows[0].settings) == ("batch", "variant=released")


def test_repeated_runs_count_once_the_newest(tmp_path):
    write_run(tmp_path, seed=1, a_last=0.2, name="old", manifest={"started": "2030-01-01T00:00:00+00:00"})
    write_run(tmp_path, seed=1, a_last=0.4, name="new", manifest={"started": "2030-01-02T00:00:00+00:00"})
    report = report_of(tmp_path)
    (row,) = report.blocks[0].rows
    assert (row.metrics["a_last"].mean, row.metrics["a_last"].n) == (0.4, 1)
    (one,) = report.left_out
    assert (one.name, one.status) == ("old", "duplicate")
    assert "same settings and seed as new, which counts; its metrics are others" in one.reason


def test_seeds_that_some_rows_lack_are_said(tmp_path):
    for strategy, seeds in (("linear_probe", (1, 2, 3)), ("mvp", (1, 3))):
        for seed in seeds:
            write_run(tmp_path, strategy, seed)
    (block,) = report_of(tmp_path).blocks
    assert "mvp variant=released: n = 2, without seed 2, which other rows have" in block.notes


def test_a_metric_that_is_not_defined_in_a_run_is_in_no_mean(tmp_path):
    write_run(tmp_path, seed=1, metrics={"a_auc": 0.5, "a_last": 0.5, "f_last": None})
    write_run(tmp_path, seed=2, metrics={"a_auc": 0.3, "a_last": 0.1, "f_last": 0.25})
    (block,) = report_of(tmp_path).blocks
    assert (block.rows[0].metrics["f_last"].n, block.rows[0].metrics["f_last"].mean) == (1, 0.25)
    assert "linear_probe head=linear: f_last is defined in 1 of 2 runs" in block.notes
    assert "a_avg" not in block.metrics


def test_times_of_different_machines_are_marked(tmp_path):
    for seed, processor in ((1, "fast"), (2, "slow")):
        hardware = {"processor": processor, "threads": 1, "gpus": []}
        source = {"commit": "0123456789abcdef", "dirty": seed == 2}
        write_run(tmp_path, seed=seed, manifest={"hardware": hardware, "source": source})
    notes = report_of(tmp_path).blocks[0].notes
    assert "times and memory come from 2 kinds of machines: fast, 1 threads; slow, 1 threads" in notes
    assert "the runs come from 2 states of the code: 0123456789ab, 0123456789ab with changes" in notes


def test_the_reference_is_the_probe_the_named_row_or_the_best(tmp_path):
    for strategy, value in (("linear_probe", 0.2), ("mvp", 0.4), ("ncm", 0.5)):
        write_run(tmp_path, strategy, 1, value)
    write_run(tmp_path, "mvp", 1, 0.3, changes={"strategy.variant": "paper"})
    row = report_of(tmp_path).blocks[0].reference_row
    assert row.method.name == "linear_probe"
    assert report_of(tmp_path, reference="mvp").blocks[0].reference_row.settings == "variant=released"
    assert report_of(tmp_path, reference="mvp variant=paper").blocks[0].reference_row.settings == "variant=paper"
    with pytest.raises(UserError, match="reference=mpv: no such row; choose one of 'ncm'"):
        report_of(tmp_path, reference="mpv")
    others = tmp_path / "others"
    for strategy, value in (("mvp", 0.4), ("ncm", 0.5)):
        write_run(others, strategy, 1, value)
    (block,) = report_of(others).blocks
    assert (block.reference_row.method.name, "the best row" in block.reference_reason) == ("ncm", True)
