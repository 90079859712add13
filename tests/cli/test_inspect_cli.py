"""`mode=inspect` and `mode=check-data` as a user meets them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image
from tiny_runs import only_folder, tiny_words

from cl_prompts.runs import main
from cl_prompts.runs.inspection import measurement


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """The command line in this process: exit code, standard output and error stream of `call(*words)`."""
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def answer(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capsys.readouterr()

    return answer


def image_folder(root, labels=("ant", "bee")):
    """Two classes of six training and two test images."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for label in labels:
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
    return root


def test_inspecting_answers_on_the_standard_output_and_says_where_the_pictures_are(call, tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "SECONDS", 0.02)
    code, output, errors = call(*tiny_words("ncm"), "mode=inspect", "progress=none")
    assert (code, errors) == (0, "")
    folder = only_folder(tmp_path / "runs")
    assert output.splitlines()[0] == "weights   vit_nano, untrained"
    assert output.splitlines()[-1] == f"written   runs/{folder.name}/, pictures in inspection/"


def test_mistakes_of_an_inspection_are_those_of_the_run(call, tmp_path):
    code, output, errors = call("mode=inspect", "dataset=cifar100", "dataset.root=nowhere", "dataset.download=false")
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert not (tmp_path / "runs").exists()


def test_checked_files_are_rows_with_their_state(call, tmp_path):
    root = image_folder(tmp_path / "images")
    words = ("mode=check-data", "dataset=image_folder", f"dataset.root={root}")
    code, output, errors = call(*words)
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == "data set  image_folder"
    assert lines[1] == "ok        train"
    assert lines[2].startswith("  found   12 images of 2 classes, sha256 ")
    assert lines[-1] == "checked   2 ok"
    assert not (tmp_path / "runs").exists()


def test_missing_files_are_rows_too_and_a_failure(call, tmp_path):
    code, output, errors = call("mode=check-data", "dataset=cifar100", f"dataset.root={tmp_path}")
    assert code == 1
    assert f"missing   {tmp_path / 'cifar-100-python.tar.gz'}" in output.splitlines()
    assert "  do      get cifar-100-python.tar.gz" in output
    assert errors == "error: dataset=cifar100: 1 of 1 files and parts are missing or wrong; do what their rows say\n"


@pytest.mark.parametrize(("words", "said"), [((), "dataset.root is not set; give"), (("dataset.root=no",), "=no does")])
def test_images_of_ones_own_that_were_not_given_are_one_line(words, said, call):
    code, output, errors = call("mode=check-data", "dataset=image_folder", *words)
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("error: ")
    assert said in errors


def test_files_are_checked_whatever_stream_and_method_they_would_meet(call, tmp_path):
    """With several labels an image, the default stream and method would be refused."""
    code, output, _ = call("mode=check-data", "dataset=digit_mosaics", "dataset.images_train=20")
    assert code == 0
    assert "dataset=digit_mosaics" not in output
    code, _, errors = call("mode=run", "dataset=digit_mosaics")
    assert code == 2
    assert "has several labels an image" in errors
