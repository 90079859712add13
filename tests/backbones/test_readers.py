"""Readers: against timm's blocks on the sequence with one reader at a time, and what the last block is given."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import make_images, make_model

from cl_prompts.backbones import FrozenViT, TokenPrompts
from cl_prompts.backbones.readers import (
    finished_row,
    isolation,
    last_block_of_kept,
    last_block_of_readers,
    reader_states,
    row_heads,
)

MAKES = ["plain", "distilled", "registers", "average_pool", "layer_scale", "query_key_norm"]
MAKES += ["attention_output_norm", "norm_pre", "no_projection_bias"]


def drawn(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_at_a_time(model, images, readers, first):
    """Every reader alone behind the frozen sequence, through stock blocks; only its own row is carried on."""
    found = []
    for reader in readers:
        states = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        row = reader.expand(len(images), 1, -1)
        for index, block in enumerate(model.blocks):
            if index >= first:
                row = block(torch.cat([states, row], dim=1))[:, -1:]
            states = block(states)
        found.append(model.norm(row)[:, 0])
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_readers_equal_stock_blocks_one_at_a_time(make, first):
    model = make_model(make).double()
    images, backbone = make_images(model).double(), FrozenViT(model)
    readers = drawn(4, 24).requires_grad_()
    expected = one_at_a_time(model, images, readers, first)
    found = reader_states(backbone, images, readers, first=first)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    weights = drawn(*expected.shape, seed=8)
    reference, ours = (torch.autograd.grad((states * weights).sum(), readers)[0] for states in (expected, found))
    assert reference.abs().max() > 1e-4
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-11)


def test_mixed_precision_stays_close():
    model = make_model("plain")
    images, backbone = make_images(model), FrozenViT(model)
    readers = drawn(4, 24).float()
    expected = reader_states(backbone, images, readers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = reader_states(backbone, images, readers).float()
    assert 0 < (result - expected).abs().max() < 0.06 * expected.abs().max()


def test_isolation_shows_tokens_and_oneself():
    mask = isolation(2, 3, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("isolated", [True, False])
def test_heads_of_a_row_put_together_give_what_the_backbone_gives(make, isolated):
    model = make_model(make).double()
    images, backbone = make_images(model).double(), FrozenViT(model)
    readers = drawn(4, 24)
    insertions = {0: [TokenPrompts(readers[None], keep=True)]}
    if isolated:
        given, whole = last_block_of_readers(backbone, images, readers), reader_states(backbone, images, readers)
    else:
        given, whole = last_block_of_kept(backbone, images, insertions), backbone.prompt_states(images, insertions)
    tokens = given.states.shape[1]
    assert tokens == backbone.tokens(images).shape[1]
    for reader in range(4):
        heads = row_heads(given, reader)
        assert heads.weights.shape == (3, 3, tokens + (1 if isolated else 4))
        torch.testing.assert_close(heads.weights.sum(-1), torch.ones(3, 3, dtype=torch.float64))
        after = model.norm(finished_row(given, reader, heads.attended))
        torch.testing.assert_close(after, whole[:, reader], rtol=1e-11, atol=1e-11)


def test_even_attention_is_the_mean_of_the_values():
    model = make_model("plain").double()
    images, backbone = make_images(model).double(), FrozenViT(model)
    given = last_block_of_readers(backbone, images, drawn(2, 24))
    # With no query all scores are equal.
    attention = given.block.attn
    with torch.no_grad():
        attention.qkv.weight[:24] = 0
        attention.qkv.bias[:24] = 0
    heads = row_heads(given, 1)
    torch.testing.assert_close(heads.attended, heads.blurred, rtol=1e-12, atol=1e-12)
    assert (heads.weights == heads.weights[0, 0, 0]).all()
