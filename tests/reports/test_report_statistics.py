"""Means, spreads, intervals and costs against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from saved_folders import write_run

from cl_prompts.reports import cells
from cl_prompts.reports.cost import forward_passes
from cl_prompts.reports.report import read_report
from cl_prompts.reports.statistics import Difference, Spread, paired_difference, spread, student_quantile
from cl_prompts.runs.report_files import deciding_values
from cl_prompts.strategies.declaration import Needs


@pytest.mark.parametrize(
    ("values", "mean", "sd"), [([2.0], 2.0, None), ([1.0, 2.0, 3.0, 4.0], 2.5, math.sqrt(5 / 3)), ([0.1] * 3, 0.1, 0.0)]
)
def test_spread_is_the_sample_standard_deviation(values, mean, sd):
    found = spread(values)
    assert found == Spread(pytest.approx(mean), None if sd is None else pytest.approx(sd, abs=1e-15), len(values))


def test_nothing_has_no_spread_and_no_difference():
    assert spread([]) is None
    assert paired_difference({1: 0.5}, {2: 0.5}) is None


# The table of t(0.975): 1, 2, 4 and 30 degrees of freedom.
@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)])
def test_the_quantile_is_the_one_of_the_table(degrees, quantile):
    assert student_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_a_difference_is_that_of_pairs_alone():
    # Differences 1, 2, 3: mean 2, sd 1, half width 4.3027 / sqrt(3).
    values = {"a": 11.0, "b": 22.0, "c": 33.0, "alone": 1000.0}
    found = paired_difference(values, {"a": 10.0, "b": 20.0, "c": 30.0, "else": 0.0})
    half = 4.302652729911275 / math.sqrt(3)
    assert found == Difference(2.0, pytest.approx(2 - half), pytest.approx(2 + half), 3)
    assert paired_difference({"a": 3.0}, {"a": 1.0}) == Difference(2.0, None, None, 1)


def test_runs_are_paired_by_stream_and_seed(tmp_path):
    # Streams are hard or easy by 0.3; the method is better by 0.02, 0.04 and 0.06 on each.
    for seed, base, better in ((1, 0.2, 0.02), (2, 0.5, 0.04), (3, 0.8, 0.06)):
        write_run(tmp_path, "linear_probe", seed, base)
        write_run(tmp_path, "mvp", seed, base + better)
    write_run(tmp_path, "mvp", 4, 0.0)
    (block,) = read_report(tmp_path, deciding_values).blocks
    (mvp,) = (row for row in block.rows if row.method.name == "mvp")
    found = mvp.differences["a_last"]
    half = 4.302652729911275 * 0.02 / math.sqrt(3)
    assert (found.mean, found.pairs) == (pytest.approx(0.04), 3)
    assert (found.low, found.high) == (pytest.approx(0.04 - half), pytest.approx(0.04 + half))
    assert mvp.metrics["a_last"].n == 4
    assert block.reference_row.differences is None


def test_equal_seeds_on_other_streams_are_no_pair(tmp_path):
    write_run(tmp_path, "linear_probe", 1, 0.2)
    folder = write_run(tmp_path, "mvp", 1, 0.4)
    text = (folder.parent / "000_linear_probe_1" / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(text.replace("plan of seed 1", "another plan"), encoding="utf-8")
    (block,) = read_report(tmp_path, deciding_values).blocks
    assert [row.differences for row in block.rows if row.method.name == "mvp"] == [{}]


PROTOCOL = {"epochs": 1, "stream_batch": 10, "updates_per_batch": 3.0, "replay_batch": 0, "augmentation": "crop"}


@pytest.mark.parametrize(
    ("needs", "protocol", "passes"),
    [
        ({"trains": "head"}, {}, 3),  # 3 updates of one forward pass
        ({"trains": "head"}, {"augmentation": "none"}, 1),  # features are kept for the three updates
        ({"trains": "head"}, {"augmentation": "none", "epochs": 8, "updates_per_batch": 1.0}, 8),
        ({"trains": "prompts"}, {}, 6),  # 3 x (forward + backward to activations)
        ({"trains": "prompts", "query_pass": True}, {}, 9),
        ({"trains": "prompts", "query_pass": True}, {"augmentation": "none"}, 7),  # one query for three updates
        ({"trains": "backbone"}, {"updates_per_batch": 1.0}, 3),
        ({"trains": "prompts", "passes_per_update": 2}, {"updates_per_batch": 0.5}, 2),
        ({"trains": "backbone", "replay": "required"}, {"replay_batch": 10, "updates_per_batch": 1.0}, 6),
        ({"trains": "backbone", "replay": "required", "replay_draws": 2}, {"replay_batch": 5}, 18),
        ({"gradient": False, "trains": "nothing"}, {"epochs": 2}, 2),
    ],
)
def test_work_of_a_sample_by_hand(needs, protocol, passes):
    assert forward_passes(Needs(**needs), PROTOCOL | protocol) == pytest.approx(passes)


def test_work_is_not_guessed_where_the_protocol_lacks_a_number():
    assert forward_passes(Needs(), {"epochs": 1}) is None


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (cells.percent(Spread(0.4567, 0.0123, 3)), "45.7 ± 1.2"),
        (cells.percent(Spread(0.5, None, 1)), "50.0"),
        (cells.percent(None), "-"),
        (cells.difference(Difference(0.0123, -0.004, 0.03, 3)), "+1.2 [-0.4, +3.0]"),
        (cells.difference(Difference(-0.00001, None, None, 1)), "0.0"),
        (cells.count(Spread(1930, 0.0, 2)), "1,930"),
        (cells.count(Spread(40320, 0.0, 2)), "40.3 k"),
        (cells.count(Spread(85_800_000, 0.0, 2)), "85.8 M"),
        (cells.seconds(Spread(7.25, 0.1, 2)), "7.25 s"),
        (cells.seconds(Spread(119.4, 0.1, 2)), "119 s"),
        (cells.seconds(Spread(185.4, 0.1, 2)), "3:05 min"),
        (cells.seconds(Spread(7325, 0.1, 2)), "2:02 h"),
        (cells.mebibytes(Spread(3 * 2**30, 0.1, 2)), "3,072 MiB"),
    ],
)
def test_numbers_as_they_are_shown(shown, text):
    assert shown == text
