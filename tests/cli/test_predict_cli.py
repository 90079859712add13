"""`mode=predict`: the table it writes, and what it refuses before anything is loaded."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import QUIET, checked, several_words, threads, tiny_words

from cl_prompts.runs.build import build_data
from cl_prompts.runs.command_line import main
from cl_prompts.runs.execute import execute
from cl_prompts.runs.loading import load_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of one label an image and one of several."""
    output = tmp_path_factory.mktemp("runs")
    with threads(1):
        for name, words in (
            ("one", tiny_words("linear_probe")),
            ("several", several_words("mlcil", "multi_lane", "protocol.epochs=1")),
        ):
            assert execute(checked(*words, *QUIET, f"output={output}", f"name={name}")) == 0
    return output


@pytest.fixture(scope="module")
def images(runs, tmp_path_factory) -> Path:
    """Some test images as files, in folders."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "deep er").mkdir()
    test = build_data(load_run(runs / "one").config).test
    for number in range(6):
        place = folder / ("deep er" if number > 3 else "") / f"é {number}.png"
        Image.fromarray(test[number][0]).save(place)
    return folder


@pytest.fixture
def predict(capsys, one_thread):
    """The command -> exit code, rows of the table that was printed, text on the error stream."""

    def call(*words: str) -> tuple[int, list[dict[str, str]], str]:
        code = main(["mode=predict", *words])
        output, errors = capsys.readouterr()
        return code, list(csv.DictReader(io.StringIO(output))), errors

    return call


def test_the_table_says_what_the_model_says(predict, runs, images, tmp_path, capsys):
    run = load_run(runs / "one")
    found = run.predict(images)
    code, rows, errors = predict(f"run={runs / 'one'}", f"images={images}")
    assert code == 0
    assert [row["path"] for row in rows] == list(found.names)
    assert len(rows) == 6
    for row, ((name, probability),) in zip(rows, found.top(1), strict=True):
        assert (row["class"], float(row["probability"])) == (name, pytest.approx(probability, abs=1e-6))
    assert "10 of 10 seen in the stream" in errors
    assert main(["mode=predict", f"run={runs / 'one'}", f"images={images}", "top=12", "progress=none"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    (first, *_) = csv.DictReader(io.StringIO(output))
    assert [first[f"class_{place}"] for place in range(1, 11)] == [name for name, _ in found.top(10)[0]]
    assert (first["class_11"], first["probability_12"]) == ("", "")


def test_a_file_is_written_whole_or_not_at_all(predict, runs, images, tmp_path):
    table = tmp_path / "a table.csv"
    code, rows, errors = predict(f"run={runs / 'one'}", f"images={images}", f"predictions={table}")
    assert (code, rows) == (0, [])
    whole = table.read_text(encoding="utf-8")
    assert len(whole.splitlines()) == 7
    assert f"{table}, 6 images" in errors
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "a.png").write_bytes((images / "é 0.png").read_bytes())
    (damaged / "b.png").write_bytes(b"\x89PNG nothing")
    words = (f"run={runs / 'one'}", f"images={damaged}", f"predictions={table}")
    code, _, errors = predict(*words)
    assert code == 1
    assert errors.splitlines()[-1].startswith(f"error: {damaged / 'b.png'}: not an image; repair or remove it, or set")
    assert table.read_text(encoding="utf-8") == whole
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a table.csv"]
    code, _, errors = predict(*words, "skip_unreadable=true")
    assert code == 0
    assert "1 of 2 images left out" in errors
    assert table.read_text(encoding="utf-8").splitlines()[1].startswith(f"{damaged / 'a.png'},")


def test_several_labels_are_a_list(predict, runs, images):
    found = load_run(runs / "several").predict(images)
    threshold = round(float(np.median(found.probabilities)), 4)
    code, rows, _ = predict(f"run={runs / 'several'}", f"images={images}", f"threshold={threshold}")
    assert code == 0
    for row, ranked in zip(rows, found.above(threshold), strict=True):
        assert row["classes"] == ";".join(name for name, _ in ranked)
        assert row["probabilities"].count(";") == max(len(ranked) - 1, 0)
    _, rows, _ = predict(f"run={runs / 'several'}", f"images={images}", "threshold=1")
    assert [row["classes"] for row in rows] == [""] * 6
    (row, *_) = predict(f"run={runs / 'several'}", f"images={images}", "top=2")[1]
    assert [row["class_1"], row["class_2"]] == [name for name, _ in found.top(2)[0]]


def test_every_mistake_is_a_line_and_torch_is_not_loaded(runs, tmp_path):
    words = [
        "mode=predict",
        f"run={tmp_path}",
        "images=nowhere",
        "predictions=no/table.csv",
        "top=0",
        "treshold=0.5",
        "device=tpu",
        "skip_unreadable",
    ]
    better = [*words[:1], f"run={runs / 'one'}", *words[2:4], "threshold=1e-1"]
    code = (
        "import sys; from cl_prompts.runs import main\n"
        f"for words in ({words!r}, {better!r}): print(main(words))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["2", "2", "False"], done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "treshold=0.5: unknown key; did you mean threshold?",
        "skip_unreadable: write key=value, for example images=folder",
        "top=0: must be a whole number of at least 1, or null (default null)",
        "device=tpu: must be cpu, cuda or cuda:N (default cpu)",
        f"run={tmp_path}: no run lies there (it has no config.yaml); give the folder of a run",
        "images=nowhere: there is no such file or folder",
        "predictions=no/table.csv: there is no folder no; make it first",
        "threshold=0.1: this run gives one label an image; leave it out, or use top=k",
        "images=nowhere: there is no such file or folder",
        "predictions=no/table.csv: there is no folder no; make it first",
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("images={images}",), "run: must be given, a folder"),
        (("run={runs}", "images={images}"), "no run lies there (it has no config.yaml)"),
        (("run={runs}/one", "images={images}", "predictions={images}"), "is a folder; give the name of a file in it"),
        (("run={runs}/one", "images={images}", "top=one"), "top=one: must be a whole number of at least 1, or null"),
        (("run={runs}/one", "images={images}", "weights=/no/w.safetensors"), "backbone.checkpoint=/no/w.safetensors: "),
        (("run={runs}/several", "images={images}", "top=1", "threshold=0.5"), "top=1 asks for so many labels"),
        (("run={runs}/one", "images={images}", "-m"), "--multirun: has no effect on mode=predict run=DIR images=DIR"),
    ],
)
def test_wrong_words_are_one_line(words, line, runs, images, predict):
    code, rows, errors = predict(*(word.format(runs=runs, images=images) for word in words))
    assert (code, rows) == (2, [])
    (only,) = errors.splitlines()
    assert only.startswith("error: ")
    assert line in only


def test_help_names_these_commands_and_their_keys(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert "mode=predict run=DIR images=DIR" in page
    assert "resume=DIR" in page
    assert main(["mode=predict", "--help"]) == 0
    page = capsys.readouterr().out
    assert "skip_unreadable" in page
    assert "strategy" not in page


def test_a_run_is_resumed_without_options_of_a_composition(runs, capsys):
    assert main([f"resume={runs / 'one'}", "--cfg", "job"]) == 2
    assert "--cfg: has no effect on resume=DIR" in capsys.readouterr().err
    assert main([f"resume={runs / 'one'}", "--help"]) == 0
    assert "go on with a run that was stopped" in capsys.readouterr().out
    assert main([f"resume={runs / 'one'}", "progress=none"]) == 0
    assert "finished already" in capsys.readouterr().out
