"""What is done before anything heavy is imported: files that cannot be had are known in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tiny_runs import checked

from cl_prompts.runs import jobs

NO_NETWORK = """
import socket, sys
def refuse(*arguments, **keywords):
    raise OSError("no network")
socket.create_connection = socket.socket.connect = refuse
from cl_prompts.runs import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
raise SystemExit(code)
"""


def test_data_that_cannot_be_had_stop_before_torch_is_imported_and_leave_no_folder(tmp_path):
    words = ["dataset=cifar10", f"dataset.root={tmp_path / 'data'}", f"output={tmp_path / 'runs'}", "strategy=ncm"]
    done = subprocess.run([sys.executable, "-c", NO_NETWORK, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cifar-10-python.tar.gz" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


LIGHT = """
import json, sys, time
from cl_prompts.runs import main
for words in json.loads(sys.argv[1]):
    started = time.process_time()
    code = main(words)
    print(json.dumps([code, time.process_time() - started]))
assert not {"torch", "timm", "avalanche"} & set(sys.modules)
"""

TAG = "vit_small_patch16_224.ibot_in1k"


def test_what_needs_no_torch_is_known_before_torch_is_imported(tmp_path):
    """A weight file other than the one seen first, a damaged file of pins, a folder of pixels that cannot be made."""
    from PIL import Image

    weights, taken, homes = tmp_path / "weights.pth", tmp_path / "taken", {}
    weights.write_bytes(b"weights")
    taken.touch()
    for part in ("train/ant", "test/ant"):
        (tmp_path / "images" / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / part / "0.png")
    for name, content in (("pinned", json.dumps({f"weights/{TAG}": "0" * 64})), ("damaged", "{")):
        homes[name] = tmp_path / name
        (homes[name] / "cl_prompts").mkdir(parents=True)
        (homes[name] / "cl_prompts" / "pins.json").write_text(content)
    common = ["strategy=ncm", f"output={tmp_path / 'runs'}"]
    named = [*common, f"backbone.timm_name={TAG}", f"backbone.checkpoint={weights}"]
    pixels = ["dataset=image_folder", f"dataset.root={tmp_path / 'images'}", "scenario.n_sessions=1"]
    pixels += ["dataset.cache=mmap", f"dataset.cache_folder={taken / 'pixels'}"]
    cases = [
        ("pinned", named, f"was seen the first time (pinned as weights/{TAG} in "),
        ("pinned", [*common, *pixels], f"dataset.cache=mmap: {taken}"),
        ("pinned", [f"resume={tmp_path / 'stopped'}"], "was seen the first time"),
        ("damaged", named, "pins.json is damaged ("),
    ]
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.yaml").write_text(checked(*named).to_yaml(), encoding="utf-8")
    for home in homes:
        commands = [words for place, words, _ in cases if place == home]
        environment = os.environ | {"XDG_DATA_HOME": str(homes[home])}
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, json.dumps(commands)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        answers, lines = [json.loads(line) for line in done.stdout.splitlines()], done.stderr.splitlines()
        texts = [text for place, _, text in cases if place == home]
        assert [code for code, _ in answers] == [1] * len(texts)
        assert max(seconds for _, seconds in answers) < 2
        for line, text in zip(lines, texts, strict=True):
            assert line.startswith("error: ")
            assert text in line
    assert not (tmp_path / "runs").exists()


def test_data_that_are_there_are_left_alone(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(jobs, "provide_dataset", lambda name, settings: asked.append((name, settings.subset_seed)))
    monkeypatch.setattr("cl_prompts.runs.execute.execute", lambda config: 0)
    config = checked("strategy=ncm", "dataset.subset_seed=4", f"output={tmp_path}")
    assert jobs.perform(config) == 0
    assert asked == [("digits", 4)]
