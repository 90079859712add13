"""Pictures show the numbers they are given and leave Matplotlib's global state alone."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from evaluation_points import small_run

from cl_prompts.logging import confusion_picture, curve_picture, glyphs, stream_picture, to_array
from scenarios.ml_si_blurry import ml_si_blurry_plan
from scenarios.mlcil import mlcil_plan
from scenarios.si_blurry import si_blurry_plan


def written(figure):
    """Numbers in the cells of the first axes, by (row, column)."""
    return {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text()
        for t in figure.axes[0].texts
        if t.get_text().isdigit()
    }


def test_stream_picture_writes_the_counts_of_the_plan(plan):
    figure = stream_picture(plan)
    columns = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert sorted(columns) == sorted(plan.class_names)
    kinds = [plan.class_kind[plan.class_names.index(name)] for name in columns]
    assert kinds == sorted(kinds)
    shown = written(figure)
    for row in range(len(plan.sessions)):
        for column, name in enumerate(columns):
            count = plan.counts[row, plan.class_names.index(name)]
            assert shown.get((row, column), "0") == str(count)
    image = to_array(figure)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.std() > 10


def test_stream_picture_of_many_and_of_absent_classes():
    targets = np.concatenate([np.arange(600) % 60, [61]])
    figure = stream_picture(si_blurry_plan(targets, num_classes=63, n_sessions=3, seed=1))
    assert figure.axes[0].images[0].get_array().shape == (3, 61)
    assert len(figure.axes[0].get_xticks()) <= 30
    assert not written(figure)


def test_stream_picture_counts_visible_positives_where_labels_are_several():
    targets = (np.random.default_rng(1).random((60, 4)) < 0.5).astype(np.uint8)
    targets[np.arange(60), np.arange(60) % 4] = 1
    names = ["ant", "bee", "cat", "dog"]
    plan = mlcil_plan(targets, base=0, increment=2, order=[2, 0, 3, 1], seed=1, class_names=names, dataset_name="toy")
    figure = stream_picture(plan)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ant", "cat", "bee", "dog"]
    positives = targets.sum(axis=0)
    expected = {(0, 0): positives[0], (0, 1): positives[2], (1, 2): positives[1], (1, 3): positives[3]}
    assert written(figure) == {cell: str(count) for cell, count in expected.items()}
    sizes = [int(targets[:, columns].any(axis=1).sum()) for columns in ([0, 2], [1, 3])]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [f"session {number}  ({size})" for number, size in enumerate(sizes)]
    words = f"stream: {sum(sizes)} presentations of 60 images with several labels, 4 classes, 2 sessions"
    assert figure.get_suptitle() == words
    assert figure.axes[1].get_ylabel() == "visible positive labels"


def test_stream_picture_of_images_that_come_once():
    targets = np.eye(4, dtype=np.uint8)[np.arange(60) % 4]
    plan = ml_si_blurry_plan(targets, n_sessions=3, stream_batch=5, seed=1)
    assert stream_picture(plan).get_suptitle() == "stream: 60 images with several labels, 4 classes, 3 sessions"


@pytest.mark.parametrize("percent", [0, 100])
def test_stream_picture_of_one_kind_only(percent):
    plan = si_blurry_plan(np.arange(40) % 4, n_sessions=2, disjoint_class_pct=percent, seed=1)
    words = " ".join(text.get_text() for text in stream_picture(plan).axes[0].texts)
    assert ("4 disjoint" in words, "4 blurry" in words) == (percent == 100, percent == 0)


def test_confusion_picture_shows_exposed_classes_and_predictions_outside_them():
    confusion = np.array([[3, 0, 1], [0, 0, 0], [2, 2, 0]])
    figure = confusion_picture(confusion, np.array([True, False, True]), ["ant", "bee", "cat"])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ant", "cat", "other"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "cat"]
    assert written(figure) == {(0, 0): "75", (0, 1): "25", (1, 0): "50", (1, 2): "50"}
    assert axes.get_title() == "accuracy 37.5 % on 2 exposed classes"
    assert to_array(confusion_picture(confusion, np.array([True, True, True]))).std() > 5


def tick_labels(names):
    """Labels of a confusion picture that is drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = confusion_picture(np.eye(len(names), dtype=np.int64), np.ones(len(names), bool), names)
        to_array(figure)
    return figure.axes[0].get_yticklabels()


@pytest.mark.parametrize("families", [(), ("No Such Font",)])
def test_names_without_a_font_become_numbers(families, monkeypatch):
    monkeypatch.setattr(glyphs, "FALLBACKS", families)
    names = ["ant", "\u8702", "\u0161koda", "b\U0001f41d"]
    assert [label.get_text() for label in tick_labels(names)] == ["ant", "class 1", "\u0161koda", "class 3"]


def test_names_are_drawn_in_an_installed_font_that_has_their_letters(monkeypatch):
    """Of two fonts that Matplotlib brings, the one in use lacks a letter that the other has."""
    main, other = (glyphs._letters(glyphs._installed(family)) for family in ("DejaVu Sans Mono", "DejaVu Sans"))
    letter = next(letter for letter in sorted(other - main) if letter.isalpha())
    monkeypatch.setitem(glyphs.rcParams, "font.family", ["DejaVu Sans Mono"])
    monkeypatch.setattr(glyphs, "FALLBACKS", ())
    assert glyphs.drawable(["ant", letter]) == ([True, False], ["DejaVu Sans Mono"])
    monkeypatch.setattr(glyphs, "FALLBACKS", ("No Such Font", "DejaVu Sans"))
    labels = tick_labels(["ant", letter])
    assert [label.get_text() for label in labels] == ["ant", letter]
    assert labels[1].get_fontfamily() == ["DejaVu Sans Mono", "DejaVu Sans"]


def test_curve_picture_has_every_point():
    points, sessions, _ = small_run()
    axes = curve_picture(points, sessions).axes[0]
    anytime, ends = axes.lines[0], axes.lines[1]
    np.testing.assert_allclose(anytime.get_xydata(), [(p.samples_seen, p.accuracy) for p in points])
    np.testing.assert_allclose(ends.get_xydata(), [(p.samples_seen, p.accuracy) for p in sessions])


def test_no_backend_is_set_and_no_window_library_loaded():
    code = """
import sys, numpy as np
from cl_prompts.logging.pictures import confusion_picture, to_array
to_array(confusion_picture(np.eye(3, dtype=int), np.ones(3, bool)))
import matplotlib
print("matplotlib.pyplot" in sys.modules, matplotlib.rcParams._get_backend_or_none(), "torch" in sys.modules)
"""
    root = Path(__file__).parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).strip() == "False None False"
