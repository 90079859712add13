"""The light half: configuration files, their schema, and the errors a user can make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cl_prompts.backbones import BackboneSettings, normalisation
from cl_prompts.backbones.records import find_record, weight_records
from cl_prompts.errors import BackboneError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "backbone").glob("*.yaml"))


HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


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
    record = find_record(content["timm_name"])
    if record is not None and record.by_hand is not None:
        with pytest.raises(ValidationError, match=f"is not on the hub; get the file .* from {record.page}"):
            BackboneSettings.model_validate(content)
        weights = tmp_path / "w.pth.tar"
        weights.touch()
        content["checkpoint"] = str(weights)
    BackboneSettings.model_validate(content)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_input_constants_of_published_weights_are_those_of_their_record(path):
    content = yaml.safe_load(path.read_text())
    if content["timm_name"]:
        record = find_record(content["timm_name"])
        assert [content[key] for key in ("mean", "std", "interpolation")] == [None] * 3
        settings = BackboneSettings.model_validate(content | {"checkpoint": "untrained"})
        assert settings.mean == record.input.mean
        assert settings.std == record.input.std
        assert settings.interpolation == record.input.interpolation


def test_constants_that_are_given_win_over_the_record():
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    settings = BackboneSettings.model_validate(read("vit_base", **given))
    assert (settings.mean, settings.std, settings.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")


def test_a_model_outside_the_table_needs_its_constants_and_its_file():
    other = read("vit_base", timm_name="vit_base_patch16_224.mae", checkpoint="untrained")
    with pytest.raises(ValidationError) as caught:
        BackboneSettings.model_validate(other)
    assert {error["loc"][0] for error in caught.value.errors()} == {"mean", "std"}
    given = other | {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert BackboneSettings.model_validate(given).interpolation == "bicubic"
    with pytest.raises(ValidationError, match=r"there is no record of vit_base_patch16_224\.mae; get its file"):
        BackboneSettings.model_validate(given | {"checkpoint": "hub"})


def test_a_name_without_a_tag_lists_every_weights_of_that_model_in_a_line_each():
    with pytest.raises(ValidationError) as caught:
        BackboneSettings.model_validate(read("vit_base", timm_name="vit_base_patch16_224"))
    (error,) = caught.value.errors()
    first, *lines = error["msg"].splitlines()
    assert first == "Value error, names no weights, and several belong to such a name; write one of"
    wanted = [tag for tag in weight_records() if tag.startswith("vit_base_patch16_224.")]
    assert [line.split()[0] for line in lines] == wanted
    assert len(wanted) >= 8
    (papers,) = (line for line in lines if "augreg_in21k_ft_in1k" in line)
    assert "CODA-Prompt" in papers
    assert "MULTI-LANE" in papers


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
        ({"checkpoint": "hbu"}, "checkpoint", "hub, bundled or untrained"),
        ({"checkpoint": "bundled"}, "checkpoint", "only for: vit_nano"),
        ({"checkpoint": "bundled", "name": "vit_nano"}, "checkpoint", "not those of vit_base_patch16_224.orig_in21k"),
        ({"checkpoint": None}, "checkpoint", "valid string"),
        ({"timm_name": None}, "mean", "must be given where timm_name is null"),
        ({"timm_name": "hf-hub:timm/some.thing"}, "timm_name", "model.weights"),
        ({"img_size": 100}, "", "use 96"),
        ({"img_size": 0}, "img_size", "greater than or equal to 1"),
        ({"img_size": "224"}, "img_size", "integer"),
        ({"timm_name": None} | HALVES, "", "set patch_size, embed_dim, depth, num_heads"),
        ({"timm_name": None, "checkpoint": "hub"} | HALVES, "checkpoint", "a plain ViT is on no hub"),
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
