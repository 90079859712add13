"""Prompts that some rows see: against loops over rows and heads, and what a route must answer."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import make_images, make_model

from cl_prompts.backbones import FrozenViT, RoutedPrompts, TokenPrompts
from cl_prompts.errors import BackboneError

MAKES = ["plain", "distilled", "registers", "average_pool", "layer_scale", "query_key_norm", "no_projection_bias"]


def drawn(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def routing(prompts, asked=None):
    """Which row sees which prompt, by the sign of a product, so that it depends on the states of this very block."""
    keys = drawn(prompts, 24, seed=11)

    def route(states):
        if asked is not None:
            asked.append(tuple(states.shape))
        return states @ keys.to(states.dtype).T > 0

    return route


def slow_features(model, images, insertions, cut):
    """`insertions`: block -> (tokens, route, masking); `cut`: block -> T* tokens. One sample and one row at a time."""
    entering = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    samples = []
    for sample in range(len(images)):
        rows = entering[sample]
        for index, block in enumerate(model.blocks):
            tokens, route, masking = insertions.get(index, (rows[None, :0], None, "output"))
            own = tokens[sample if len(tokens) > 1 else 0]
            visible = None if route is None else route(rows[None])[0]
            more = cut[index][0] if index in cut else rows[:0]
            rows = slow_block(block, rows, torch.cat([more, own]), len(more), visible, masking)
        samples.append(rows)
    return model.forward_head(model.norm(torch.stack(samples)), pre_logits=True)


def slow_block(block, rows, prompts, always, visible, masking):
    attention, size = block.attn, block.attn.head_dim
    normed = torch.cat([block.norm1(rows), block.norm1(prompts)])
    projected = attention.qkv(normed).unflatten(-1, (3, attention.num_heads, size))
    keys, after = attention.k_norm(projected[:, 1]), []
    for row in range(len(rows)):
        heads = []
        for head in range(attention.num_heads):
            shares = torch.exp(keys[:, head] @ attention.q_norm(projected[row, 0, head]) / size**0.5)
            seen = torch.ones(len(normed), dtype=torch.bool)
            if visible is not None:
                seen[len(rows) + always :] = visible[row]
            total = shares.sum() if masking == "output" else shares[seen].sum()
            heads.append((shares[seen] / total) @ projected[seen, 2, head])
        row_states = rows[row] + block.ls1(attention.proj(torch.cat(heads)))
        after.append(row_states + block.ls2(block.mlp(block.norm2(row_states))))
    return torch.stack(after)


@pytest.mark.parametrize("masking", ["output", "logits"])
@pytest.mark.parametrize("make", MAKES)
def test_routed_prompts_equal_loops_over_rows(make, masking):
    model = make_model(make).double()
    images, backbone = make_images(model, batch=2).double(), FrozenViT(model)
    plan = {0: drawn(1, 4, 24), 2: drawn(2, 4, 24, seed=5)}
    cut = {2: drawn(1, 2, 24, seed=6)} if make == "plain" else {}
    expected = slow_features(model, images, {b: (t, routing(4), masking) for b, t in plan.items()}, cut)
    insertions = {block: [RoutedPrompts(tokens, routing(4), masking)] for block, tokens in plan.items()}
    for block, tokens in cut.items():
        insertions[block].append(TokenPrompts(tokens))
    everything = {b: [TokenPrompts(i.tokens) for i in given] for b, given in insertions.items()}
    assert (expected - backbone(images, everything)).abs().max() > 1e-3
    for trim in (True, False):
        torch.testing.assert_close(backbone(images, insertions, trim=trim), expected, rtol=1e-11, atol=1e-11)


def test_gradients_of_the_fused_and_of_the_plain_form_equal_loops():
    model = make_model("plain").double()
    images, backbone = make_images(model, batch=2).double(), FrozenViT(model)
    tokens = drawn(1, 4, 24).requires_grad_()
    for masking in ("output", "logits"):
        expected = slow_features(model, images, {1: (tokens, routing(4), masking)}, {})
        ours = backbone(images, {1: [RoutedPrompts(tokens, routing(4), masking)]})
        reference, found = (
            torch.autograd.grad((feature * drawn(2, 24, seed=9)).sum(), tokens)[0] for feature in (expected, ours)
        )
        assert reference.abs().max() > 1e-4
        torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-11)


def test_seeing_everything_is_the_kind_without_routes_and_seeing_nothing_is_none():
    model = make_model("plain").double()
    images, backbone = make_images(model).double(), FrozenViT(model)
    tokens = drawn(1, 4, 24)
    seen = backbone(images, {1: [TokenPrompts(tokens)]})

    def constant(value):
        return lambda states: torch.full((*states.shape[:2], 4), value)

    for masking in ("output", "logits"):
        routed = backbone(images, {1: [RoutedPrompts(tokens, constant(True), masking)]})
        torch.testing.assert_close(routed, seen, rtol=1e-11, atol=1e-11)
    unseen = backbone(images, {1: [RoutedPrompts(tokens, constant(False), "logits")]})
    torch.testing.assert_close(unseen, backbone(images), rtol=1e-11, atol=1e-11)
    # Behind the softmax, what nobody sees still takes its share.
    sink = backbone(images, {1: [RoutedPrompts(tokens, constant(False), "output")]})
    assert (sink - unseen).abs().max() > 1e-3


def test_both_maskings_share_a_block():
    model = make_model("plain").double()
    images, backbone = make_images(model).double(), FrozenViT(model)
    first, second = (RoutedPrompts(drawn(1, 4, 24, seed=seed), routing(4), "logits") for seed in (1, 2))
    alone = backbone(images, {1: [first]})
    hidden = RoutedPrompts(second.tokens, lambda states: torch.zeros(*states.shape[:2], 4, dtype=torch.bool), "logits")
    torch.testing.assert_close(backbone(images, {1: [first, hidden]}), alone, rtol=1e-11, atol=1e-11)
    sink = RoutedPrompts(hidden.tokens, hidden.route, "output")
    mixed = backbone(images, {1: [first, sink]})
    assert (mixed - alone).abs().max() > 1e-3
    torch.testing.assert_close(backbone(images, {1: [sink, first]}), mixed, rtol=1e-11, atol=1e-11)


def test_a_route_is_asked_once_with_all_rows_also_where_few_are_computed():
    model = make_model("plain")
    images, backbone = make_images(model), FrozenViT(model)
    asked = []
    prompts = RoutedPrompts(drawn(1, 4, 24).float(), routing(4, asked))
    backbone(images, {2: [prompts]})
    assert asked == [(3, 17, 24)]


@pytest.mark.parametrize(
    "answer", [torch.ones(3, 17, 5, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 17, 4)]
)
def test_another_answer_is_one_line(answer):
    model = make_model("plain")
    backbone = FrozenViT(model)
    prompts = RoutedPrompts(drawn(1, 4, 24).float(), lambda states: answer)
    with pytest.raises(BackboneError, match=r"must give bool \(batch, rows, prompts\), here \(3, 17, 4\)") as caught:
        backbone(make_images(model), {0: [prompts]})
    assert "\n" not in str(caught.value)


def test_malformed_prompts_are_refused():
    with pytest.raises(BackboneError, match="'output' or 'logits'"):
        RoutedPrompts(torch.zeros(1, 2, 24), routing(2), masking="values")  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match=r"must be \(batch, prompts, width\)"):
        RoutedPrompts(torch.zeros(2, 24), routing(2))


def test_mixed_precision_stays_close():
    model = make_model("plain")
    images, backbone = make_images(model), FrozenViT(model)

    def every_second(states):
        row = torch.arange(states.shape[1])[:, None] + torch.arange(4)
        return (row % 2 == 0).expand(len(states), -1, -1)

    for masking in ("output", "logits"):
        insertions = {0: [RoutedPrompts(drawn(1, 4, 24).float(), every_second, masking)]}
        expected = backbone(images, insertions)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = backbone(images, insertions).float()
        assert 0 < (result - expected).abs().max() < 0.06 * expected.abs().max()
