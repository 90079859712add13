"""MISA against its published code, against slow loops, and its two variants, warm start and declarations."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import slow_mvp
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from toys import CLASSES, Pictures, learned, make_strategy, stream_of, train

from cl_prompts.errors import StrategyError
from cl_prompts.masks import ClassTracker
from cl_prompts.prompts.files import load_prompts, save_prompts
from cl_prompts.strategies import MISASettings, TrainingBatch
from cl_prompts.strategies.misa import MISAMethod

CASES = sorted((Path(__file__).parent.parent / "golden").glob("misa_dualprompt_*.npz"))
NAMES = {"general_prompt": "g_prompts", "expert_prompts": "e_prompts", "keys": "e_key"}


def relative(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """Largest deviation divided by the largest value; absolute where all values are zero."""
    theirs = torch.from_numpy(np.asarray(theirs)).double()
    scale = theirs.abs().max()
    return float((ours.detach().double() - theirs).abs().max() / (scale if scale > 0 else 1))


def method_of(stored, backbone, variant: str) -> MISAMethod:
    general, expert = (int(value) for value in stored["cfg_len_g_e"])
    settings = MISASettings(
        variant=variant,
        pool_size=len(stored["w/e_key"]),
        general_length=general,
        general_layers=tuple(stored["cfg_pos_g"].tolist()),
        expert_length=expert,
        expert_layers=tuple(stored["cfg_pos_e"].tolist()),
        insertion=str(stored["cfg_func"]),
    )
    backbone = copy.deepcopy(backbone)
    method = MISAMethod(backbone, len(stored["w/head.bias"]), settings, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for ours, theirs in NAMES.items():
            getattr(method.prompts, ours).copy_(torch.from_numpy(stored[f"w/{theirs}"]))
        method.head.weight.copy_(torch.from_numpy(stored["w/head.weight"]))
        method.head.bias.copy_(torch.from_numpy(stored["w/head.bias"]))
    if variant == "released":
        method.sessions.fill_(int(stored["cfg_task_id"]) + 1)
    return method


def test_golden_cases_are_here():
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem.removeprefix("misa_dualprompt_"))
def test_step_matches_published_code(path, shared_backbone):
    stored = np.load(path)
    in_training = bool(stored["cfg_train"])
    # The losses of evaluation are there for their gradients; its choice among all keys is that of the paper.
    method = method_of(stored, shared_backbone, "released" if in_training else "paper")
    images, targets = torch.from_numpy(stored["in/x"]).double(), torch.from_numpy(stored["in/y"])
    assert relative(method.query(images), stored["query"]) < 1e-9

    allowed = torch.from_numpy(stored["mask"] == 0)
    if in_training:
        assert torch.equal(ClassTracker(len(allowed)).allowed("batch", targets), allowed)
    outputs = method.training_outputs(TrainingBatch(images, targets, allowed))
    rows = torch.from_numpy(stored["prompt_row_actually_used"])
    assert torch.equal(method.usage_counts.long(), torch.bincount(rows, minlength=len(method.usage_counts)))
    assert relative(outputs.losses["prompt"], stored["similarity_mean"]) < 1e-9
    logits = torch.from_numpy(stored["logits"]).masked_fill(~allowed, 0).numpy()
    assert relative(outputs.logits.masked_fill(~allowed, 0), logits) < 1e-9
    if not in_training:
        assert relative(method(images), stored["logits"]) < 1e-9
    total = outputs.losses["classification"] + outputs.losses["prompt"]
    total.backward()
    assert relative(total, stored["loss"]) < 1e-9
    for ours, theirs in NAMES.items():
        assert relative(getattr(method.prompts, ours).grad, stored[f"grad/{theirs}"]) < 1e-9
    assert relative(method.head.weight.grad, stored["grad/fc.weight"]) < 1e-9
    assert relative(method.head.bias.grad, stored["grad/fc.bias"]) < 1e-9


# --- slow loops -----------------------------------------------------------------------------------------------------


def slow_step(method, images, targets, allowed, session):
    """Loss of one image after another; `session` None: all keys compete, else the released index in a slice."""
    vit, settings, prompts = method.backbone.model, method.settings, method.prompts
    total = 0
    for image, target in zip(images, targets.tolist(), strict=True):
        with torch.no_grad():
            rows = slow_mvp.embed(vit, image)
            for block in vit.blocks:
                rows = block(rows[None])[0]
            query = vit.norm(rows)[0]
        distances = [slow_mvp.cosine_distance(query, key) for key in prompts.keys]
        if session is None:
            key = row = min(range(len(distances)), key=lambda index: float(distances[index].detach()))
        else:
            key, row = session, 0
        rows = slow_mvp.embed(vit, image)
        for index in range(len(vit.blocks)):
            pieces = []
            for flat, layers, length in (
                (prompts.general_prompt[0], settings.general_layers, settings.general_length),
                (prompts.expert_prompts[row], settings.expert_layers, settings.expert_length),
            ):
                if index in layers:
                    place = layers.index(index)
                    if settings.insertion == "prompt_tuning":
                        pieces.append(flat[place * length : (place + 1) * length] + vit.pos_embed[0, 0])
                    else:
                        pieces.append(flat[2 * place * length : 2 * (place + 1) * length].split(length))
            if settings.insertion == "prompt_tuning":
                rows = slow_mvp.block_with_tokens(vit, index, rows, pieces)
            else:
                rows = slow_mvp.block_with_prefixes(vit, index, rows, [k for k, _ in pieces], [v for _, v in pieces])
        logits = method.head.weight @ vit.norm(rows)[0] + method.head.bias
        total = total + torch.logsumexp(logits[allowed], 0) - logits[target] + distances[key]
    return total / len(targets)


@pytest.mark.parametrize("insertion", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_step_equals_slow_loops(variant, insertion, short_backbone):
    settings = MISASettings(
        variant=variant,
        pool_size=5,
        general_length=2,
        general_layers=(0,),
        expert_length=3,
        expert_layers=(0, 2),
        insertion=insertion,
    )
    backbone = copy.deepcopy(short_backbone)
    method = MISAMethod(backbone, CLASSES, settings, torch.Generator().manual_seed(3)).double()
    for _ in range(3):
        method.begin_session(None)
    images, targets = Pictures([0, 3, 5, 1]).tensors().double(), torch.tensor([0, 3, 5, 1])
    allowed = torch.tensor([True, True, False, True, True, True])
    trained = [*method.prompts.parameters(), *method.head.parameters()]

    expected = slow_step(method, images, targets, allowed, None if variant == "paper" else 2)
    reference = torch.autograd.grad(expected, trained)
    total = sum(method.training_outputs(TrainingBatch(images, targets, allowed)).losses.values())
    torch.testing.assert_close(total, expected, rtol=1e-11, atol=1e-11)
    for ours, theirs in zip(torch.autograd.grad(total, trained), reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def touched(rows: torch.Tensor) -> list[int]:
    return rows.flatten(1).abs().sum(1).nonzero().flatten().tolist()


def test_released_pulls_the_key_of_its_session_and_trains_prompt_zero(short_backbone):
    settings = {"variant": "released", "expert_layers": (2,), "pool_size": 4, "expert_length": 2}
    strategy = make_strategy("misa", short_backbone, settings=settings)
    before = learned(strategy)
    train(strategy, stream_of([[0, 1, 0, 1], [2, 3, 2, 3]]))
    after = learned(strategy)
    moved = {name: touched(after[f"prompts.{name}"] - before[f"prompts.{name}"]) for name in NAMES}
    assert moved["keys"] == [0, 1]
    assert moved["expert_prompts"] == [0]
    assert strategy.model.prompt_usage().tolist() == [2 * 8, 0, 0, 0]


def test_paper_trains_the_prompts_of_the_keys_it_pulls(short_backbone):
    settings = {"expert_layers": (2,), "pool_size": 4, "expert_length": 2}
    strategy = make_strategy("misa", short_backbone, settings=settings)
    with torch.no_grad():
        # Spread around the queries of these images, so that several are nearest to some.
        queries = strategy.model.query(Pictures([0, 1, 2, 3]).tensors())
        strategy.model.prompts.keys.copy_(queries - queries.mean(0))
    before = learned(strategy)
    train(strategy, stream_of([[0, 1, 2, 3]]))
    after = learned(strategy)
    moved = {name: touched(after[f"prompts.{name}"] - before[f"prompts.{name}"]) for name in NAMES}
    chosen = strategy.model.prompt_usage().nonzero().flatten().tolist()
    assert moved["keys"] == moved["expert_prompts"] == chosen
    assert len(chosen) > 1


def test_released_runs_out_of_keys_with_one_line(short_backbone):
    settings = {"variant": "released", "expert_layers": (2,), "pool_size": 1}
    strategy = make_strategy("misa", short_backbone, settings=settings)
    with pytest.raises(StrategyError, match=r"pool_size=1: .* session 2 begins; .* variant=paper"):
        train(strategy, stream_of([[0, 1], [2, 3]]))


# --- warm start and declarations ------------------------------------------------------------------------------------


def warm_file(path: Path, strategy, **changes) -> dict[str, torch.Tensor]:
    shapes = {name: tensor for name, tensor in strategy.model.prompts.named_parameters() if name != "keys"}
    noise = torch.Generator().manual_seed(8)
    tensors = {name: torch.randn(tensor.shape, generator=noise) for name, tensor in shapes.items()} | changes
    save_prompts(path, tensors, {"recipe": "{}"})
    return tensors


def test_a_warm_start_replaces_the_prompts_alone_and_is_not_read_again(short_backbone, tmp_path):
    path = tmp_path / "warm.safetensors"
    shape = {"expert_layers": (2,), "pool_size": 4, "expert_length": 2}
    cold = make_strategy("misa", short_backbone, settings=shape)
    tensors = warm_file(path, cold)
    warm = make_strategy("misa", short_backbone, settings=shape | {"warm_start": str(path)})
    assert warm.needs.extra_data
    warm.model.begin_session(None)
    for name, tensor in tensors.items():
        assert torch.equal(getattr(warm.model.prompts, name), tensor)
    assert torch.equal(warm.model.prompts.keys, cold.model.prompts.keys)
    assert torch.equal(warm.model.head.weight, cold.model.head.weight)
    assert any(parameter.requires_grad for parameter in warm.model.prompts.parameters())

    path.unlink()
    warm.model.begin_session(None)
    fresh = make_strategy("misa", short_backbone, settings=shape | {"warm_start": str(path)})
    with pytest.raises(StrategyError, match=r"strategy.warm_start=.*there is no such file"):
        train(fresh, stream_of([[0, 1]]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"expert_prompts": torch.zeros(4, 3, 24)}, r"expert_prompts 4x3x24, general_prompt .* need"),
        ({"keys": torch.zeros(4, 24)}, "holds expert_prompts .*, keys 4x24"),
        ({"general_prompt": torch.full((1, 20, 24), torch.inf)}, "not finite"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_change_nothing(changes, message, short_backbone, tmp_path):
    path = tmp_path / "warm.safetensors"
    settings = {"expert_layers": (2,), "pool_size": 4, "expert_length": 2, "general_length": 10}
    strategy = make_strategy("misa", short_backbone, settings=settings | {"warm_start": str(path)})
    warm_file(path, strategy, **changes)
    before = learned(strategy)
    with pytest.raises(StrategyError, match=message) as caught:
        strategy.model.begin_session(None)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in learned(strategy).items())


def test_a_damaged_file_is_one_line_and_metadata_come_back(tmp_path):
    path = tmp_path / "warm.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(StrategyError, match="cannot be read as safetensors"):
        load_prompts(str(path), {"a": torch.zeros(2)}, key="strategy.warm_start")
    save_file({"a": torch.ones(2)}, path, metadata={"images": "abc"})
    assert load_prompts(str(path), {"a": torch.zeros(2)}, key="strategy.warm_start") == {"images": "abc"}


def test_declarations():
    plain = MISASettings()
    assert (plain.declared_needs().boundaries, plain.declared_needs().extra_data) == ("none", False)
    assert any("train_mask=batch" in sentence for sentence in plain.deviations())
    assert any(sentence.startswith("warm_start=none") for sentence in plain.deviations())
    released = MISASettings(variant="released", warm_start="prompts.safetensors")
    assert (released.declared_needs().boundaries, released.declared_needs().extra_data) == ("required", True)
    assert any("prompt 0" in sentence for sentence in released.deviations())
    assert any("outside the stream" in sentence for sentence in released.deviations())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"warm_start": "prompts.pt"}, "warm_start=prompts.pt: give a file that ends in .safetensors"),
        ({"expert_layers": (2, 2)}, r"expert_layers=\[2,2\]: names a block twice"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings, message):
    with pytest.raises(ValidationError, match=message):
        MISASettings(**settings)


def test_a_backbone_without_a_position_for_its_class_token_takes_prefixes(short_backbone, make_vit):
    from timm.models import VisionTransformer

    from cl_prompts.backbones import FrozenViT

    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0, no_embed_class=True
    )
    for insertion in ("prompt_tuning", "prefix_tuning"):
        settings = MISASettings(expert_layers=(2,), insertion=insertion)
        arguments = (FrozenViT(model), CLASSES, settings, torch.Generator().manual_seed(0))
        if insertion == "prefix_tuning":
            assert MISAMethod(*arguments)(Pictures([0]).tensors()).shape == (1, CLASSES)
        else:
            with pytest.raises(StrategyError, match="lacks; set it to prefix_tuning"):
                MISAMethod(*arguments)
