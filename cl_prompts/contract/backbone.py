"""`check_backbone`: what a frozen backbone promises: timm's own numbers, and prompts that do what they say."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cl_prompts.backbones import FrozenViT, Prefix, TokenPrompts
from cl_prompts.contract.check import Check, Promise, checks_of, require, require_refusal
from cl_prompts.contract.toys import fingerprint
from cl_prompts.errors import BackboneError

CLOSE = 1e-4
"""Of the largest number, for sums that are taken in another order."""
BF16_CLOSE = 0.1
"""Of the largest number, under autocast to eight bits."""


class BackboneSubject:
    """A backbone under the contract.

    Args:
        backbone: one that exists, or a name of timm, which is built with random weights.
    """

    def __init__(self, backbone: str | FrozenViT) -> None:
        self.given = backbone
        self.name = backbone if isinstance(backbone, str) else str(backbone.identity.get("name") or "backbone")

    @cached_property
    def frozen(self) -> FrozenViT:
        """The backbone."""
        if isinstance(self.given, FrozenViT):
            return self.given
        import timm

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return FrozenViT(timm.create_model(self.given, pretrained=False, num_classes=0), untrained=True)

    @cached_property
    def images(self) -> Tensor:
        """Three images of the size it takes, float (3, channels, height, width)."""
        embed: Any = self.frozen.model.patch_embed
        height, width = embed.img_size
        shape = (3, embed.proj.in_channels, height, width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.frozen.parameters()).dtype

    def prompt(self, batch: int, seed: int) -> Tensor:
        """Two random prompts an image, (batch, 2, width)."""
        shape = (batch, 2, self.frozen.width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def insertion(self, form: str, batch: int = 3, seed: int = 3) -> TokenPrompts | Prefix:
        """A random prompt of one of the four forms."""
        return FORMS[form](self, batch, seed)


FORMS: Mapping[str, Callable[[BackboneSubject, int, int], TokenPrompts | Prefix]] = {
    "T": lambda subject, batch, seed: TokenPrompts(subject.prompt(batch, seed), keep=True),
    "T*": lambda subject, batch, seed: TokenPrompts(subject.prompt(batch, seed)),
    "K-": lambda subject, batch, seed: Prefix(subject.prompt(batch, seed), subject.prompt(batch, seed + 1)),
    "K+": lambda subject, batch, seed: Prefix(
        subject.prompt(batch, seed), subject.prompt(batch, seed + 1), space="projected"
    ),
}
"""Name of a form in the literature -> a random prompt of it."""


def features_are_those_of_timm(subject: BackboneSubject) -> None:
    """Without prompts, query and feature are bit for bit what timm computes."""
    model, frozen = subject.frozen.model, subject.frozen
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(subject.images), pre_logits=True)
    require(tuple(expected.shape) == (3, frozen.width), f"features have shape {tuple(expected.shape)}")
    require(torch.equal(frozen.query(subject.images, trim=False), expected), "the query is not timm's feature")
    require(torch.equal(frozen(subject.images), expected), "the feature is not timm's")
    shared = frozen(tokens=frozen.tokens(subject.images))
    require(torch.equal(shared, expected), "the feature from shared tokens is not timm's")


def a_trimmed_query_is_the_whole_one(subject: BackboneSubject) -> None:
    """Computing only the rows that are read changes no query, whatever the number of blocks."""
    frozen = subject.frozen
    for blocks in {1, frozen.depth}:
        for norm in (True, False):
            whole = frozen.query(subject.images, blocks=blocks, norm=norm, trim=False)
            _require_close(frozen.query(subject.images, blocks=blocks, norm=norm), whole, f"query(blocks={blocks})")


def a_trimmed_pass_is_the_whole_one(subject: BackboneSubject) -> None:
    """With prompts of each form, computing only the rows that are read changes no feature."""
    for form in FORMS:
        insertions = {block: [subject.insertion(form)] for block in {0, subject.frozen.depth - 1}}
        whole = subject.frozen(subject.images, insertions, trim=False)
        _require_close(subject.frozen(subject.images, insertions), whole, f"form {form}")


def prompts_of_each_form_act(subject: BackboneSubject) -> None:
    """A prompt of each form changes the feature, and no two forms change it alike."""
    plain = subject.frozen(subject.images)
    found = {form: subject.frozen(subject.images, {0: [subject.insertion(form)]}) for form in FORMS}
    for form, feature in found.items():
        require(feature.shape == plain.shape, f"with form {form} features have shape {tuple(feature.shape)}")
        require(bool(torch.isfinite(feature).all()), f"with form {form} features are not finite")
        require(not torch.allclose(feature, plain, rtol=0, atol=1e-6), f"a prompt of form {form} changes nothing")
    require(not torch.equal(found["K-"], found["K+"]), "prefixes before and after projection do the same")


def gradients_reach_prompts_alone(subject: BackboneSubject) -> None:
    """Gradients reach every inserted prompt, and neither a weight nor the images."""
    images = subject.images.clone().requires_grad_()
    for form in FORMS:
        insertion = subject.insertion(form)
        parts = [insertion.tokens] if isinstance(insertion, TokenPrompts) else [insertion.key, insertion.value]
        for part in parts:
            part.requires_grad_()
        feature = subject.frozen(images, {0: [insertion]})
        # Not the plain sum: after a norm without weights it would be constant.
        (feature * torch.linspace(-1, 1, feature.shape[1], dtype=feature.dtype)).sum().backward()
        for part in parts:
            reached = part.grad is not None and bool((part.grad != 0).any())
            require(reached, f"no gradient reaches a prompt of form {form}")
    require(images.grad is None, "a gradient reaches the images")
    held = [name for name, tensor in subject.frozen.named_parameters() if tensor.grad is not None]
    require(not held, f"{', '.join(held[:3])} got a gradient")


def prompts_of_length_zero_do_nothing(subject: BackboneSubject) -> None:
    """Prompts without a row leave every bit of the feature."""
    empty = TokenPrompts(subject.prompt(1, 3)[:, :0])
    found = subject.frozen(subject.images, {0: [empty]})
    require(torch.equal(found, subject.frozen(subject.images)), "a prompt of length 0 changes the feature")


def images_do_not_see_each_other(subject: BackboneSubject) -> None:
    """Feature and query of an image are the same alone and in a batch, with its own prompt and with a shared one."""
    for form in FORMS:
        shared = subject.insertion(form, batch=1)
        whole = subject.frozen(subject.images, {0: [shared]})
        alone = torch.cat([subject.frozen(image[None], {0: [shared]}) for image in subject.images])
        _require_close(alone, whole, f"alone, form {form}")
    own = subject.prompt(3, 5)
    whole = subject.frozen(subject.images, {0: [TokenPrompts(own)]})
    parts = [subject.frozen(subject.images[i : i + 1], {0: [TokenPrompts(own[i : i + 1])]}) for i in range(3)]
    _require_close(torch.cat(parts), whole, "with its own prompt")
    parts = [subject.frozen.query(image[None]) for image in subject.images]
    _require_close(torch.cat(parts), subject.frozen.query(subject.images), "the query")


def the_order_of_prompts_does_not_matter(subject: BackboneSubject) -> None:
    """Prompts of one block act alike in any order."""
    parts = [subject.insertion(form, seed=seed) for seed, form in enumerate(FORMS)]
    forward = subject.frozen(subject.images, {0: parts})
    _require_close(subject.frozen(subject.images, {0: parts[::-1]}), forward, "in the other order")


def nothing_is_remembered(subject: BackboneSubject) -> None:
    """The same images and prompts give the same bits again, whatever was computed between."""
    insertions = {0: [subject.insertion("T*")]}
    first = subject.frozen(subject.images, insertions), subject.frozen.query(subject.images)
    torch.manual_seed(3)
    subject.frozen(subject.images[:1], {0: [subject.insertion("K-", batch=1)]})
    again = subject.frozen(subject.images, insertions), subject.frozen.query(subject.images)
    require(all(map(torch.equal, first, again)), "the second time the result is another")


def it_stays_frozen(subject: BackboneSubject) -> None:
    """No weight asks for a gradient or changes, and no module leaves evaluation mode, whatever the parent does."""
    before = fingerprint(subject.frozen)
    parent = nn.Sequential(subject.frozen)
    parent.train()
    require(not any(module.training for module in subject.frozen.modules()), "train() of the parent switched a module")
    asking = [name for name, tensor in subject.frozen.named_parameters() if tensor.requires_grad]
    require(not asking, f"{', '.join(asking[:3])} ask for a gradient")
    feature = subject.frozen(subject.images, {0: [subject.insertion("T")]})
    require(not feature.requires_grad, "a feature of fixed prompts carries a graph")
    require(fingerprint(subject.frozen) == before, "a pass changed weights or buffers")


def the_stream_has_every_state(subject: BackboneSubject) -> None:
    """The stream gives the states before the first block and after each, the last of which the feature reads."""
    states = list(subject.frozen.stream(subject.images))
    require(len(states) == subject.frozen.depth + 1, f"{len(states)} states of {subject.frozen.depth} blocks")
    require(torch.equal(states[0], subject.frozen.tokens(subject.images)), "it does not begin with the tokens")
    model = subject.frozen.model
    with torch.no_grad():
        feature = model.forward_head(model.norm(states[-1]), pre_logits=True)
    require(torch.equal(feature, subject.frozen(subject.images)), "its end is not what the feature reads")


def wrong_prompts_are_refused(subject: BackboneSubject) -> None:
    """Blocks that do not exist, and prompts of another width or batch, are refused in one line."""
    width, depth = subject.frozen.width, subject.frozen.depth
    wrong = {
        f"a prompt for block {depth}": {depth: [TokenPrompts(torch.zeros(1, 2, width))]},
        "a prompt of another width": {0: [TokenPrompts(torch.zeros(1, 2, width + 1))]},
        "prompts of another batch": {0: [TokenPrompts(torch.zeros(2, 2, width))]},
    }
    for what, insertions in wrong.items():
        require_refusal(lambda given=insertions: subject.frozen(subject.images, given), BackboneError, what)  # type: ignore[misc]
    require_refusal(lambda: subject.frozen.query(subject.images, blocks=depth + 1), BackboneError, "a block too many")


def bf16_is_near_full_precision(subject: BackboneSubject) -> None:
    """Under autocast to bfloat16 features stay close to those of full precision."""
    insertions = {0: [subject.insertion("K+")]}
    expected = subject.frozen(subject.images, insertions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = subject.frozen(subject.images, insertions)
    deviation = float((found.to(expected.dtype) - expected).abs().max() / expected.abs().max())
    require(deviation < BF16_CLOSE, f"features deviate by {deviation:.3f}")


def copies_are_equal(subject: BackboneSubject) -> None:
    """Deep and pickled copies compute the same and stay frozen."""
    expected = subject.frozen(subject.images)
    for twin in (copy.deepcopy(subject.frozen), pickle.loads(pickle.dumps(subject.frozen))):
        require(torch.equal(twin(subject.images), expected), "a copy computes something else")
        require(not any(tensor.requires_grad for tensor in twin.parameters()), "a copy is not frozen")


def _require_close(found: Tensor, expected: Tensor, where: str) -> None:
    deviation = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    require(deviation <= CLOSE, f"{where}: deviates by {deviation:.2g} of the largest number")


PROMISES: tuple[Promise[BackboneSubject], ...] = tuple(
    Promise(test)
    for test in (
        features_are_those_of_timm,
        a_trimmed_query_is_the_whole_one,
        a_trimmed_pass_is_the_whole_one,
        prompts_of_each_form_act,
        gradients_reach_prompts_alone,
        prompts_of_length_zero_do_nothing,
        images_do_not_see_each_other,
        the_order_of_prompts_does_not_matter,
        nothing_is_remembered,
        it_stays_frozen,
        the_stream_has_every_state,
        wrong_prompts_are_refused,
        bf16_is_near_full_precision,
        copies_are_equal,
    )
)


def check_backbone(backbone: str | FrozenViT) -> list[Check]:
    """The checks of a frozen backbone, or of a model that timm builds by this name with random weights.

    Raises:
        BackboneError: nothing of that kind can be wrapped; from a check, as its line.
    """
    subject = BackboneSubject(backbone)
    return checks_of(subject, subject.name, PROMISES)
