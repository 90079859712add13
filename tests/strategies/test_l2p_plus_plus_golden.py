"""L2P++ against the outputs of its published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_values import deviation, images_of

from cl_prompts.prompts.l2p_plus_plus import halves_of_picks, paired_key_loss
from cl_prompts.prompts.selection import key_similarity, select_prompts

CASES = sorted((Path(__file__).parent.parent / "golden").glob("l2p_codarepo_*.npz"))
SIZE = 3


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_published_code_is_matched(path, golden_backbones):
    stored = np.load(path)
    backbone, images = golden_backbones["exact"], images_of(stored)
    prompts, keys = (torch.from_numpy(stored[f"w/e_{kind}_0"]).double().requires_grad_() for kind in "pk")
    query = backbone.query(images)
    assert deviation(query, stored["query"]) < 1e-9
    similarity = key_similarity(query, keys)
    choice = select_prompts(1 - similarity, None, SIZE)
    features = backbone(images, {0: [halves_of_picks(prompts[choice])]})
    assert deviation(features, stored["train/cls"]) < 1e-9
    assert deviation(features, stored["eval/cls"]) < 1e-9
    loss = paired_key_loss(similarity, choice)
    assert deviation(loss, stored["train/prompt_loss"]) < 1e-9
    (features.pow(2).sum() + loss).backward()
    for tensor, kind in ((prompts, "p"), (keys, "k")):
        assert deviation(tensor.grad, stored[f"grad_of_sumsq_cls_plus_loss/e_{kind}_0"]) < 1e-9


def test_pairs_are_counted_one_by_one():
    similarity = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    choice = torch.tensor([[0, 2], [2, 4], [1, 2]])
    slow = sum(1 - similarity[b, pick].item() for b in range(3) for row in choice.tolist() for pick in row)
    assert paired_key_loss(similarity, choice).item() == pytest.approx(slow)
    assert CASES
