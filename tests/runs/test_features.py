"""`feature_cache=disk`: fixed images pass the backbone once, and no number tells whether they did in this run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import DataError, StrategyError
from cl_prompts.strategies.ncm import NCMMethod

NO_CROPS = "protocol.augmentation=none"


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "kept features"


@pytest.fixture
def run(run_tiny, folder):
    """A tiny run with the key on; words that come later win."""
    return lambda strategy, *words: run_tiny(
        strategy, "feature_cache=disk", f"feature_cache_folder={folder}", "scenario.n_sessions=2", *words
    )


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Images of each pass of the backbone."""
    seen: list[int] = []
    query = FrozenViT.query

    def counted(self, images=None, **keywords):
        seen.append(len(images))
        return query(self, images, **keywords)

    monkeypatch.setattr(FrozenViT, "query", counted)
    return seen


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.features")) if folder.is_dir() else []


def assert_same(one, two) -> None:
    assert one.curves == two.curves
    assert one.weights.keys() == two.weights.keys()
    assert all(torch.equal(tensor, two.weights[name]) for name, tensor in one.weights.items())


def notes(finished) -> str:
    return " ".join(finished.manifest["notices"])


@pytest.mark.parametrize("words", [("ncm",), ("gacl",), ("linear_probe", NO_CROPS)], ids=lambda words: words[0])
def test_a_warm_cache_gives_the_same_bits_and_spares_the_backbone(words, run, folder, passes):
    cold = run(*words)
    images = 40 + len(cold.learner.evaluation.evaluator.images)
    # Once all images, and one image twice to compare the method's query with the backbone's.
    assert sum(passes) == images + 2
    assert len(files(folder)) == 2
    passes.clear()
    warm = run(*words)
    assert passes == [1, 1]
    assert_same(cold, warm)
    # Another stream and other batches find the same features; untrained weights belong to the seed.
    passes.clear()
    run(*words, "scenario.seed=5", "protocol.stream_batch=7", "protocol.eval_batch=9")
    assert passes == [1, 1]
    assert len(files(folder)) == 2


def test_known_features_differ_from_those_of_a_batch_by_rounding_alone(run, run_tiny):
    kept, plain = run("ncm"), run_tiny("ncm", "scenario.n_sessions=2")
    torch.testing.assert_close(kept.weights["sums"], plain.weights["sums"], rtol=1e-4, atol=1e-4)
    assert torch.equal(kept.weights["counts"], plain.weights["counts"])


def test_a_damaged_file_is_made_again_and_told(run, folder):
    cold = run("ncm")
    for path in files(folder):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    again = run("ncm")
    assert_same(cold, again)
    assert notes(again).count("were damaged and have been made again") == 2
    for path, content in zip(files(folder), (b"", b"of another program"), strict=True):
        path.write_bytes(content)
    assert_same(cold, run("ncm"))
    assert "damaged" not in notes(run("ncm"))
    assert not [path for path in folder.iterdir() if path.suffix not in (".features", ".lock")]


@pytest.mark.parametrize(
    "word",
    [
        "protocol.precision=bf16",
        "protocol.eval_crop=resized_centre",
        "backbone.num_heads=2",
        "dataset.train_per_class=3",
    ],
)
def test_what_decides_about_the_features_decides_about_the_file(word, run, folder):
    run("ncm", "protocol.eval_every=0")
    before = set(files(folder))
    run("ncm", "protocol.eval_every=0", word)
    # A smaller part for training leaves the test images as they are.
    assert len(set(files(folder)) - before) == (1 if word.startswith("dataset") else 2)


def test_images_that_change_are_not_kept(run, folder, passes):
    finished = run("linear_probe", "protocol.augmentation=crop")
    assert len(files(folder)) == 1
    assert "features of test images alone are kept" in notes(finished)
    # Three updates for each of 40 samples, each with a crop of its own.
    assert sum(passes) == 3 * 40 + len(finished.learner.evaluation.evaluator.images) + 2


def test_methods_that_change_the_features_run_as_without(run, folder):
    finished = run("mvp", "protocol.eval_every=0", "dataset.train_per_class=1")
    assert not files(folder)
    assert "feature_cache=disk: mvp reads more than frozen features" in notes(finished)
    assert finished.learner.strategy.known_features is None


def test_without_the_key_nothing_is_kept(run, folder):
    finished = run("ncm", "feature_cache=none", "protocol.eval_every=0")
    assert not files(folder)
    assert finished.learner.strategy.known_features is None


def test_a_query_of_its_own_is_refused(run, folder, monkeypatch):
    monkeypatch.setattr(NCMMethod, "query", lambda self, images: 2 * self.backbone.query(images))
    with pytest.raises(StrategyError, match="query of NCMMethod is not the backbone's feature; set feature_cache=none"):
        run("ncm")
    assert not files(folder)


def test_a_folder_that_cannot_be_is_one_line(run, folder):
    folder.write_text("a file")
    with pytest.raises(
        DataError, match=r"^feature_cache=disk: .*; name a folder that can be written in feature_cache_"
    ):
        run("ncm")


def test_a_disk_without_space_is_one_line(run, folder, monkeypatch):
    from cl_prompts.runs import features

    monkeypatch.setattr(features, "_SPARE_BYTES", 1 << 62)
    with pytest.raises(DataError, match=r"features need 0 MB, .* MB free; name another folder in feature_cache_folder"):
        run("ncm")
    assert not files(folder)
