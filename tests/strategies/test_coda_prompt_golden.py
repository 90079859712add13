"""CODA-Prompt against the outputs of its published code: re-initialisation, prompts, penalty, loss and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_values import columns, deviation, images_of, load

from cl_prompts.prompts.orthogonal import extend_orthogonally, orthogonality_penalty
from cl_prompts.strategies import CODAPromptSettings, TrainingBatch
from cl_prompts.strategies.coda_prompt import CODAPromptMethod, component_weights

CASES = sorted((Path(__file__).parent.parent / "golden").glob("coda_*.npz"))
KINDS = {"components": "p", "keys": "k", "attention": "a"}
# Components start in single precision.
TOLERANCE = 1e-6


def stacked(stored, prefix: str, kind: str) -> np.ndarray:
    return np.stack([stored[f"{prefix}/{kind}_{block}"] for block in stored["cfg_layers"]])


def build(backbone, stored):
    pool, length, penalty, tasks, task = stored["cfg_pool_len_mu_ntasks_task"].tolist()
    settings = CODAPromptSettings(
        components=int(pool),
        task_count=int(tasks),
        prompt_length=int(length) // 2,
        prompt_layers=len(stored["cfg_layers"]),
        orthogonality=penalty,
    )
    return CODAPromptMethod(backbone, 12, settings, torch.Generator().manual_seed(0)).double(), int(task)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_new_rows_are_those_of_the_published_code(path):
    stored = np.load(path)
    start = {"0": 0, "1": 2}
    checks = [("draws0", None, "init0")] + ([("draws1", "before1", "after1")] if "draws1/p_0" in stored else [])
    for draws, before, after in checks:
        for kind in KINDS.values():
            for block in stored["cfg_layers"]:
                wanted = stored[f"{after}/{kind}_{block}"]
                old = np.zeros(wanted.shape) if before is None else stored[f"{before}/{kind}_{block}"]
                rows = torch.from_numpy(old).double().flatten(1)
                drawn = torch.from_numpy(stored[f"{draws}/{kind}_{block}"])
                found = extend_orthogonally(rows, start[draws[-1]], drawn)
                assert deviation(found.reshape(wanted.shape), wanted) < TOLERANCE


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_step_is_that_of_the_published_code(path, golden_backbones):
    stored = np.load(path)
    method, task = build(golden_backbones["exact"], stored)
    load(method, stored)
    method.begin_session(None)
    trained = "trained0" if task == 0 else "before1"
    for name, kind in KINDS.items():
        getattr(method, name).data.copy_(torch.from_numpy(stacked(stored, trained, kind)))
    if task:
        method.begin_session(None)
        for name, kind in KINDS.items():
            # What was drawn here is another row; old ones stay as they were.
            wanted = torch.from_numpy(stacked(stored, "after1", kind))
            assert torch.equal(method._effective()[name][:, :2], wanted[:, :2])
            assert method._effective()[name][:, 4:].abs().max() == 0
            getattr(method, name).data.copy_(wanted)

    images = images_of(stored)
    query = method.query(images)
    assert deviation(query, stored["query"]) < TOLERANCE
    effective = method._effective()
    weights = component_weights(query, effective["keys"], effective["attention"])
    prompts = torch.einsum("blm,lmrd->blrd", weights, effective["components"])
    for place, block in enumerate(stored["cfg_layers"]):
        length = method.settings.prompt_length
        assert deviation(prompts[:, place, :length], stored[f"train/Ek_{block}"]) < TOLERANCE
        assert deviation(prompts[:, place, length:], stored[f"train/Ev_{block}"]) < TOLERANCE
        penalty = sum(orthogonality_penalty(rows[place].flatten(1), method.live) for rows in effective.values())
        assert deviation(method.orthogonality * penalty, stored[f"train/ortho_{block}"]) < TOLERANCE
    features, _ = method._features(images, None, effective)
    assert deviation(features, stored["eval/cls"]) < TOLERANCE
    assert deviation(method.eval()(images), stored["eval/logits"]) < TOLERANCE

    valid, last = stored["cfg_valid_last"].tolist()
    outputs = method.training_outputs(
        TrainingBatch(images, torch.from_numpy(stored["in/y"]), columns(range(last, valid)))
    )
    loss = sum(outputs.losses.values())
    loss.backward()
    assert deviation(outputs.features, stored["train/feat"]) < TOLERANCE
    assert deviation(outputs.losses["classification"], stored["train/ce"]) < TOLERANCE
    assert deviation(outputs.losses.get("prompt", 0.0), stored["train/prompt_loss"]) < TOLERANCE
    assert deviation(loss, stored["train/loss"]) < TOLERANCE
    for name, kind in KINDS.items():
        gradient = getattr(method, name).grad
        assert deviation(gradient, stacked(stored, "grad", kind)) < TOLERANCE
        assert gradient[:, : 2 * task].abs().sum() == 0
        assert gradient[:, 2 * (task + 1) :].abs().sum() == 0
    assert deviation(method.head.weight.grad, stored["grad/head.weight"]) < TOLERANCE
    assert deviation(method.head.bias.grad, stored["grad/head.bias"]) < TOLERANCE


def test_both_tasks_are_there():
    assert {path.stem.split("_")[1] for path in CASES} == {"task0", "task1"}
