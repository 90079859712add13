"""The rows that open a header: weights by tag and hash, and the input they are given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cl_prompts.backbones import BackboneSettings
from cl_prompts.backbones.records import weight_records
from cl_prompts.runs.backbone_rows import backbone_rows, input_record

LONGEST = max(weight_records(), key=len)
TRAIN = SimpleNamespace(normalisation=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))


def rows_of(tag: str, normalisation: str, **identity: object) -> dict[str, str]:
    settings = BackboneSettings(
        name="mine", timm_name=tag, img_size=224, checkpoint="untrained", normalisation=normalisation
    )
    known = {"name": "mine", "timm_name": tag, "img_size": 224, "checkpoint": "untrained", "sha256": None}
    return backbone_rows(settings, known | identity, TRAIN)


def test_weights_with_a_hash_are_named_by_tag_and_hash_then_file():
    file = {"checkpoint": "model.safetensors", "sha256": "0123456789abcdef" * 4, "trust": "as pinned"}
    assert rows_of("vit_base_patch16_224.orig_in21k", "none", **file) == {
        "weights": "vit_base_patch16_224.orig_in21k, sha256 0123456789ab",
        "file": "model.safetensors, as pinned",
        "input": "224 px, mean 0, std 1 (none)",
    }


def test_random_weights_have_no_hash():
    assert rows_of("deit_tiny_patch16_224.fb_in1k", "checkpoint") == {
        "weights": "deit_tiny_patch16_224.fb_in1k, untrained",
        "input": "224 px, mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (checkpoint)",
    }


@pytest.mark.parametrize("tag", [LONGEST, "vit_base_patch16_clip_quickgelu_224.openai"])
def test_the_rows_fit_a_terminal(tag):
    file = {"checkpoint": "model.safetensors", "sha256": "0" * 64, "trust": "seen for the first time"}
    assert all(len(f"{label:<10}{text}") <= 80 for label, text in rows_of(tag, "checkpoint", **file).items())


@pytest.mark.parametrize(
    ("rule", "mean", "std"),
    [
        ("checkpoint", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("dataset", [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        ("none", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    ],
)
def test_the_manifest_holds_the_constants_in_force(rule, mean, std):
    settings = BackboneSettings(
        name="mine",
        timm_name="vit_base_patch16_224.orig_in21k",
        img_size=224,
        checkpoint="untrained",
        normalisation=rule,
    )
    assert input_record(settings, TRAIN) == {"rule": rule, "mean": mean, "std": std}
