"""The probe of frozen features against scikit-learn used directly, and its command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cl_prompts.backbones import load_backbone
from cl_prompts.backbones.probe import first_of_each_class, linear_probe, main


def test_the_first_images_of_each_class_are_chosen():
    targets = np.array([1, 0, 1, 1, 0, 2, 0])
    assert first_of_each_class(targets, 2).tolist() == [0, 1, 2, 4, 5]


def test_separable_features_are_all_right_and_shuffled_labels_are_not():
    noise = np.random.default_rng(0)
    labels = np.arange(400) % 4
    features = noise.normal(size=(400, 8)) + 6 * np.eye(8)[labels]
    train, test = (features[:300], labels[:300]), (features[300:], labels[300:])
    assert linear_probe(train, test) == 1.0
    assert linear_probe(train, (test[0], noise.permutation(test[1]))) < 0.5


def test_the_command_prints_what_the_features_give(tmp_path, capsys):
    noise = np.random.default_rng(0)
    pixels = {}
    for part, count in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                image = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{index}.png")
                pixels[part, name, index] = image
    assert main([f"images={tmp_path}", "train_per_class=2", "test_per_class=1"]) == 0
    printed = capsys.readouterr().out
    backbone = load_backbone("vit_nano")

    def features(part, count):
        images = np.stack([pixels[part, name, index] for name in ("a", "b") for index in range(count)])
        floats = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        return backbone.query(floats).numpy(), np.arange(2).repeat(count)

    assert f"{100 * linear_probe(features('train', 2), features('test', 1)):.2f} %" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["backbone=none"], "images"), (["images=/nowhere"], "/nowhere"), (["images=x", "backbone=none"], "none")],
)
def test_a_mistake_is_one_line(words, expected, capsys):
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert expected in lines[0]
