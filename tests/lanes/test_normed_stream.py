"""The stream that lanes read: timm's own numbers, without a graph, one block at a time."""

from __future__ import annotations

import pytest
import torch
from lane_cases import ABLATIONS, MAKES, make_backbone, make_images, make_inputs

from cl_prompts.lanes import fast_class_tokens, token_class_tokens


@pytest.fixture(params=MAKES)
def backbone(request):
    return make_backbone(request.param, dtype=torch.float32)


@pytest.fixture
def images():
    return make_images(dtype=torch.float32)


def read_by_attention(model, images):
    """What each block's attention is given in timm's own forward pass, and what its projection makes of it."""
    seen, projected = [], []
    hooks = [
        block.attn.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
        for block in model.blocks
    ]
    hooks += [
        block.attn.qkv.register_forward_hook(lambda module, arguments, result: projected.append(result))
        for block in model.blocks
    ]
    with torch.no_grad():
        model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return seen, projected


def normed(stream):
    return [seen.normed for seen in stream]


@pytest.mark.parametrize("asks", [(), (0,), (1,), (0, 1, 2)], ids=str)
def test_bit_identical_to_timm_whoever_asks_for_keys_and_values(backbone, images, asks):
    expected, projected = read_by_attention(backbone.model, images)
    found = []
    for block, seen in enumerate(backbone.normed_stream(images)):
        found.append(seen.normed)
        known = seen.keys_and_values() if block in asks else None
        assert (known is not None) is (block in asks and block < backbone.depth - 1)
        for part, ours in enumerate(known or (), 1):
            theirs = projected[block].chunk(3, dim=-1)[part]
            assert torch.equal(ours.transpose(1, 2).flatten(2), theirs)
            assert ours.shape[1] == backbone.blocks[0].attn.num_heads
            assert not ours.requires_grad
    assert len(found) == len(expected) == backbone.depth
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_normalised_keys_are_those_that_are_compared(images):
    backbone = make_backbone(qk_norm=True, dtype=torch.float32)
    seen = next(iter(backbone.normed_stream(images)))
    attention = backbone.blocks[0].attn
    theirs = read_by_attention(backbone.model, images)[1][0].chunk(3, dim=-1)[1]
    assert torch.equal(seen.keys_and_values()[0].transpose(1, 2), attention.k_norm(theirs.unflatten(-1, (3, -1))))


@pytest.mark.parametrize("asks", [False, True])
def test_attention_runs_once_a_block_and_leaves_no_hook(images, asks):
    backbone, ran = make_backbone(dtype=torch.float32), []
    hooks = [
        block.attn.qkv.register_forward_pre_hook(lambda module, given, index=index: ran.append(index))
        for index, block in enumerate(backbone.blocks)
    ]
    for seen in backbone.normed_stream(images):
        if asks:
            seen.keys_and_values()
        assert not any(block.attn.qkv._forward_hooks for block in backbone.blocks)
    assert ran == list(range(backbone.depth - 1))
    for hook in hooks:
        hook.remove()
    backbone.blocks[0].attn.norm.forward = None  # an attention that breaks off
    with pytest.raises(TypeError):
        next(iter(backbone.normed_stream(images))).keys_and_values()
    assert not backbone.blocks[0].attn.qkv._forward_hooks


def test_keys_and_values_can_be_asked_for_after_the_stream_went_on(images):
    backbone = make_backbone(dtype=torch.float32)
    late = list(backbone.normed_stream(images))
    for before, after in zip(backbone.normed_stream(images), late, strict=True):
        known, known_late = before.keys_and_values() or (), after.keys_and_values() or ()
        assert all(torch.equal(one, other) for one, other in zip(known, known_late, strict=True))


def test_lanes_leave_the_stream_alone(backbone, images):
    stream = backbone.normed_stream(images)
    before = list(stream)
    kept = [state.clone() for state in normed(before)]
    inputs = make_inputs(backbone)
    fast_class_tokens(backbone.blocks, before, inputs).sum().backward()
    with torch.no_grad():
        fast_class_tokens(backbone.blocks, before, inputs)
    assert all(torch.equal(state, copy) for state, copy in zip(normed(before), kept, strict=True))
    assert all(torch.equal(state, copy) for state, copy in zip(normed(stream), kept, strict=True))  # a second reading


def test_query_completes_the_last_block(backbone, images):
    stream = backbone.normed_stream(images)
    list(stream)
    query = stream.query()
    assert torch.equal(query, backbone.query(images))
    torch.testing.assert_close(
        query, backbone.model.forward_head(backbone.model.forward_features(images), pre_logits=True)
    )
    assert not query.requires_grad


@pytest.mark.parametrize("read", [0, 1])
def test_query_of_a_stream_that_was_not_read_to_its_end(read, images):
    backbone = make_backbone(dtype=torch.float32)
    stream = backbone.normed_stream(images)
    for _, _ in zip(range(read), stream, strict=False):
        pass
    assert torch.equal(stream.query(), backbone.query(images))


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("form", [fast_class_tokens, token_class_tokens])
def test_gradients_reach_lanes_and_the_stream_leaves_no_graph(form, ablation, images):
    backbone = make_backbone(dtype=torch.float32)
    inputs = make_inputs(backbone, **ABLATIONS[ablation])
    # Were the stream recorded, these three would get a gradient: nothing but the stream reads them.
    images = images.requires_grad_()
    witnesses = [images, backbone.model.patch_embed.proj.weight, backbone.model.pos_embed]
    for tensor in witnesses:
        tensor.requires_grad_()
    states = []

    def watched():
        for seen in backbone.normed_stream(images):
            assert torch.is_grad_enabled()
            states.append(seen.normed)
            yield seen

    form(backbone.blocks, watched(), inputs).square().sum().backward()
    assert states
    assert not any(state.requires_grad for state in states)
    assert all(tensor.grad is None for tensor in witnesses)
    for prompts in inputs.prompts.values():
        assert bool((prompts.grad.abs().sum((1, 2, 3, 4)) > 0).all())
    if inputs.num_selectors and not inputs.merged_tokens:
        assert bool((inputs.selectors.grad.abs().sum((1, 2)) > 0).all())


def test_the_stream_keeps_nothing_for_a_backward_pass(backbone, images):
    backbone.model.requires_grad_(True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        states = []
        for seen in backbone.normed_stream(images.requires_grad_()):
            states.append(seen.normed)
            seen.keys_and_values()
        assert not saved
        backbone.blocks[0].norm1(states[0])
        assert saved  # what a block would leave behind


def test_the_callers_mode_is_left_alone(images):
    stream = make_backbone(dtype=torch.float32).normed_stream(images)
    with torch.no_grad():
        for _ in stream:
            assert not torch.is_grad_enabled()
    for _ in stream:
        assert torch.is_grad_enabled()


def test_blocks_run_when_they_are_asked_for(images):
    backbone = make_backbone(dtype=torch.float32)
    ran = []
    for index, block in enumerate(backbone.blocks):
        block.mlp.register_forward_hook(lambda *arguments, index=index: ran.append(index))
    states = iter(backbone.normed_stream(images))
    next(states)
    assert ran == []
    next(states)
    assert ran == [0]
    assert len(list(states)) == backbone.depth - 2
    assert ran == list(range(backbone.depth - 1))  # of the last block the norm alone
