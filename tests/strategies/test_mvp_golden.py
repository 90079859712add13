"""MVP against the outputs of the published code: single steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_prompts.losses import feature_divisor, gradient_dissimilarity
from cl_prompts.masks import mask_logits
from cl_prompts.strategies import MVPSettings, TrainingBatch
from cl_prompts.strategies.mvp import MVPMethod

CASES = sorted((Path(__file__).parent.parent / "golden").glob("mvp_official_case*.npz"))
PARAMETERS = {
    "keys": "key",
    "soft_masks": "mask",
    "general_prompt": "g_prompts",
    "expert_prompts": "e_prompts",
    "head.weight": "backbone.head.weight",
    "head.bias": "backbone.head.bias",
}
close = {"rtol": 1e-5, "atol": 1e-5}


def settings_of(meta: dict) -> MVPSettings:
    return MVPSettings(
        pool_size=meta["pool"],
        selection_size=meta["selection_size"],
        general_length=meta["len_g"],
        general_layers=tuple(meta["pos_g"]),
        expert_length=meta["len_e"],
        expert_layers=tuple(meta["pos_e"]),
        insertion=meta["prompt_func"],
        logit_mask=meta["use_mask"],
        contrast="released" if meta["use_contrastiv"] else "none",
        focal="batch" if meta["use_gsf"] else "none",
        feature_scaling=meta["use_afs"],
        alpha=meta["alpha"],
        gamma=meta["gamma"],
        margin=meta["margin"],
        query_blocks=6 if meta["use_last_layer"] else 5,
    )


def load_parameters(method: MVPMethod, stored, prefix: str) -> None:
    parameters = dict(method.named_parameters())
    with torch.no_grad():
        for ours, theirs in PARAMETERS.items():
            parameters[ours].copy_(torch.from_numpy(stored[f"{prefix}{theirs}"]))


def test_golden_cases_are_here():
    assert CASES


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem[-6:])
def test_step_matches_published_code(path, mvp_backbone):
    stored = np.load(path)
    meta = json.loads(str(stored["meta_json"]))

    def array(name):
        return torch.from_numpy(stored[name])

    method = MVPMethod(mvp_backbone, meta["num_classes"], settings_of(meta), torch.Generator().manual_seed(0))
    load_parameters(method, stored, "param.")
    method.usage_counts.copy_(array("in.count"))
    method.train()
    images, targets = array("in.x"), array("in.y")
    allowed = torch.arange(meta["num_classes"]) < meta["n_exposed"]

    query = method.query(images)
    torch.testing.assert_close(query, array("out.query"), **close)
    selected = method._select(query)
    assert torch.equal(selected.choice, array("out.topk"))
    torch.testing.assert_close(selected.distance, array("out.distance").gather(1, array("out.topk")), **close)
    features = method._features(images, selected.choice, None)
    torch.testing.assert_close(features, array("out.feature"), **close)
    soft_mask = method._soft_mask(selected.choice)
    if soft_mask is not None:
        torch.testing.assert_close(soft_mask, array("out.mask").reshape(soft_mask.shape), **close)

    raw = method.head(features)
    logits = mask_logits(raw if soft_mask is None else soft_mask * raw, allowed)
    torch.testing.assert_close(logits, array("out.logit_forward"), **close)
    ign = gradient_dissimilarity(features.detach(), logits.detach(), targets, soft_mask)
    torch.testing.assert_close(ign, array("out.ign"), **close)
    divisor = feature_divisor(features.detach(), method.head.weight, targets, meta["margin"])
    torch.testing.assert_close(divisor.flatten(), array("out.cps"), **close)

    scaled = method.head(features / divisor.reshape(-1, 1) if meta["use_afs"] else features)
    in_loss = mask_logits(scaled if soft_mask is None else soft_mask * scaled, allowed)
    torch.testing.assert_close(in_loss, array("out.logit_loss"), **close)

    optimizer = torch.optim.Adam([tensor for _, tensor in method.named_trainables()], lr=meta["lr"])
    outputs = method.training_outputs(TrainingBatch(images, targets, allowed))
    total = sum(outputs.losses.values())
    total.backward()
    torch.testing.assert_close(outputs.losses["prompt"], array("out.similarity_loss"), **close)
    torch.testing.assert_close(outputs.diagnostics["cross_entropy"], array("out.ce_mean"), **close)
    torch.testing.assert_close(total, array("out.total_loss"), **close)
    assert torch.equal(method.usage_counts, array("out.count_after"))

    parameters = dict(method.named_parameters())
    for ours, theirs in PARAMETERS.items():
        expected = array(f"grad.{theirs}")
        if expected.numel() == 0:
            assert parameters[ours].grad is None
        else:
            torch.testing.assert_close(parameters[ours].grad, expected, **close)
    optimizer.step()
    for ours, theirs in PARAMETERS.items():
        # Adam divides by the gradient's size: where it is nearly zero, rounding decides the direction of a step.
        gradient = parameters[ours].grad
        certain = torch.ones_like(parameters[ours], dtype=torch.bool) if gradient is None else gradient.abs() > 1e-6
        torch.testing.assert_close(parameters[ours][certain], array(f"after.{theirs}")[certain], rtol=1e-4, atol=1e-4)

    load_parameters(method, stored, "after.")
    method.eval()
    with torch.no_grad():
        evaluated = mask_logits(method(images), allowed)
    torch.testing.assert_close(evaluated, array("out.eval_logit_after_step"), **close)
    assert torch.equal(method.usage_counts, array("out.count_after"))
