"""SinglePrompt against the outputs of its published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cl_prompts.masks import ClassTracker
from cl_prompts.strategies import SinglePromptSettings, TrainingBatch
from cl_prompts.strategies.single_prompt import SinglePromptMethod

CASES = sorted((Path(__file__).parent.parent / "golden").glob("singleprompt_*.npz"))


def relative(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """Largest deviation divided by the largest value; absolute where all values are zero."""
    theirs = torch.from_numpy(np.asarray(theirs)).double()
    scale = theirs.abs().max()
    return float((ours.detach().double() - theirs).abs().max() / (scale if scale > 0 else 1))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem.removeprefix("singleprompt_"))
def test_step_matches_published_code(path, shared_backbone):
    stored = np.load(path)
    layers, length = (int(value) for value in stored["cfg_layers_len"])
    kind = {"cos_sim": "cosine"}.get(str(stored["cfg_logit"]), "linear")
    settings = SinglePromptSettings(
        prompt_layers=layers, prompt_length=length, head=kind, temperature=float(stored["cfg_temperature"])
    )
    weight = torch.from_numpy(stored["w/head.weight"])
    method = SinglePromptMethod(shared_backbone, len(weight), settings, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        method.prompt.copy_(torch.from_numpy(stored["w/prompt"]))
        method.head.weight.copy_(weight)
        if kind == "linear":
            method.head.bias.copy_(torch.from_numpy(stored["w/head.bias"]))
    images = torch.from_numpy(stored["in/x"]).double()
    targets = torch.from_numpy(stored["in/y"])
    try:
        assert relative(method._features(images), stored["feat"]) < 1e-5
        assert relative(method(images), stored["logits"]) < 1e-5

        allowed = ClassTracker(len(weight)).allowed("batch", targets)
        assert torch.equal(allowed, torch.from_numpy(stored["batch_mask"]) == 0)
        outputs = method.training_outputs(TrainingBatch(images, targets, allowed))
        loss = outputs.losses["classification"]
        loss.backward()
        assert relative(loss.detach(), stored["loss"]) < 1e-5
        assert relative(method.prompt.grad, stored["grad/prompt"]) < 1e-5
        assert relative(method.head.weight.grad, stored["grad/fc.weight"]) < 1e-5

        exposed = torch.arange(len(weight)) < 10
        contrast = method.training_outputs(TrainingBatch(images, targets, exposed)).losses["classification"]
        assert relative(contrast.detach(), stored["loss_exposed_mask_0_to_9"]) < 1e-5
    finally:
        shared_backbone.float()
