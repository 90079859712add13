"""L2P against the outputs of three published codes: the PyTorch port and its step, official JAX, Si-Blurry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_values import columns, deviation, images_of, load

from cl_prompts.prompts.selection import key_similarity
from cl_prompts.strategies import L2PSettings, TrainingBatch
from cl_prompts.strategies.l2p import L2PMethod

GOLDEN = Path(__file__).parent.parent / "golden"
# The JAX model has a step in single precision.
TOLERANCE = {"port": 1e-9, "jax": 1e-6, "siblurry": 1e-9}
NAMES = {"port": ("prompt", "prompt_key"), "jax": ("prompt", "prompt_key"), "siblurry": ("prompts", "key")}
CASES = [path for code in NAMES for path in sorted(GOLDEN.glob(f"l2p_{code}_*.npz"))]


def settings_of(code: str, stored) -> L2PSettings:
    pool, size, length = (int(value) for value in stored["cfg_pool_topk_len"])
    common = {"pool_size": pool, "selection_size": size, "prompt_length": length, "position_code": code != "jax"}
    if code == "siblurry":
        return L2PSettings(variant="siblurry", **common)
    reads = {"token+prompt": "class_and_prompts"}
    return L2PSettings(
        variant="released" if stored["cfg_batchwise"] else "paper",
        key_loss=float(stored["cfg_pull_coeff"]),
        head_reads=reads.get(str(stored["cfg_head_type"]), "prompts") if code == "port" else "prompts",
        **common,
    )


def as_sets(choice) -> list[list[int]]:
    return np.sort(np.asarray(choice), axis=1).tolist()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_published_code_is_matched(path, golden_backbones):
    stored = np.load(path)
    code = path.stem.split("_")[1]
    prompts, keys = NAMES[code]
    tolerance = TOLERANCE[code]
    backbone = golden_backbones["tanh" if code == "jax" else "exact"]
    method = load(
        L2PMethod(backbone, 12, settings_of(code, stored), torch.Generator().manual_seed(0)),
        stored,
        prompts=stored[f"w/{prompts}"],
        keys=stored[f"w/{keys}"],
    )
    if "in/frequency" in stored:
        method.frequency.copy_(torch.from_numpy(stored["in/frequency"]))
    images = images_of(stored)
    query = method.query(images)
    assert deviation(query, stored["query"]) < tolerance
    similarity = key_similarity(query, method.keys)
    if code == "siblurry":
        assert deviation(1 - similarity, stored["match"]) < tolerance
    else:
        assert deviation(similarity, stored["similarity" if code == "port" else "sim"]) < tolerance

    in_training = "in/y" in stored
    choice = method._choose(similarity, balanced=code == "siblurry" and in_training)
    assert as_sets(choice) == as_sets(stored["prompt_idx"])
    if "pre_logits" in stored:
        tokens = method.backbone.tokens(images)
        assert deviation(method._features(tokens, choice), stored["pre_logits"]) < tolerance
        assert deviation(similarity.gather(1, choice).sum(-1).mean(), stored["reduce_sim"]) < tolerance
    if not in_training:
        assert deviation(method.eval()(images), stored["logits"]) < tolerance
        if "counter_after" in stored:
            assert (
                np.bincount(choice.flatten(), minlength=len(method.keys)).tolist() == stored["counter_after"].tolist()
            )
        return

    allowed = columns(np.arange(int(stored["cfg_exposed"])) if code == "siblurry" else stored["cfg_train_mask_classes"])
    outputs = method.training_outputs(TrainingBatch(images, torch.from_numpy(stored["in/y"]), allowed))
    loss = sum(outputs.losses.values())
    loss.backward()
    assert deviation(loss, stored["loss"]) < tolerance
    if "ce" in stored:
        assert deviation(outputs.losses["classification"], stored["ce"]) < tolerance
    assert deviation(outputs.logits[:, allowed], stored["logits"][:, allowed]) < tolerance
    assert deviation(method.prompts.grad, stored[f"grad/{prompts}"]) < tolerance
    assert deviation(method.head.weight.grad, stored["grad/head.weight"]) < tolerance
    assert deviation(method.head.bias.grad, stored["grad/head.bias"]) < tolerance
    if code == "siblurry":
        assert bool(stored["key_grad_is_none"])
        assert method.keys.grad is None
        assert not method.keys.requires_grad
        assert method.usage_counts.tolist() == stored["counter_after"].tolist()
        intended = 0.5 * (1 - outputs.diagnostics["key_similarity"])
        assert deviation(intended, 0.5 * stored["intended_pull"]) < tolerance
        return
    assert deviation(method.keys.grad, stored[f"grad/{keys}"]) < tolerance
    if "step/prompt" in stored:
        trained = [tensor for _, tensor in method.named_trainables()]
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        assert deviation(norm, stored["grad_norm"]) < tolerance
        torch.optim.Adam(trained, lr=float(stored["cfg_lr"])).step()
        ours = {"prompt": method.prompts, "prompt_key": method.keys}
        ours |= {"head.weight": method.head.weight, "head.bias": method.head.bias}
        for name, tensor in ours.items():
            assert deviation(tensor, stored[f"step/{name}"]) < 1e-8


def test_all_codes_are_there():
    assert {path.stem.split("_")[1] for path in CASES} == {"port", "jax", "siblurry"}
    assert any("tokenhead" in path.stem for path in CASES)
