"""A saved run as a model: the predictions of the run itself, learning on, and the file that holds what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_runs import BLOCKS, QUIET, TINY, checked, several_words, threads, tiny_words

import cl_prompts
from cl_prompts.errors import UserError
from cl_prompts.runs.build import build_data
from cl_prompts.runs.execute import execute
from scenarios import benchmark_from_plan, si_blurry_plan

SIDE = 32


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with threads(1):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of class folders, in which nothing has the size that a network takes."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    shades = {"cat": (200, 60, 40), "dog": (40, 60, 200), "owl é": (60, 200, 40)}
    for part, count in (("train", 6), ("test", 3)):
        for name, shade in shades.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                height, width = (int(side) for side in generator.integers(24, 60, 2))
                noise = generator.integers(0, 50, (height, width, 3))
                pixels = (np.array(shade) + noise).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """The configuration and folder of a run of MVP on these photos."""
    output = tmp_path_factory.mktemp("runs")
    backbone = [word for word in TINY if word.startswith("backbone")]
    words = [*backbone, "dataset=image_folder", f"dataset.root={photos}", "strategy=mvp", *BLOCKS["mvp"], *QUIET]
    config = checked(*words, "scenario.n_sessions=2", "protocol.lr=0.05", f"output={output}", "name=run")
    assert execute(config) == 0
    return config, output / "run"


@pytest.fixture
def run(trained):
    return cl_prompts.load_run(trained[1])


@pytest.fixture(scope="module")
def held_out(trained):
    return build_data(trained[0]).test


class TestPredictions:
    def test_every_form_of_an_image_gives_what_the_run_gets_from_its_data_set(self, run, trained, photos, held_out):
        expected = run.probabilities(held_out.images(range(len(held_out))))
        assert np.ptp(expected.numpy(), axis=0).min() > 1e-4  # images are told apart
        paths = sorted((photos / "test").rglob("*.png"))
        of_folder = run.predict(photos / "test")
        assert list(of_folder.names) == [str(path) for path in paths]
        assert np.array_equal(of_folder.probabilities, expected.numpy())
        pictures = [Image.open(path) for path in paths]
        arrays = [np.asarray(picture) for picture in pictures]
        tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
        for form in (paths, [str(path) for path in paths], pictures, arrays, tensors):
            assert np.array_equal(run.predict(form).probabilities, expected.numpy()), type(form[0])
        for single in (paths[0], pictures[0], arrays[0], tensors[0]):
            assert run.predict(single).probabilities == pytest.approx(expected[:1].numpy(), abs=1e-6)
        square = held_out.images(range(len(held_out)))
        for batch in (square, np.asarray(square.permute(0, 2, 3, 1))):
            assert np.array_equal(run.predict(batch).probabilities, expected.numpy())

    def test_they_are_those_that_the_run_was_measured_by(self, run, trained, held_out):
        found = run.predict(held_out.images(range(len(held_out))))
        correct = [
            top[0][0] == run.class_names[label] for top, label in zip(found.top(), held_out.targets, strict=True)
        ]
        summary = json.loads((trained[1] / "summary.json").read_text(encoding="utf-8"))
        assert np.mean(correct) == summary["metrics"]["a_last"]
        assert found.probabilities.dtype == np.float32
        assert found.probabilities.sum(1) == pytest.approx(np.ones(len(held_out)), abs=1e-6)
        assert run.samples_seen == summary["samples_seen"] == 18
        assert repr(run).endswith("run: mvp, 18 samples, 3 of 3 classes)")
        assert run.class_names == ("cat", "dog", "owl é")
        assert (run.multi_label, run.exposed.tolist()) == (False, [True] * 3)

    def test_a_class_that_was_not_shown_is_never_predicted(self, run, held_out):
        run.strategy.classes.exposed[1] = False
        found = run.predict(held_out.images(range(4)))
        assert not found.probabilities[:, 1].any()
        assert found.probabilities.sum(1) == pytest.approx(np.ones(4), abs=1e-6)
        assert {name for top in found.top(5) for name, _ in top} == {"cat", "owl é"}

    def test_pictures_of_odd_kinds_go_the_way_of_files(self, run, tmp_path):
        pixels = np.random.default_rng(1).integers(0, 255, (40, 30, 4), dtype=np.uint8)
        turned = Image.fromarray(pixels[..., :3])
        exif = Image.Exif()
        exif[0x0112] = 6
        kinds = {
            "a.png": Image.fromarray(pixels),
            "b.png": Image.fromarray(pixels[..., :3]).convert("P"),
            "c.jpg": Image.fromarray(pixels[..., :3]).convert("CMYK"),
            "d.png": Image.fromarray(pixels[..., 0]),
        }
        for name, picture in kinds.items():
            picture.save(tmp_path / name)
        turned.save(tmp_path / "e.png", exif=exif)
        paths = sorted(tmp_path.iterdir())
        of_files = run.predict(paths).probabilities
        assert np.array_equal(run.predict([Image.open(path) for path in paths]).probabilities, of_files)
        assert not np.array_equal(of_files[4], run.predict(turned).probabilities[0])

    def test_what_cannot_be_read_is_named_or_left_out(self, run, photos, tmp_path):
        good = photos / "test" / "cat" / "0.png"
        (tmp_path / "notes.txt").write_text("no picture")
        shutil.copy(good, tmp_path / "a.png")
        (tmp_path / ".hidden").write_text("not looked at")
        with pytest.raises(UserError, match=r"notes\.txt: not an image; repair or remove it, or set skip_unreadable"):
            run.predict(tmp_path)
        found = run.predict(tmp_path, skip_unreadable=True)
        assert found.names == (str(tmp_path / "a.png"),)
        assert found.skipped == (f"{tmp_path / 'notes.txt'}: not an image",)
        deep = Image.fromarray(np.zeros((8, 8), dtype=np.float32))
        with pytest.raises(UserError, match="0: cannot write mode F"):
            run.predict(deep)

    @pytest.mark.parametrize(
        ("images", "line"),
        [
            (np.zeros((8, 8, 3)), r"item 0 is an array of float64 and shape \(8, 8, 3\); give a path"),
            (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"item 0 is a tensor of torch\.uint8 and shape \(8, 8, 3\)"),
            ([3], "item 0 is a int"),
            (b"bytes", "item 0 is a bytes"),
            ("nowhere.png", r"nowhere\.png: there is no such file or folder"),
        ],
    )
    def test_other_things_are_refused_in_one_line(self, run, images, line):
        with pytest.raises(UserError, match=line) as caught:
            run.predict(images)
        assert "\n" not in str(caught.value)

    def test_top_and_above(self, run):
        found = run.predict(np.zeros((1, SIDE, SIDE, 3), dtype=np.uint8))
        (ranked,) = found.top(2)
        assert [value for _, value in ranked] == sorted(found.probabilities[0].tolist(), reverse=True)[:2]
        assert len(run.predict([])) == 0
        with pytest.raises(UserError, match="one label an image; use top"):
            found.above(0.5)
        with pytest.raises(UserError, match="k=0"):
            found.top(0)


def test_several_labels_are_the_probabilities_that_the_run_wrote(tmp_path):
    words = [*several_words("mlcil", "multi_lane", "protocol.epochs=1"), *QUIET, f"output={tmp_path}", "name=run"]
    config = checked(*words)
    assert execute(config) == 0
    run = cl_prompts.load_run(tmp_path / "run")
    with np.load(tmp_path / "run" / "predictions" / "test.npz") as arrays:
        logits = arrays["logits"]
    test = build_data(config).test
    found = run.predict(test.images(range(len(test))))
    assert run.multi_label
    assert found.probabilities == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)
    threshold = float(np.median(found.probabilities))
    for row, ranked in zip(found.probabilities, found.above(threshold), strict=True):
        assert {name for name, _ in ranked} == {run.class_names[c] for c in np.flatnonzero(row >= threshold)}
    with pytest.raises(UserError, match="threshold=2"):
        found.above(2)


class TestLearningOn:
    @pytest.mark.parametrize("strategy", ["linear_probe", "ncm", "multi_lane"])
    def test_a_stream_of_ones_own_begins_where_learning_stopped(self, strategy, tmp_path):
        memory = ("protocol.memory_size=8", "protocol.replay_batch=4") if strategy == "linear_probe" else ()
        labels = "scenario=disjoint" if strategy == "multi_lane" else "scenario.n_sessions=2"
        words = tiny_words(
            strategy, labels, *memory, "protocol.updates_per_batch=1", *QUIET, f"output={tmp_path}", "name=run"
        )
        config = checked(*words)
        assert execute(config) == 0
        run = cl_prompts.load_run(tmp_path / "run")
        data = build_data(checked(*words, "dataset.subset_seed=1"))
        images = data.test.images(range(20))
        before = run.predict(images).probabilities
        saved = {name: value.clone() for name, value in run.strategy.model.state_dict().items()}
        optimizer = run.strategy.optimizer
        moments = None if optimizer is None else [len(state) for state in optimizer.state.values()]
        assert moments is None or (moments and all(moments))
        plan = si_blurry_plan(data.train.targets, n_sessions=1, disjoint_class_pct=100, seed=5)
        benchmark = benchmark_from_plan(plan, data.train, data.test)
        for experience in benchmark.train_stream:
            run.strategy.train(experience)
        assert run.samples_seen == 40 + len(plan.order)
        if strategy != "multi_lane":
            assert run.strategy.optimizer is optimizer
        assert not np.array_equal(run.predict(images).probabilities, before)
        assert any(not torch.equal(value, saved[name]) for name, value in run.strategy.model.state_dict().items())


class TestRefusals:
    def copy(self, trained, tmp_path) -> Path:
        return Path(shutil.copytree(trained[1], tmp_path / "copy"))

    def test_a_copied_run_needs_no_data_set(self, trained, photos, tmp_path, held_out):
        folder = self.copy(trained, tmp_path)
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        (folder / "config.yaml").write_text(text.replace(str(photos), str(tmp_path / "gone")), encoding="utf-8")
        images = held_out.images(range(3))
        found = cl_prompts.load_run(str(folder)).predict(images)
        assert np.array_equal(found.probabilities, cl_prompts.load_run(trained[1]).predict(images).probabilities)

    def test_no_run_and_nothing_saved_are_one_line(self, trained, tmp_path):
        with pytest.raises(UserError, match="no run lies there"):
            cl_prompts.load_run(tmp_path)
        folder = self.copy(trained, tmp_path)
        shutil.rmtree(folder / "checkpoints")
        with pytest.raises(UserError, match="nothing was saved there yet"):
            cl_prompts.load_run(folder)
        with pytest.raises(UserError, match="device=cuda:77"):
            cl_prompts.load_run(trained[1], device="cuda:77")

    def test_other_weights_are_refused(self, trained, tmp_path):
        from safetensors.torch import save_file

        from cl_prompts.runs.build import build_run_backbone

        other = tmp_path / "weights.safetensors"
        save_file(build_run_backbone(trained[0]).model.state_dict(), other)
        with pytest.raises(UserError, match=r"used weights with sha256 None, weights\.safetensors has [0-9a-f]{64}"):
            cl_prompts.load_run(trained[1], weights=other)
        with pytest.raises(UserError, match=r"backbone\.checkpoint=.*; where the file lies elsewhere now, .* weights="):
            cl_prompts.load_run(trained[1], weights=tmp_path / "none.safetensors")

    def test_another_strategy_in_the_configuration_is_one_line(self, trained, tmp_path):
        folder = self.copy(trained, tmp_path)
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        start, end = text.index("strategy:"), text.index("protocol:")
        (folder / "config.yaml").write_text(f"{text[:start]}strategy: {{name: ncm}}\n{text[end:]}", encoding="utf-8")
        with pytest.raises(UserError, match="the saved state is one of MVP, not of NCM"):
            cl_prompts.load_run(folder)


def test_the_exported_file_says_all_that_its_tensors_belong_to(trained, run):
    with safe_open(trained[1] / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        metadata = file.metadata()
    expected = {
        name: value for name, value in run.strategy.model.state_dict().items() if not name.startswith("backbone.")
    }
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert {"strategy": "mvp", "backbone": "vit_nano", "backbone_sha256": ""}.items() <= metadata.items()
    assert json.loads(metadata["classes"]) == ["cat", "dog", "owl é"]
    assert json.loads(metadata["exposed"]) == [0, 1, 2]
    assert json.loads(metadata["input"]) == {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "size": SIDE,
        "interpolation": "bicubic",
        "crop": "resize",
    }
    assert json.loads(metadata["settings"])["variant"]
