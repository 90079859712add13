"""The table of published weights: against timm's own registry, and what is looked up in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from pydantic import ValidationError
from tiny_vits import make_images

from cl_prompts.backbones.frozen_vit import FrozenViT
from cl_prompts.backbones.records import (
    RECORDS,
    candidates,
    find_record,
    list_unpinned,
    pin_key,
    read_records,
    record_lines,
    weight_records,
)
from scenarios.pins import Pins

TAGS = list(weight_records())
SERVED = [tag for tag in TAGS if weight_records()[tag].hub is not None]
MODELS = sorted({tag.split(".")[0] for tag in TAGS})


def test_every_tag_stands_once_in_the_file():
    keys = [line.partition(":")[0] for line in RECORDS.read_text(encoding="utf-8").splitlines() if line[:1].isalpha()]
    assert keys == TAGS
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("tag", SERVED)
def test_a_record_says_what_timm_says(tag):
    record, published = weight_records()[tag], timm.get_pretrained_cfg(tag)
    assert tag in timm.list_pretrained()
    assert record.hub.repository == published.hf_hub_id
    # Without a name of its own timm asks for this file first.
    assert published.hf_hub_filename is None
    assert record.hub.file == "model.safetensors"
    assert (record.input.mean, record.input.std) == (tuple(published.mean), tuple(published.std))
    assert (record.input.interpolation, record.input.crop_pct) == (published.interpolation, published.crop_pct)
    assert (3, record.input.size, record.input.size) == published.input_size
    assert published.crop_mode == "center"
    assert record.licence == published.license


def test_weights_by_hand_belong_to_models_of_timm_and_are_unknown_to_its_registry():
    by_hand = [tag for tag in TAGS if tag not in SERVED]
    assert {tag.split(".")[1].split("_")[0] for tag in by_hand} == {"ibot", "mocov3"}
    for tag in by_hand:
        assert tag not in timm.list_pretrained()
        assert timm.is_model(tag.split(".")[0])


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_the_table_is_frozen_as_timm_computes_it(model):
    # Narrow and of four patches, but every switch as timm builds this model.
    torch.manual_seed(3)
    side = 2 * int(model.split("patch")[1].split("_")[0])
    built = timm.create_model(model, pretrained=False, num_classes=0, img_size=side, embed_dim=24, num_heads=3).eval()
    images = make_images(built)
    with torch.no_grad():
        expected = built.forward_head(built.forward_features(images), pre_logits=True)
    frozen = FrozenViT(built)
    assert torch.equal(frozen.query(images, trim=False), expected)
    torch.testing.assert_close(frozen.query(images), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(frozen(images), expected)
    assert {frozen.depth} == {weight_records()[tag].depth for tag in TAGS if tag.split(".")[0] == model}


def test_only_the_small_model_of_moco_has_other_heads():
    others = {tag: record.num_heads for tag, record in weight_records().items() if record.num_heads is not None}
    assert others == {"vit_small_patch16_224.mocov3_in1k": 12}
    assert timm.create_model("vit_small_patch16_224", depth=1).blocks[0].attn.num_heads != 12


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vit_tiny_patch16_224", ["vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"]),
        ("vit_tiny_patch16_224.augrge_in21k", [tag for tag in TAGS if tag.startswith("vit_tiny_patch16_224.")]),
        ("deit_tinny_patch16_224", ["deit_tiny_patch16_224.fb_in1k"]),
        ("resnet", []),
    ],
)
def test_candidates_are_the_weights_of_that_model_or_what_is_close(name, wanted):
    found = candidates(name)
    assert found[: len(wanted)] == wanted
    assert bool(found) == bool(wanted)
    lines = record_lines(found)
    assert [line.split()[0] for line in lines] == found
    assert all(weight_records()[tag].about in line for tag, line in zip(found, lines, strict=True))


def test_papers_and_their_weights():
    used = {tag: " ".join(record.used_by) for tag, record in weight_records().items()}
    base = "vit_base_patch16_224."
    assert "MVP" in used[base + "orig_in21k"]
    assert "L2P and DualPrompt (PyTorch" in used[base + "orig_in21k"]
    assert "CODA-Prompt" in used[base + "augreg_in21k_ft_in1k"]
    assert "RanPAC" in used[base + "augreg_in21k"]
    # What the bare name means today is in no published code of these.
    assert used[base + "augreg2_in21k_ft_in1k"] == ""


def test_unpinned_are_the_tags_without_a_recorded_hash_until_one_is_seen(tmp_path):
    pins = Pins(tmp_path / "pins.json")
    unknown = [tag for tag in TAGS if weight_records()[tag].sha256 is None]
    assert list_unpinned(pins) == unknown
    pins.check(pin_key(unknown[3]), "a" * 64, what="a file", advice="nothing")
    assert list_unpinned(pins) == unknown[:3] + unknown[4:]
    assert find_record("no_such.tag") is None
    assert find_record(None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "123"},
        {"hub": {"repository": "timm/x", "revision": "main", "file": "f"}},
        {"hub": None},
        {"by_hand": {"page": "https://example.org", "file": "f"}},
        {"input": {"size": 224}},
        {"unknown": 1},
    ],
)
def test_a_damaged_table_is_refused(change, tmp_path):
    start = RECORDS.read_text(encoding="utf-8").partition("used_by: []\n")[0] + "used_by: []\n"
    ((tag, entry),) = yaml.safe_load(start).items()
    path = tmp_path / "records.yaml"
    path.write_text(yaml.safe_dump({tag: entry}))
    assert read_records(path) == {tag: weight_records()[tag]}
    path.write_text(yaml.safe_dump({tag: entry | change}))
    with pytest.raises(ValidationError):
        read_records(path)


def test_the_table_and_the_hub_are_light():
    code = (
        "import sys; from cl_prompts.backbones.records import list_unpinned, weight_records; weight_records();"
        "from cl_prompts.backbones.hub import Hub;"
        "assert not {'torch', 'timm', 'avalanche', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
