"""Prompts in a frozen backbone: against slow loops, published outputs, and the properties every method relies on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import slow_vit
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from tiny_vits import make_images, make_model

from cl_prompts.backbones import FrozenViT, Prefix, TokenPrompts
from cl_prompts.errors import BackboneError

GOLDEN = Path(__file__).parents[1] / "golden"
MAKES = ["plain", "distilled", "registers", "average_pool", "attention_pool", "layer_scale", "query_key_norm"]
MAKES += ["attention_output_norm", "norm_pre", "no_projection_bias", "feature_norm"]


def prompt(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FORMS = {
    "T": lambda n, seed: TokenPrompts(prompt(n, 4, 24, seed=seed), keep=True),
    "T*": lambda n, seed: TokenPrompts(prompt(n, 4, 24, seed=seed)),
    "K-": lambda n, seed: Prefix(prompt(n, 4, 24, seed=seed), prompt(n, 4, 24, seed=seed + 1)),
    "K+": lambda n, seed: Prefix(prompt(n, 4, 24, seed=seed), prompt(n, 4, 24, seed=seed + 1), space="projected"),
}


def tensors(insertion):
    return (insertion.tokens,) if isinstance(insertion, TokenPrompts) else (insertion.key, insertion.value)


@pytest.fixture
def frozen(build):
    def make(kind="plain", double=True):
        model = build[0](kind)
        model = model.double() if double else model
        images = build[1](model)
        return FrozenViT(model), images.double() if double else images

    return make


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_slow_loops(frozen, make, form):
    backbone, images = frozen(make)
    for blocks, batch in (((0,), 3), ((1, 2), 1)):
        insertions = {block: [FORMS[form](batch, 10 * block)] for block in blocks}
        with torch.no_grad():
            expected = slow_vit.features(backbone.model, images, insertions)
            unprompted = backbone(images)
        assert (expected - unprompted).abs().max() > 1e-4
        for trim in (True, False):
            torch.testing.assert_close(backbone(images, insertions, trim=trim), expected, rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=25)
@given(
    plan=st.dictionaries(
        st.integers(0, 2),
        st.lists(st.tuples(st.sampled_from(sorted(FORMS)), st.sampled_from([1, 2]), st.integers(0, 3)), max_size=3),
    ),
    make=st.sampled_from(["plain", "distilled", "attention_pool", "query_key_norm"]),
    pairs=st.randoms(use_true_random=False),
)
def test_any_mixture_equals_slow_loops(plan, make, pairs):
    model = make_model(make).double()
    images = make_images(model, batch=2).double()
    insertions = {}
    for block, parts in plan.items():
        insertions[block] = []
        for form, batch, length in parts:
            whole = FORMS[form](batch, pairs.randrange(1000))
            cut = [tensor[:, :length] for tensor in tensors(whole)]
            insertions[block].append(
                TokenPrompts(cut[0], whole.keep) if len(cut) == 1 else Prefix(*cut, space=whole.space)
            )
    with torch.no_grad():
        expected = slow_vit.features(model, images, insertions)
    result = FrozenViT(model)(images, insertions)
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_shared_prompt_equals_the_same_prompt_for_each_sample(frozen, form):
    backbone, images = frozen()
    shared = FORMS[form](1, 5)
    each = [tensor.detach().repeat(3, 1, 1).requires_grad_() for tensor in tensors(shared)]
    repeated = TokenPrompts(each[0], shared.keep) if len(each) == 1 else Prefix(*each, space=shared.space)
    for tensor in tensors(shared):
        tensor.requires_grad_()
    results = [backbone(images, {1: [insertion]}) for insertion in (shared, repeated)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    for result in results:
        (result * prompt(3, 24, seed=8)).sum().backward()
    for one, many in zip(tensors(shared), each, strict=True):
        torch.testing.assert_close(one.grad, many.grad.sum(0, keepdim=True), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_samples_do_not_see_each_other(frozen, form):
    backbone, images = frozen()
    insertion = FORMS[form](3, 5)
    together = backbone(images, {0: [insertion], 2: [insertion]})
    for sample in range(3):
        own = [tensor[sample : sample + 1] for tensor in tensors(insertion)]
        alone = TokenPrompts(own[0], insertion.keep) if len(own) == 1 else Prefix(*own, space=insertion.space)
        result = backbone(images[sample : sample + 1], {0: [alone], 2: [alone]})
        torch.testing.assert_close(result, together[sample : sample + 1], rtol=1e-12, atol=1e-12)
    for tensor in tensors(insertion):
        tensor[1] += 1
    changed = backbone(images, {0: [insertion], 2: [insertion]})
    assert torch.equal(changed[[0, 2]], together[[0, 2]])
    assert not torch.equal(changed[1], together[1])


@pytest.mark.parametrize("make", ["plain", "distilled", "average_pool", "query_key_norm"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_trimmed_and_full_passes_agree_and_reach_prompts_only(frozen, make, form):
    for double, tolerance in ((True, 1e-12), (False, 1e-6)):
        backbone, images = frozen(make, double)
        weights = {name: value.clone() for name, value in backbone.state_dict().items()}
        insertion = FORMS[form](3, 5)
        prompts = [tensor.to(images.dtype).requires_grad_() for tensor in tensors(insertion)]
        insertion = TokenPrompts(*prompts, insertion.keep) if len(prompts) == 1 else Prefix(*prompts, insertion.space)
        gradients = []
        for trim in (True, False):
            images.requires_grad_()
            features = backbone(images, {1: [insertion]}, trim=trim)
            total = (features * prompt(3, 24, seed=8).to(images.dtype)).sum()
            gradients.append(torch.autograd.grad(total, [*prompts, images], allow_unused=True))
            assert gradients[-1][-1] is None
        for trimmed, full in zip(gradients[0][:-1], gradients[1][:-1], strict=True):
            assert full.abs().max() > 1e-4
            assert (trimmed - full).abs().max() <= tolerance * full.abs().max()
        assert all(parameter.grad is None for parameter in backbone.parameters())
        assert all(torch.equal(value, weights[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("make, read", [("plain", 1), ("distilled", 2), ("average_pool", 16), ("attention_pool", 16)])
def test_only_rows_that_are_read_are_computed(frozen, make, read):
    backbone, images = frozen(make)
    rows = []
    for block in backbone.model.blocks:
        block.mlp.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[1]))
    tokens = backbone.tokens(images).shape[1]
    backbone(images, {0: [FORMS["T*"](1, 1)], 1: [FORMS["T"](1, 1)]})
    backbone.query(images)
    kept = tokens + 4
    assert rows == [tokens, kept, kept if read == 16 else read, tokens, tokens, read]


KEPT = ["plain", "distilled", "registers", "average_pool", "query_key_norm", "norm_pre"]


@pytest.mark.parametrize("make", KEPT)
def test_kept_prompts_are_read_as_timm_computes_the_longer_sequence(frozen, make):
    backbone, images = frozen(make)
    model = backbone.model
    first, second, third = (prompt(batch, 2, 24, seed=seed) for seed, batch in enumerate((3, 1, 3)))
    insertions = {2: [TokenPrompts(third, keep=True)], 0: [TokenPrompts(one, keep=True) for one in (first, second)]}
    with torch.no_grad():
        states = backbone.tokens(images)
        for index, block in enumerate(model.blocks):
            joined = [one.expand(3, -1, -1) for one in {0: (second, first), 2: (third,)}.get(index, ())]
            # In front, ours behind: without positions the place of a token changes nothing.
            states = block(torch.cat([*joined, states], 1))
        states = model.norm(states)
        expected = torch.cat([states[:, 4:6], states[:, 2:4], states[:, :2]], 1)
    with_class = torch.cat([states[:, 6:7], expected], 1)
    for trim in (True, False):
        options = {"tokens": backbone.tokens(images), "trim": trim}
        result = backbone.prompt_states(None, insertions, **options)
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)
        result = backbone.prompt_states(images, insertions, class_token=True, trim=trim)
        torch.testing.assert_close(result, with_class, rtol=1e-11, atol=1e-11)


def test_reading_kept_prompts_computes_their_rows_alone_and_reaches_them_with_gradients(frozen):
    backbone, images = frozen()
    rows = []
    backbone.model.blocks[-1].mlp.register_forward_hook(
        lambda _module, inputs, _output: rows.append(inputs[0].shape[1])
    )
    gradients = []
    for trim in (True, False):
        tokens = prompt(1, 4, 24).requires_grad_()
        prefix = Prefix(*prompt(2, 3, 4, 24, seed=6), space="projected")
        kept = backbone.prompt_states(images, {0: [TokenPrompts(tokens, keep=True)], 2: [prefix]}, trim=trim)
        (kept * prompt(3, 4, 24, seed=9)).sum().backward()
        gradients.append(tokens.grad)
    assert rows == [4, backbone.tokens(images).shape[1] + 4]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)
    assert gradients[0].abs().max() > 1e-3
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("form", ["T*", "K-", "K+", None])
def test_without_a_kept_prompt_there_is_nothing_to_read(frozen, form):
    backbone, images = frozen()
    insertions = {0: [FORMS[form](1, 1)]} if form else {}
    with pytest.raises(BackboneError, match="no prompt that is kept"):
        backbone.prompt_states(images, insertions)


def test_blocks_before_the_first_prompt_leave_no_graph(frozen):
    backbone, images = frozen()
    modes = []
    for block in backbone.model.blocks:
        block.norm1.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    backbone(images, {1: [TokenPrompts(prompt(1, 4, 24).requires_grad_())]})
    assert modes[:2] == [False, True]


def test_nothing_is_remembered_between_calls(frozen):
    backbone, images = frozen()
    classes = [type(module) for module in backbone.modules()]
    query, plain = backbone.query(images), backbone(images)
    insertions = {0: [FORMS["K-"](3, 1), FORMS["T*"](1, 2)], 2: [FORMS["T"](3, 4)]}
    first = backbone(images, insertions)
    assert torch.equal(backbone.query(images), query)
    assert torch.equal(backbone(images), plain)
    assert torch.equal(backbone(images, insertions), first)
    assert torch.equal(backbone(tokens=backbone.tokens(images), insertions=insertions), first)
    assert [type(module) for module in backbone.modules()] == classes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_order_inside_a_block_changes_no_number(frozen):
    backbone, images = frozen()
    parts = [FORMS[form](3, seed) for seed, form in enumerate(FORMS)]
    forwards, backwards = (backbone(images, {1: order}) for order in (parts, parts[::-1]))
    torch.testing.assert_close(forwards, backwards, rtol=1e-12, atol=1e-12)


def test_mixed_precision_stays_close_and_fast(frozen, monkeypatch):
    attend, dtypes = torch.nn.functional.scaled_dot_product_attention, set()

    def recorded(query, key, value, **options):
        dtypes.update((query.dtype, key.dtype, value.dtype))
        return attend(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    backbone, images = frozen(double=False)
    insertions = {0: [TokenPrompts(prompt(1, 2, 24).float())], 1: [Prefix(*prompt(2, 3, 4, 24).float())]}
    insertions[2] = [Prefix(*prompt(2, 3, 4, 24, seed=5).float(), space="projected")]
    expected = backbone(images, insertions)
    dtypes.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for trim in (True, False):
            result = backbone(images, insertions, trim=trim).float()
            assert (result - expected).abs().max() < 0.06 * expected.abs().max()
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize(
    "insertions, message",
    [
        ({3: [TokenPrompts(torch.zeros(1, 2, 24))]}, "blocks 0 to 2"),
        ({-1: [TokenPrompts(torch.zeros(1, 2, 24))]}, "blocks 0 to 2"),
        ({0: [TokenPrompts(torch.zeros(1, 2, 23))]}, r"must be \(3 or 1, prompts, 24\)"),
        ({0: [TokenPrompts(torch.zeros(2, 2, 24))]}, r"must be \(3 or 1, prompts, 24\)"),
        ({0: [Prefix(torch.zeros(2, 0, 24), torch.zeros(2, 0, 24))]}, r"must be \(3 or 1"),
        ({0: [torch.zeros(1, 2, 24)]}, "list of TokenPrompts and Prefix"),
    ],
)
def test_misfitting_prompts_are_refused(frozen, insertions, message):
    backbone, images = frozen(double=False)
    with pytest.raises(BackboneError, match=message) as caught:
        backbone(images, insertions)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "construct, message",
    [
        (lambda: TokenPrompts(torch.zeros(2, 24)), r"must be \(batch, prompts, width\)"),
        (lambda: Prefix(torch.zeros(24), torch.zeros(24)), r"must be \(batch, prompts, width\)"),
        (lambda: Prefix(torch.zeros(1, 2, 24), torch.zeros(1, 3, 24)), "the same shape"),
        (lambda: Prefix(torch.zeros(1, 2, 24), torch.zeros(1, 2, 24), space="output"), "'input'"),
    ],
)
def test_malformed_prompts_are_refused(construct, message):
    with pytest.raises(BackboneError, match=message):
        construct()


def golden_backbone(weights, width, depth, heads, side, patch):
    model = VisionTransformer(
        img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
    )
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return FrozenViT(model)


def test_unprompted_tokens_match_the_stored_ones():
    stored = np.load(GOLDEN / "l2p_shared_backbone.npz")
    weights = {name[2:]: stored[name] for name in stored.files if name.startswith("w/")}
    backbone = golden_backbone(weights, *stored["cfg_dim_depth_heads_img_patch"].tolist())
    backbone.double()
    images = torch.from_numpy(stored["in/x"]).double()
    *_, last = backbone.stream(images)
    expected = torch.from_numpy(stored["tokens_after_norm"])
    torch.testing.assert_close(backbone.model.norm(last), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(backbone(images), expected[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(backbone.query(images), expected[:, 0], rtol=1e-9, atol=1e-9)


def published_insertions(stored, meta):
    """The prompts of a stored step as the released code of MVP cuts them."""
    general = torch.from_numpy(stored["param.g_prompts"])
    expert = torch.from_numpy(stored["param.e_prompts"])[torch.from_numpy(stored["out.topk"])[:, 0]]
    insertions = {}
    for rows, layers, length in ((general, meta["pos_g"], meta["len_g"]), (expert, meta["pos_e"], meta["len_e"])):
        for index, layer in enumerate(layers):
            if meta["prompt_func"] == "prompt_tuning":
                insertion = TokenPrompts(rows[:, index * length : (index + 1) * length])
            else:
                pair = rows[:, 2 * index * length : 2 * (index + 1) * length].split(length, dim=1)
                insertion = Prefix(*pair)
            insertions.setdefault(layer, []).append(insertion)
    return insertions


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("mvp_official_case*.npz")), ids=lambda path: path.stem)
def test_queries_and_prompted_features_match_published_code(path):
    weights = dict(np.load(GOLDEN / "mvp_official_backbone.npz"))
    shape = json.loads(str(weights.pop("cfg_json")))
    backbone = golden_backbone(
        weights, shape["embed_dim"], shape["depth"], shape["num_heads"], shape["img_size"], shape["patch_size"]
    )
    stored = np.load(path)
    meta = json.loads(str(stored["meta_json"]))
    images = torch.from_numpy(stored["in.x"])
    tokens = backbone.tokens(images)
    blocks = backbone.depth if meta["use_last_layer"] else backbone.depth - 1
    query = backbone.query(tokens=tokens, blocks=blocks, norm=False)
    torch.testing.assert_close(query, torch.from_numpy(stored["out.query"]).reshape(query.shape), rtol=1e-5, atol=1e-5)
    feature = backbone(tokens=tokens, insertions=published_insertions(stored, meta))
    expected = torch.from_numpy(stored["out.feature"]).reshape(feature.shape)
    torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-5)


def test_published_steps_are_present():
    assert list(GOLDEN.glob("mvp_official_case*.npz"))
