"""Weight files: what fits loads exactly, what does not fit is named, what is hostile never runs."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from tiny_vits import SIZES, make_images, make_model

from cl_prompts.backbones import BackboneSettings, FrozenViT, build_backbone, load_backbone, load_checkpoint
from cl_prompts.errors import BackboneError


@pytest.fixture
def source():
    return make_model("plain", seed=5)


def empty(**changes):
    return VisionTransformer(**(SIZES | changes))


def save(state, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_round_trip(source, tmp_path, suffix):
    model = empty()
    load_checkpoint(model, save(source.state_dict(), tmp_path / f"w{suffix}"))
    images = make_images(source)
    assert torch.equal(FrozenViT(model)(images), source(images))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: state | {"head.weight": torch.zeros(9, 24), "head.bias": torch.zeros(9)},
        lambda state: state | {"head_dist.weight": torch.zeros(9, 24), "pre_logits.fc.bias": torch.zeros(24)},
    ],
)
def test_wrapped_states_and_classifiers_load(source, tmp_path, wrap):
    model = empty()
    load_checkpoint(model, save(wrap(source.state_dict()), tmp_path / "w.pth"))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(source, tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in source.state_dict().items()}
    model = empty()
    load_checkpoint(model, save(state, tmp_path / "w.safetensors"))
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float())


def test_deit3_layer_scale_names_are_converted(tmp_path):
    source = make_model("layer_scale", seed=5)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in source.state_dict().items()
    }
    model = empty(init_values=1.0)
    load_checkpoint(model, save(state, tmp_path / "w.pth"))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("make, prefix", [("plain", 1), ("no_class_position", 0), ("distilled", 2)])
def test_positions_are_resampled_to_the_input_size(tmp_path, make, prefix):
    source = make_model(make, seed=5)
    build = VisionTransformerDistilled if make == "distilled" else VisionTransformer
    changes = {"no_embed_class": True} if make == "no_class_position" else {}
    model = build(**(SIZES | changes | {"img_size": 24}))
    load_checkpoint(model, save(source.state_dict(), tmp_path / "w.safetensors"))
    expected = resample_abs_pos_embed(source.pos_embed, (6, 6), num_prefix_tokens=prefix)
    assert torch.equal(model.pos_embed, expected)
    assert torch.equal(model.pos_embed[:, :prefix], source.pos_embed[:, :prefix])


def faulty(state, fault):
    state = dict(state)
    return {
        "missing": lambda: state.pop("blocks.1.mlp.fc2.weight") is None or state,
        "missing position": lambda: state.pop("pos_embed") is None or state,
        "unexpected": lambda: state | {"blocks.9.attn.qkv.weight": torch.zeros(2)},
        "unexpected norm": lambda: state | {"fc_norm.weight": torch.zeros(24)},
        "shape": lambda: state | {"blocks.0.norm1.weight": torch.zeros(25)},
        "broadcastable shape": lambda: state | {"blocks.0.norm1.weight": torch.zeros(1)},
        "patch size": lambda: state | {"patch_embed.proj.weight": torch.zeros(24, 3, 8, 8)},
        "positions": lambda: state | {"pos_embed": torch.zeros(1, 19, 24)},
        "position width": lambda: state | {"pos_embed": torch.zeros(1, 26, 12)},
        "position rank": lambda: state | {"pos_embed": torch.zeros(17, 24)},
        "not a number": lambda: state | {"norm.bias": torch.full((24,), torch.nan)},
        "integers": lambda: state | {"norm.bias": torch.zeros(24, dtype=torch.int64)},
        "not weights": lambda: state | {"history": [1, 2]},
    }[fault]()


@pytest.mark.parametrize(
    "fault, named",
    [
        ("missing", "missing: blocks.1.mlp.fc2.weight"),
        ("missing position", "missing: pos_embed"),
        ("unexpected", "unexpected: blocks.9.attn.qkv.weight"),
        ("unexpected norm", "unexpected: fc_norm.weight"),
        ("shape", "blocks.0.norm1.weight (25,) instead of (24,)"),
        ("broadcastable shape", "blocks.0.norm1.weight (1,) instead of (24,)"),
        ("patch size", "patch_embed.proj.weight (24, 3, 8, 8) instead of (24, 3, 4, 4)"),
        ("positions", "pos_embed (1, 19, 24)"),
        ("position width", "pos_embed (1, 26, 12)"),
        ("position rank", "pos_embed (17, 24)"),
        ("not a number", "norm.bias"),
        ("integers", "norm.bias"),
        ("not weights", "history"),
    ],
)
def test_every_misfit_is_an_error_that_names_it_and_loads_nothing(source, tmp_path, fault, named):
    model = empty()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(BackboneError) as caught:
        load_checkpoint(model, save(faulty(source.state_dict(), fault), tmp_path / "some.pth"))
    assert named in str(caught.value)
    assert "some.pth" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_all_faults_are_named_at_once_and_long_lists_are_cut(source, tmp_path):
    with pytest.raises(BackboneError) as caught:
        load_checkpoint(empty(depth=4, num_heads=2, init_values=1.0), save(source.state_dict(), tmp_path / "w.pth"))
    assert "missing: blocks.0.ls1.gamma" in str(caught.value)
    assert " more" in str(caught.value)


def test_distilled_weights_do_not_pass_for_plain_ones(tmp_path):
    with pytest.raises(BackboneError, match="pos_embed"):
        load_checkpoint(empty(), save(make_model("distilled").state_dict(), tmp_path / "w.pth"))


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(BackboneError, match=r"no weight file at .*nowhere\.pth"):
        load_checkpoint(empty(), tmp_path / "nowhere.pth")
    (tmp_path / "w.ckpt").write_bytes(b"x")
    with pytest.raises(BackboneError, match=r"\.safetensors, \.pth"):
        load_checkpoint(empty(), tmp_path / "w.ckpt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
@pytest.mark.parametrize("content", [b"", b"not weights", "half"])
def test_damaged_files(source, tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    if content == "half":
        write_jax(source, path) if suffix == ".npz" else save(source.state_dict(), path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=f"w{suffix} .*get the file again"):
        load_checkpoint(empty(), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_a_page_under_the_name_of_the_file_is_named(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_text("<!doctype html><title>404</title>")
    with pytest.raises(BackboneError, match=r"looks like an HTML page.*get the file again$"):
        load_checkpoint(empty(), path)


def test_a_file_that_is_no_state(tmp_path):
    with pytest.raises(BackboneError, match="cannot be read as weights"):
        load_checkpoint(empty(), save(torch.zeros(3), tmp_path / "w.pth"))


class Hostile:
    """Creates a file when it is unpickled without care."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_does_not_run(source, tmp_path, legacy):
    mark = tmp_path / "ran"
    path = tmp_path / "w.pth"
    torch.save({"state_dict": source.state_dict(), "x": Hostile(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BackboneError, match="cannot be read as weights"):
        load_checkpoint(empty(), path)
    path.write_bytes(pickle.dumps(Hostile(mark)))
    with pytest.raises(BackboneError, match="cannot be read as weights"):
        load_checkpoint(empty(), path)
    np.savez(tmp_path / "w.npz", **{"embedding/kernel": np.array([Hostile(mark)], dtype=object)})
    with pytest.raises(BackboneError, match="cannot be read as weights"):
        load_checkpoint(empty(), tmp_path / "w.npz")
    assert not mark.exists()


def jax_arrays(model, style):
    """The model in the Flax layout, written from the layout's description, not from any loader."""
    older = style == "older"
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    heads, width = SIZES["num_heads"], SIZES["embed_dim"]
    attention, mlp, second = (1, 3, 2) if older else (0, 0, 1)
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding" if older else "pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": np.zeros((width, 7), np.float32),
        "head/bias": np.zeros(7, np.float32),
    }
    blocks = []
    for index in range(len(model.blocks)):
        get = lambda name, index=index: state[f"blocks.{index}.{name}"]  # noqa: E731
        block = {}
        for number, norm in ((0, "norm1"), (second, "norm2")):
            block[f"LayerNorm_{number}/scale"] = get(f"{norm}.weight")
            block[f"LayerNorm_{number}/bias"] = get(f"{norm}.bias")
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            start = f"MultiHeadDotProductAttention_{attention}/{name}"
            block[f"{start}/kernel"] = get("attn.qkv.weight")[rows].T.reshape(width, heads, -1)
            block[f"{start}/bias"] = get("attn.qkv.bias")[rows].reshape(heads, -1)
        start = f"MultiHeadDotProductAttention_{attention}/out"
        block[f"{start}/kernel"] = get("attn.proj.weight").T.reshape(heads, -1, width)
        block[f"{start}/bias"] = get("attn.proj.bias")
        for number in (0, 1):
            block[f"MlpBlock_{mlp}/Dense_{number}/kernel"] = get(f"mlp.fc{number + 1}.weight").T
            block[f"MlpBlock_{mlp}/Dense_{number}/bias"] = get(f"mlp.fc{number + 1}.bias")
        blocks.append(block)
    if style == "stacked":
        for name in blocks[0]:
            arrays[f"Transformer/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
    else:
        for index, block in enumerate(blocks):
            arrays |= {f"Transformer/encoderblock_{index}/{name}": array for name, array in block.items()}
    return arrays if older else {f"params/{name}": array for name, array in arrays.items()}


def write_jax(model, path, style="older", change=lambda arrays: arrays):
    np.savez(path, **change(jax_arrays(model, style)))
    return path


@pytest.mark.parametrize("style", ["older", "big_vision", "stacked"])
def test_jax_files_load(source, tmp_path, style):
    model = empty()
    load_checkpoint(model, write_jax(source, tmp_path / "w.npz", style))
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    larger = empty(img_size=32)
    load_checkpoint(larger, tmp_path / "w.npz")
    assert larger.pos_embed.shape == (1, 65, 24)
    assert torch.equal(larger.pos_embed[:, :1], source.pos_embed[:, :1])


def without(*names):
    return lambda arrays: {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    "change, named",
    [
        (
            without("Transformer/encoderblock_1/LayerNorm_2/bias"),
            "missing: Transformer/encoderblock_1/LayerNorm_2/bias",
        ),
        (without("cls"), "missing: cls"),
        (
            lambda a: a | {"Transformer/encoderblock_3/LayerNorm_0/bias": np.zeros(24)},
            "unexpected: Transformer/encoderbl",
        ),
        (lambda a: a | {"reg": np.zeros((1, 4, 24))}, "unexpected: reg"),
        (lambda a: a | {"embedding/bias": np.zeros(1, np.float32)}, "embedding/bias (1,) instead of (24,)"),
        (lambda a: a | {"embedding/kernel": np.zeros((8, 8, 3, 24), np.float32)}, "embedding/kernel (8, 8, 3, 24)"),
        (
            lambda a: a | {"Transformer/posembed_input/pos_embedding": np.zeros((1, 19, 24))},
            "pos_embedding (1, 19, 24)",
        ),
        (lambda a: a | {"embedding/bias": np.full(24, np.inf, np.float32)}, "patch_embed.proj.bias"),
        (lambda a: {"some": np.zeros(3)}, "missing: "),
    ],
)
def test_jax_misfits_are_named(source, tmp_path, change, named):
    with pytest.raises(BackboneError) as caught:
        load_checkpoint(empty(), write_jax(source, tmp_path / "w.npz", change=change))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"init_values": 1.0}, "fits plain Vision Transformers only"),
        ({"qk_norm": True}, "no weights for .*q_norm.*fits plain Vision Transformers only"),
        ({"pos_embed": "none"}, "fits plain Vision Transformers only"),
        ({"reg_tokens": 2, "no_embed_class": True}, r"pos_embedding \(1, 17, 24\)"),
        ({"fc_norm": True}, "unexpected: Transformer/encoder_norm"),
    ],
)
def test_jax_files_cannot_fill_other_makes(source, tmp_path, changes, named):
    with pytest.raises(BackboneError, match=rf"w\.npz.*{named}"):
        load_checkpoint(empty(**changes), write_jax(source, tmp_path / "w.npz"))


def tiny_settings(**changes):
    given = {
        "name": "tiny",
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 3,
        "checkpoint": "untrained",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    return BackboneSettings.model_validate(given | changes)


def test_untrained_is_announced_and_depends_on_its_seed_alone():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, again, other = (build_backbone(tiny_settings(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [backbone.model.blocks[0].attn.qkv.weight for backbone in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.untrained
    assert "UNTRAINED BACKBONE: tiny" in first.notice
    assert first.identity["checkpoint"] == "untrained"
    assert first.identity["sha256"] is None


def test_build_from_a_file_records_its_identity(source, tmp_path):
    path = save(source.state_dict(), tmp_path / "mine.safetensors")
    torch.manual_seed(11)
    state = torch.get_rng_state()
    backbone = build_backbone(tiny_settings(checkpoint=str(path)), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    images = make_images(source)
    assert torch.equal(backbone(images), source(images))
    assert not backbone.untrained
    assert backbone.identity == {
        "name": "tiny",
        "timm_name": None,
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 3,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "checkpoint": "mine.safetensors",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "trust": "own file",
        "revision": None,
    }


def test_a_file_that_vanishes_after_validation_is_an_error(source, tmp_path):
    path = save(source.state_dict(), tmp_path / "mine.safetensors")
    settings = tiny_settings(checkpoint=str(path))
    path.unlink()
    with pytest.raises(BackboneError, match="no weight file"):
        build_backbone(settings, seed=1)


def timm_settings(**changes):
    sizes = {"patch_size": None, "embed_dim": None, "depth": None, "num_heads": None, "img_size": 160}
    return tiny_settings(**(sizes | changes))


def test_timm_names_are_built_without_network(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    first = build_backbone(timm_settings(timm_name="test_vit.r160_in1k"), seed=3)
    assert first.model.num_classes == 0
    path = save(first.model.state_dict(), tmp_path / "w.safetensors")
    second = build_backbone(timm_settings(timm_name="test_vit.r160_in1k", checkpoint=str(path)), seed=4)
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(first(images), second(images))


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"timm_name": "vit_base_patch16_224.orig_in12k", "img_size": 224}, "vit_base_patch16_224.orig_in21k"),
        ({"timm_name": "resnet10t.c3_in1k"}, "what works"),
        ({"timm_name": "eva02_tiny_patch14_224.mim_in22k", "img_size": 224}, "what works"),
        ({"timm_name": "test_vit.r160_in1k", "num_heads": 7}, "cannot be built with {'img_size': 160, 'num_heads': 7}"),
    ],
)
def test_unknown_and_unsupported_timm_names(changes, named):
    with pytest.raises(BackboneError) as caught:
        build_backbone(timm_settings(**changes), seed=1)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bundled_weights_are_the_ones_of_the_model_card():
    settings = tiny_settings(
        name="vit_nano", img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3, checkpoint="bundled"
    )
    backbone = build_backbone(settings, seed=1)
    card = Path(__import__("cl_prompts.backbones", fromlist=["x"]).__file__).parent / "weights" / "vit_nano.md"
    assert f"`{backbone.identity['sha256']}`" in card.read_text()
    assert f"{sum(parameter.numel() for parameter in backbone.parameters()):,}" in card.read_text()
    assert not backbone.untrained
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 192)
    larger = build_backbone(settings.model_copy(update={"img_size": 64}), seed=1)
    assert larger(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


def test_a_mistyped_config_name_gets_a_guess():
    with pytest.raises(BackboneError, match=r"backbone 'vit_nanno' is unknown; did you mean vit_nano\? choose one of "):
        load_backbone("vit_nanno")


def test_a_wrong_value_is_told_in_our_words():
    with pytest.raises(BackboneError, match="backbone 'vit_nano'") as error:
        load_backbone("vit_nano", img_size=33)
    assert "Value error" not in str(error.value)
    assert "\n" not in str(error.value)
