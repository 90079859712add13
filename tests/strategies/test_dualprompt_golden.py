"""DualPrompt against the outputs of four published codes: PyTorch port, official JAX, Si-Blurry, CODA-Prompt's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_values import columns, deviation, images_of, load

from cl_prompts.strategies import DualPromptSettings, TrainingBatch
from cl_prompts.strategies.dualprompt import DualPromptMethod

GOLDEN = Path(__file__).parent.parent / "golden"
# The JAX model has a step in single precision.
TOLERANCE = {"port": 1e-9, "jax": 1e-6}
WITH_TASKS = sorted([*GOLDEN.glob("dualprompt_port_*.npz"), *GOLDEN.glob("dualprompt_jax_*.npz")])
SI_BLURRY = sorted(GOLDEN.glob("dualprompt_siblurry_*.npz"))


def general_rows(array):
    """(blocks, 2, length, heads, head width) as one flat row (1, blocks * 2 * length, width)."""
    return array.reshape(1, -1, array.shape[-1] * array.shape[-2])


def expert_rows(array):
    """(blocks, 2, pool, length, heads, head width) as flat rows (pool, blocks * 2 * length, width)."""
    return np.moveaxis(array, 2, 0).reshape(array.shape[2], -1, array.shape[-1] * array.shape[-2])


def build(backbone, stored, settings, **tensors):
    method = DualPromptMethod(backbone, 12, settings, torch.Generator().manual_seed(0))
    return load(method, stored, **{f"prompts.{name}": value for name, value in tensors.items()})


def gradients_match(method, stored, tolerance, **gradients):
    ours = {f"prompts.{name}": value for name, value in gradients.items()}
    if "grad/head.weight" in stored:
        ours |= {name: stored[f"grad/{name}"] for name in ("head.weight", "head.bias")}
    named = dict(method.named_parameters())
    for name, value in ours.items():
        assert deviation(named[name].grad, value) < tolerance


@pytest.mark.parametrize("path", WITH_TASKS, ids=lambda path: path.stem)
def test_codes_with_tasks_are_matched(path, golden_backbones):
    stored = np.load(path)
    code = path.stem.split("_")[1]
    tolerance = TOLERANCE[code]
    general, expert = (int(value) for value in stored["cfg_len_g_e"])
    settings = DualPromptSettings(
        variant="released" if code == "port" and not stored["cfg_axes_fixed"] else "paper",
        pool_size=len(stored["w/e_prompt_key"]),
        general_length=general,
        expert_length=expert,
        expert_layers=(2, 3),
        key_loss=float(stored["cfg_pull_coeff"]),
        choice="image",
    )
    method = build(
        golden_backbones["tanh" if code == "jax" else "exact"],
        stored,
        settings,
        general_prompt=general_rows(stored["w/g_prompt"]),
        expert_prompts=expert_rows(stored["w/e_prompt"]),
        keys=stored["w/e_prompt_key"],
    )
    images = images_of(stored)
    query = method.query(images)
    assert deviation(query, stored["query"]) < tolerance
    similarity = method._similarity(query)[:, 0]
    assert deviation(similarity, stored["similarity" if code == "port" else "sim"]) < tolerance
    chosen = torch.from_numpy(stored["prompt_idx"]).long()
    assert deviation(similarity.gather(1, chosen).mean(), stored["reduce_sim"]) < tolerance
    features = method._features(method.backbone.tokens(images), chosen)
    assert deviation(features, stored["pre_logits"]) < tolerance
    if not stored["cfg_train"]:
        assert torch.equal(similarity.argmax(1, keepdim=True), chosen)
        assert deviation(method.eval()(images), stored["logits"]) < tolerance
        return
    method.sessions.fill_(int(stored["cfg_task_id"]) + 1)
    allowed = columns(stored["cfg_train_mask_classes"])
    outputs = method.training_outputs(TrainingBatch(images, torch.from_numpy(stored["in/y"]), allowed))
    loss = sum(outputs.losses.values())
    loss.backward()
    assert deviation(outputs.logits[:, allowed], stored["logits"][:, allowed]) < tolerance
    assert deviation(loss, stored["loss"]) < tolerance
    gradients_match(
        method,
        stored,
        tolerance,
        general_prompt=general_rows(stored["grad/g_prompt"]),
        expert_prompts=expert_rows(stored["grad/e_prompt"]),
        keys=stored["grad/e_prompt_key"],
    )


@pytest.mark.parametrize("path", SI_BLURRY, ids=lambda path: path.stem)
def test_the_si_blurry_code_is_matched(path, golden_backbones):
    stored = np.load(path)
    general, expert = (int(value) for value in stored["cfg_len_g_e"])
    flat = (-1, stored["w/e_key"].shape[1])
    pool = len(stored["w/e_key"])
    settings = DualPromptSettings(
        pool_size=pool,
        general_length=general,
        general_layers=tuple(stored["cfg_pos_g"].tolist()),
        expert_length=expert,
        expert_layers=tuple(stored["cfg_pos_e"].tolist()),
        insertion=str(stored["cfg_func"]),
        key_loss=float(stored["cfg_lambda"]),
    )
    method = build(
        golden_backbones["exact"],
        stored,
        settings,
        general_prompt=stored["w/g_prompts"].reshape(1, *flat),
        expert_prompts=stored["w/e_prompts"].reshape(pool, *flat),
        keys=stored["w/e_key"],
    )
    images = images_of(stored)
    query = method.query(images)
    assert deviation(query, stored["query"]) < 1e-9
    assert deviation(1 - method._similarity(query)[:, 0], stored["match"]) < 1e-9
    allowed = columns(range(int(stored["cfg_exposed"])))
    outputs = method.training_outputs(TrainingBatch(images, torch.from_numpy(stored["in/y"]), allowed))
    loss = sum(outputs.losses.values())
    loss.backward()
    assert method.usage_counts.tolist() == np.bincount(stored["prompt_idx"][:, 0], minlength=pool).tolist()
    assert deviation(1 - outputs.diagnostics["key_similarity"], stored["similarity_mean"]) < 1e-9
    assert deviation(method.eval()(images), stored["logits"]) < 1e-9
    assert deviation(loss, stored["loss"]) < 1e-9
    gradients_match(
        method,
        stored,
        1e-9,
        general_prompt=stored["grad/g_prompts"].reshape(1, *flat),
        expert_prompts=stored["grad/e_prompts"].reshape(pool, *flat),
        keys=stored["grad/e_key"],
    )


def test_the_version_of_coda_prompt_is_matched(golden_backbones):
    stored = np.load(GOLDEN / "dualprompt_codarepo.npz")
    pool, expert, general = (int(value) for value in stored["cfg_param"])
    settings = DualPromptSettings(
        variant="coda",
        pool_size=pool,
        general_length=general // 2,
        expert_length=expert // 2,
        expert_layers=(2, 3),
    )

    def tensors(prefix):
        return {
            "general_prompt": np.concatenate([stored[f"{prefix}/g_p_{block}"] for block in (0, 1)])[None],
            "expert_prompts": np.concatenate([stored[f"{prefix}/e_p_{block}"] for block in (2, 3)], axis=1),
            "keys": np.stack([stored[f"{prefix}/e_k_{block}"] for block in (2, 3)]),
        }

    method = build(golden_backbones["exact"], stored, settings, **tensors("w"))
    method.sessions.fill_(int(stored["cfg_task_id"]) + 1)
    images = images_of(stored)
    targets = torch.zeros(len(images), dtype=torch.int64)
    outputs = method.training_outputs(TrainingBatch(images, targets, columns(range(12))))
    assert deviation(outputs.features, stored["train/cls"]) < 1e-9
    assert deviation(outputs.losses["prompt"], stored["train/prompt_loss"]) < 1e-9
    (outputs.features.pow(2).sum() + outputs.losses["prompt"]).backward()
    gradients_match(method, stored, 1e-9, **tensors("grad_of_sumsq_cls_plus_loss"))
    choice = method._similarity(method.query(images)).argmax(-1)
    assert deviation(method._features(method.backbone.tokens(images), choice), stored["eval/cls"]) < 1e-9


def test_all_codes_are_there():
    assert {path.stem.split("_")[1] for path in WITH_TASKS} == {"port", "jax"}
    assert SI_BLURRY
