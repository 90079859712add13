"""Training checkpoints of MoCo v3, DINO and iBOT: the right network is read out of them, and nothing else."""

from __future__ import annotations

import argparse

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny_vits import SIZES, make_model

from cl_prompts.backbones import load_checkpoint
from cl_prompts.backbones.layouts import unwrapped
from cl_prompts.errors import BackboneError


def under(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def moco(right, wrong, distributed="module."):
    """As its pre-training writes it: two encoders with projection heads, and a predictor."""
    head = {"head.0.weight": torch.ones(9, 24), "head.1.running_mean": torch.ones(9)}
    state = under("base_encoder.", right | head) | under("momentum_encoder.", wrong | head)
    state |= {"predictor.0.weight": torch.ones(9, 9), "predictor.1.num_batches_tracked": torch.tensor(3)}
    return {"epoch": 300, "arch": "vit_base", "state_dict": under(distributed, state), "optimizer": {"state": {}}}


def dino(right, wrong, distributed=""):
    """As DINO and iBOT write it: a student in a distributed wrapper, and the teacher that is published."""
    head = {"head.mlp.0.weight": torch.ones(9, 24), "head.last_layer.weight_g": torch.ones(9, 1)}
    teacher = under("backbone.", right) | head
    student = under("module.", under("backbone.", wrong | {"masked_embed": torch.ones(1, 24)}) | head)
    rest = {"optimizer": {"state": {}}, "epoch": 400, "args": argparse.Namespace(arch="vit_base"), "ibot_loss": {}}
    return {"student": student, "teacher": under(distributed, teacher)} | rest


LAYOUTS = {
    "moco": moco,
    "moco in one process": lambda right, wrong: moco(right, wrong, distributed=""),
    "moco, linear evaluation": lambda right, _: {
        "state_dict": under("module.", right | {"head.weight": torch.ones(9, 24), "head.bias": torch.ones(9)})
    },
    "dino": dino,
    "dino, distributed teacher": lambda right, wrong: dino(right, wrong, distributed="module."),
    "ibot, published teacher": lambda right, _: {"state_dict": right | {"masked_embed": torch.ones(1, 24)}},
    "dino, published backbone": lambda right, _: dict(right),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_published_encoder_is_read(layout, tmp_path):
    right, wrong = (make_model("plain", seed=seed).state_dict() for seed in (5, 6))
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(LAYOUTS[layout](right, wrong), path)
    model = VisionTransformer(**SIZES)
    load_checkpoint(model, path)
    assert all(torch.equal(value, right[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("layout", [moco, dino])
def test_a_stranger_beside_the_encoder_is_named(layout, tmp_path):
    state = make_model("plain", seed=5).state_dict()
    checkpoint = layout(state, state)
    inner = checkpoint.get("state_dict") or checkpoint["teacher"]
    inner[("module." if layout is moco else "") + "decoder.weight"] = torch.ones(2)
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    with pytest.raises(BackboneError, match=r"unexpected: decoder\.weight"):
        load_checkpoint(VisionTransformer(**SIZES), tmp_path / "checkpoint.pth")


def test_an_incomplete_encoder_is_named_by_plain_names(tmp_path):
    state = make_model("plain", seed=5).state_dict()
    checkpoint = moco({key: value for key, value in state.items() if key != "norm.weight"}, state)
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    with pytest.raises(BackboneError, match=r"missing: norm\.weight"):
        load_checkpoint(VisionTransformer(**SIZES), tmp_path / "checkpoint.pth")


def test_plain_states_are_left_alone():
    state = {"patch_embed.proj.weight": 1, "backbone_scale": 2}
    assert unwrapped(state) == state
    assert unwrapped({}) == {}
