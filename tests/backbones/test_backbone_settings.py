"""The light half: configuration files, their schema, and the errors a user can make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cl_prompts.backbones import BackboneSettings, normalisation
from cl_prompts.errors import BackboneError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "backbone").glob("*.yaml"))


def read(name, **changes):
    return yaml.safe_load((ROOT / "configs" / "backbone" / f"{name}.yaml").read_text()) | changes


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_have_every_key_and_validate_once_a_file_is_given(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all("  # " in line for line in lines[1:])
    assert list(content) == list(BackboneSettings.model_fields)
    assert content["name"] == path.stem
    if content["checkpoint"] is None:
        with pytest.raises(ValidationError, match=content["timm_name"]):
            BackboneSettings.model_validate(content)
        weights = tmp_path / "w.safetensors"
        weights.touch()
        content["checkpoint"] = str(weights)
    BackboneSettings.model_validate(content)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_input_constants_are_those_of_the_weights(path):
    from timm.models import get_pretrained_cfg, list_pretrained

    content = yaml.safe_load(path.read_text())
    if content["timm_name"]:
        assert content["timm_name"] in list_pretrained()
        published = get_pretrained_cfg(content["timm_name"])
        assert tuple(content["mean"]) == published.mean
        assert tuple(content["std"]) == published.std
        assert content["interpolation"] == published.interpolation
        assert content["img_size"] == published.input_size[-1]


def test_defaults_of_optional_keys_are_those_of_the_files():
    given = read("vit_base", checkpoint="untrained")
    required = {key: given[key] for key, field in BackboneSettings.model_fields.items() if field.is_required()}
    short = BackboneSettings.model_validate(required | {"timm_name": given["timm_name"], "checkpoint": "untrained"})
    assert short == BackboneSettings.model_validate(given)


@pytest.mark.parametrize(
    "changes, key, message",
    [
        ({"checkpoint": "/no/such/file.pth"}, "checkpoint", "no file at '/no/such/file.pth'"),
        ({"checkpoint": "weights.h5"}, "checkpoint", "use one of .safetensors"),
        ({"checkpoint": "bundled"}, "checkpoint", "only for: vit_nano"),
        ({"checkpoint": None}, "checkpoint", "weight file of vit_base_patch16_224.orig_in21k"),
        ({"timm_name": "vit_base_patch16_224"}, "timm_name", "model.weights"),
        ({"timm_name": "hf-hub:timm/some.thing"}, "timm_name", "model.weights"),
        ({"img_size": 100}, "", "use 96"),
        ({"img_size": 0}, "img_size", "greater than or equal to 1"),
        ({"img_size": "224"}, "img_size", "integer"),
        ({"timm_name": None}, "", "set patch_size, embed_dim, depth, num_heads"),
        ({"embed_dim": 100, "num_heads": 3}, "", "embed_dim=100 is not a multiple of num_heads=3"),
        ({"std": [0.5, 0.0, 0.5]}, "std", "above 0"),
        ({"mean": [0.5, 0.5]}, "mean", "Field required"),
        ({"interpolation": "cubic"}, "interpolation", "bicubic"),
        ({"normalisation": "model"}, "normalisation", "imagenet"),
        ({"checkpiont": "untrained"}, "checkpiont", "Extra inputs"),
    ],
)
def test_what_a_user_may_type_wrong(changes, key, message):
    with pytest.raises(ValidationError) as caught:
        BackboneSettings.model_validate(read("vit_base", checkpoint="untrained") | changes)
    (error,) = caught.value.errors()[:1]
    assert message in error["msg"]
    assert (error["loc"][0] if error["loc"] else "") == key
    assert "\n" not in error["msg"]


def test_normalisation_rules():
    own = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    results = {
        rule: normalisation(BackboneSettings.model_validate(read("vit_nano", normalisation=rule)), own)
        for rule in ("checkpoint", "imagenet", "dataset", "none")
    }
    assert results["checkpoint"] == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert results["imagenet"] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert results["dataset"] == own
    assert results["none"] == ((0, 0, 0), (1, 1, 1))
    with pytest.raises(BackboneError, match="use checkpoint, imagenet or none"):
        normalisation(BackboneSettings.model_validate(read("vit_nano", normalisation="dataset")), None)


def test_settings_are_light():
    code = (
        "import sys; import cl_prompts.backbones as b; b.BackboneSettings; b.normalisation;"
        "assert 'FrozenViT' in dir(b); assert not {'torch', 'timm', 'avalanche'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_package_offers_every_name_and_no_other():
    import cl_prompts.backbones as backbones

    assert all(getattr(backbones, name) is not None for name in backbones.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Frozen'"):
        _ = backbones.Frozen
