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
    """What each block's attention is given in timm's own forward pass."""
    seen = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
        for block in model.blocks
    ]
    with torch.no_grad():
        model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_bit_identical_to_timm(backbone, images):
    expected = read_by_attention(backbone.model, images)
    found = list(backbone.normed_stream(images))
    assert len(found) == len(expected) == backbone.depth
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_lanes_leave_the_stream_alone(backbone, images):
    stream = backbone.normed_stream(images)
    before = list(stream)
    kept = [state.clone() for state in before]
    fast_class_tokens(backbone.blocks, before, make_inputs(backbone)).sum().backward()
    assert all(torch.equal(state, copy) for state, copy in zip(before, kept, strict=True))
    assert all(torch.equal(state, copy) for state, copy in zip(stream, kept, strict=True))  # a second reading


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
        for state in backbone.normed_stream(images):
            assert torch.is_grad_enabled()
            states.append(state)
            yield state

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
        states = list(backbone.normed_stream(images.requires_grad_()))
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
