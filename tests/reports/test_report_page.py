"""The page: what it draws from stored curves, that nothing in it leads outside, and that it stays small."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from saved_folders import CLASSES, write_curves, write_run, write_usage

from cl_prompts.reports import page as page_module
from cl_prompts.reports.figures import figures
from cl_prompts.reports.formulas import metric_names
from cl_prompts.reports.page import page
from cl_prompts.reports.report import Report, read_report
from cl_prompts.reports.saved_run import find_runs
from cl_prompts.reports.stored_curves import (
    SAMPLES,
    SESSIONS,
    class_grid,
    effective_number,
    mean_curve,
    usage_grid,
)
from cl_prompts.reports.svg import Scale, round_values, short
from cl_prompts.runs.report_files import deciding_values

VOID = {"meta", "wbr", "br", "hr", "img", "input", "link"}
ONE_LABEL = metric_names({})


def study(root: Path, strategies=("linear_probe", "mvp", "ncm"), seeds=(1, 2)) -> Report:
    for place, strategy in enumerate(strategies):
        for seed in seeds:
            folder = write_run(root, strategy, seed, 0.3 + place / 10)
            write_curves(folder, [0.5, 0.25 + seed / 10, 0.3 + place / 10])
            if strategy == "mvp":
                write_usage(folder, [[10, 0], [15, 15]])
    return read_report(root, deciding_values)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    return study(tmp_path_factory.mktemp("page") / "study")


class Reader(HTMLParser):
    """Collects attributes and checks that every element closes where it should."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_nothing_leads_outside_and_every_place_exists(report):
    text = page(report)
    found = read(text)
    assert not {"script", "img", "link", "iframe", "object", "image"} & set(found.tags)
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    targets = [value for _, name, value in found.attributes if name in ("href", "src", "xlink:href")]
    places = [value for _, name, value in found.attributes if name == "id"]
    assert len(places) == len(set(places))
    assert all(target.startswith("#") and target[1:] in places for target in targets)
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]


def test_colours_of_pictures_are_those_of_the_scheme(report):
    text = page(report)
    body = text.partition("</style>")[2]
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r'(fill|stroke)="', body)
    assert "#" not in re.sub(r'href="#\w+"|&#x?\w+;', "", body).replace("<th>#", "")
    assert all(re.search(r"viewBox=\"0 0 [\d.]+ [\d.]+\"", svg) for svg in re.findall(r"<svg[^>]*>", body))


def test_the_page_has_every_kind_of_picture(report):
    headings = [figure.heading for figure in figures(report.blocks[0])]
    assert headings == [
        "Anytime accuracy",
        "Differences",
        "Accuracy against cost",
        "Sessions and classes",
        "Use of prompts",
    ]
    words = " ".join(read(page(report)).words)
    assert all(heading in words for heading in headings)
    assert "Not stored for row 1, 3: the method has no pool of prompts" in words
    assert "3 mvp" not in words


def test_many_curves_are_small_charts_that_share_what_is_behind(tmp_path):
    strategies = ("linear_probe", "mvp", "ncm", "single_prompt")
    for head in ("linear", "cosine"):
        for place, strategy in enumerate(strategies):
            changes = {"strategy.head": head} if strategy in ("linear_probe", "single_prompt") else {}
            changes |= {"strategy.pool_size": 5} if strategy == "mvp" and head == "cosine" else {}
            folder = write_run(tmp_path, strategy, 1, 0.2 + place / 10, changes=changes)
            write_curves(folder, [0.5, 0.4])
    report = read_report(tmp_path, deciding_values)
    assert len(report.blocks[0].rows) == 7
    text = page(report)
    read(text)
    assert text.count('id="b1-all"') == 1
    assert text.count('href="#b1-all"') == 6


def test_the_mean_curve_is_that_of_equal_places(tmp_path):
    runs = []
    for seed, values in ((1, (0.2, 0.4, 0.6)), (2, (0.4, 0.8))):
        folder = write_run(tmp_path, seed=seed)
        write_curves(folder, values)
    runs = find_runs(tmp_path)[0]
    curve = mean_curve(runs, ONE_LABEL)
    assert curve.unit == SAMPLES
    assert [(x, found.mean, found.n) for x, found in curve.points] == [
        (50, pytest.approx(0.3), 2),
        (100, pytest.approx(0.6), 2),
    ]
    assert curve.points[0][1].sd == pytest.approx(0.1 * 2**0.5)


def test_points_a_few_samples_late_belong_to_their_multiple(tmp_path):
    for seed, late in ((1, 0), (2, 7)):
        folder = write_run(tmp_path, seed=seed)
        write_curves(folder, [0.5, 0.6])
        text = (folder / "curves.csv").read_text(encoding="utf-8").replace("50,50,per", f"{50 + late},{50 + late},per")
        (folder / "curves.csv").write_text(text, encoding="utf-8")
    assert [x for x, _ in mean_curve(find_runs(tmp_path)[0], ONE_LABEL).points] == [50, 100]


def test_without_periodic_points_a_curve_counts_sessions(tmp_path):
    folder = write_run(tmp_path, changes={"protocol.eval_every": 0})
    rows = ["samples_seen,nominal,kind,session,accuracy", "70,70,session,0,0.5", "130,130,session,1,0.25"]
    (folder / "curves.csv").write_text("\n".join(rows), encoding="utf-8")
    curve = mean_curve(find_runs(tmp_path)[0], ONE_LABEL)
    assert (curve.unit, [(x, found.mean) for x, found in curve.points]) == (SESSIONS, [(1, 0.5), (2, 0.25)])


def test_classes_stand_in_the_order_in_which_they_came(tmp_path):
    write_curves(write_run(tmp_path), [0.5, 0.5])
    grid = class_grid(find_runs(tmp_path)[0][0], ONE_LABEL)
    assert grid.columns == (CLASSES[0], CLASSES[2], CLASSES[1])
    assert grid.values == ((0.5, 1.0, None), (0.25, 1.0, 0.75))


def test_usage_is_the_share_in_each_session(tmp_path):
    write_usage(write_run(tmp_path, "mvp"), [[10, 0], [15, 15], [15, 15]])
    grid = usage_grid(find_runs(tmp_path)[0][0])
    assert grid.values == ((1.0, 0.0), (0.25, 0.75), (None, None))
    assert grid.beside == ("1.0", "1.8", "")
    assert effective_number([1, 1, 1, 1]) == 4


@pytest.mark.parametrize("name", ["curves.csv", "class_accuracy.csv", "usage.csv"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"session,kind\n1\n", b"a,b\n1,2\n", b"session,accuracy,prompt_0\nx,y,z\n"]
)
def test_a_damaged_table_is_no_picture_and_no_error(tmp_path, name, content):
    study(tmp_path, ("mvp",), (1,))
    for folder in tmp_path.iterdir():
        (folder / name).write_bytes(content)
    read(page(read_report(tmp_path, deciding_values)))


def test_names_that_are_markup_are_shown_as_they_are(tmp_path):
    root = tmp_path / "<script>alert(1)</script>"
    name = 'x" onload="alert(1)'
    write_run(root, "mvp", 1, name=name, manifest={"deviations": ["<b>bold</b> & more"]})
    write_run(root, "mvp", 2, name="<img src=x>", summary={"status": "failed", "error": "<script>"})
    found = read(page(read_report(root, deciding_values)))
    assert not {"script", "img"} & set(found.tags)
    assert "(a) <b>bold</b> & more" in found.words
    assert "<img src=x>" in found.words


def test_pictures_are_left_out_of_a_page_that_would_be_too_large(report, monkeypatch):
    whole = page(report)
    monkeypatch.setattr(page_module, "LARGEST", 0)
    small = page(report)
    assert len(small) < len(whole)
    assert "<svg" not in small
    assert "Left out: the page would be too large." in small


def test_the_same_runs_give_the_same_page(report):
    assert page(report) == page(read_report(report.folder, deciding_values))


def test_a_report_without_a_finished_run_is_a_page(tmp_path):
    write_run(tmp_path, name="bad", summary={"status": "failed", "error": "why"})
    words = read(page(read_report(tmp_path, deciding_values))).words
    assert "no run has finished, so there is no table" in words


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0, 1437, [0, 500, 1000]), (-3, 12, [0, 5, 10]), (5, 5, [5])],
)
def test_ticks_are_round(low, high, ticks):
    assert round_values(low, high) == ticks


@pytest.mark.parametrize(("low", "high"), [(1, 9), (7, 400), (1e3, 2e6), (50, 70)])
def test_ticks_of_ratios_lie_inside(low, high):
    scale = Scale(low, high, 0, 100, logarithmic=True)
    assert all(-1 <= scale(tick) <= 101 for tick in scale.ticks)
    assert (scale(low), scale(high)) == (0, 100)


def test_numbers_on_axes_are_short():
    assert [short(value) for value in (0, 0.5, 20, 1500, 2e6)] == ["0", "0.5", "20", "1.5k", "2M"]
