"""`FrozenViT`: a stock timm Vision Transformer, never trained, that methods read from and insert prompts into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cl_prompts.backbones.attention import run_block
from cl_prompts.backbones.attention_input import AttentionInput
from cl_prompts.backbones.insertions import Insertion, Prefix, RoutedPrompts, TokenPrompts
from cl_prompts.backbones.prompted_block import run_prompted
from cl_prompts.backbones.supported import supported_model
from cl_prompts.errors import BackboneError


class FrozenViT(nn.Module):
    """A timm Vision Transformer, frozen: always in evaluation mode, no gradient on a weight, no drop-out.

    The model is wrapped, not copied: its parameters stop requiring gradients. Without prompts every result equals
    timm's bit for bit. With prompts, and in queries, the last block that runs computes only the rows that are read
    (equal up to rounding; `trim=False` switches it off). Nothing is stored between calls.

    Args:
        model: a timm model of a supported class.
        identity: what is known about model and weights; kept as `.identity` and written beside results.
        untrained: the weights are random; kept as `.untrained`, with a sentence in `.notice`.

    Raises:
        BackboneError: another class of model, block or attention, or a model without pooling.
    """

    def __init__(self, model: nn.Module, *, identity: Mapping[str, Any] | None = None, untrained: bool = False) -> None:
        super().__init__()
        self.model = supported_model(model)
        self.model.requires_grad_(False)
        self.identity = dict(identity or {})
        self.untrained = untrained
        self.train(False)

    @property
    def notice(self) -> str | None:
        """What must be said loudly before a run; None when there is nothing to say."""
        if not self.untrained:
            return None
        name = self.identity.get("name") or "this backbone"
        return f"UNTRAINED BACKBONE: {name} has random weights, its numbers say nothing about a pretrained one"

    @property
    def width(self) -> int:
        """Numbers in one token."""
        return self.model.embed_dim

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.model.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: class, distillation and register tokens."""
        return self.model.num_prefix_tokens

    @property
    def position_of_class_token(self) -> Tensor | None:
        """Position embedding of the class token, float `(width,)`; None if the model gives it none."""
        model = self.model
        if not model.has_class_token or model.no_embed_class or model.pos_embed is None:
            return None
        return model.pos_embed[0, 0]

    def train(self, mode: bool = True) -> FrozenViT:
        """Stay in evaluation mode, whatever the parent module is switched to."""
        super().train(False)
        return self

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """What enters block 0: patches and prefix tokens with their positions.

        Images are float `(batch, channels, height, width)`, normalised; returns float `(batch, tokens, width)`.
        """
        model = self.model
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))

    @torch.no_grad()
    def query(
        self,
        images: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        blocks: int | None = None,
        norm: bool = True,
        trim: bool = True,
    ) -> Tensor:
        """The frozen feature of each image, float `(batch, width)`, without prompts and without gradient.

        Args:
            images: float `(batch, channels, height, width)`; may be left out when `tokens` is given.
            tokens: the result of `tokens(images)`, to share the patch embedding with the prompted pass.
            blocks: how many blocks run, from the first; None: all.
            norm: read as timm's head does (final norm, the model's pooling); False: read the states as they leave
                the last block that runs: the class token (with a distillation token, the mean of both), the model's
                average or maximum, or, where attention pools, the mean of the patches.
            trim: compute only the rows that are read in the last block.

        Raises:
            BackboneError: `blocks` outside 1 to depth, or neither images nor tokens.
        """
        blocks = self.depth if blocks is None else blocks
        if not 1 <= blocks <= self.depth:
            raise BackboneError(f"query(blocks={blocks}): this backbone has {self.depth} blocks; use 1 to {self.depth}")
        states = self._entering(images, tokens)
        for block in self.blocks[: blocks - 1]:
            states = block(states)
        states = run_block(self.blocks[blocks - 1], states, rows=self._rows_read if trim else None)
        return self._read(states) if norm else self._read_without_norm(states)

    def forward(
        self,
        images: Tensor | None = None,
        insertions: Mapping[int, Sequence[Insertion]] | None = None,
        *,
        tokens: Tensor | None = None,
        trim: bool = True,
    ) -> Tensor:
        """The feature that a head reads (timm's pre-logits), float `(batch, width)`.

        Gradients reach the inserted prompts only; blocks before the first prompt leave no graph.

        Args:
            images: float `(batch, channels, height, width)`; may be left out when `tokens` is given.
            insertions: block number, from 0, to the prompts of this block, in the order of their keys.
            tokens: the result of `tokens(images)`, to share the patch embedding with the query.
            trim: compute only the rows that are read; False: what timm computes on the longer sequence.

        Raises:
            BackboneError: a block that does not exist, prompts of another width or batch, neither images nor tokens.
        """
        states = self._entering(images, tokens)
        length = states.shape[1]
        states = self._prompted_states(states, insertions or {}, self._rows_read, trim)
        return self._read(states[:, :length])

    def prompt_states(
        self,
        images: Tensor | None,
        insertions: Mapping[int, Sequence[Insertion]],
        *,
        tokens: Tensor | None = None,
        class_token: bool = False,
        trim: bool = True,
    ) -> Tensor:
        """The kept prompts after the last block and the final norm, for heads that read prompts.

        Float `(batch, kept prompts, width)` in the order of insertion: by block, then as listed. Gradients as in
        `forward`. Where the model's feature norm comes behind its pooling, it is left to the reader.

        Args:
            images: as in `forward`.
            insertions: as in `forward`; at least one `TokenPrompts(..., keep=True)` among them.
            tokens: as in `forward`.
            class_token: put the first token of the sequence, likewise normed, in front of the prompts.
            trim: compute only these rows in the last block.

        Raises:
            BackboneError: as in `forward`, or no prompt is kept.
        """
        states = self._entering(images, tokens)
        length = states.shape[1]
        kept = sum(
            insertion.length
            for given in insertions.values()
            for insertion in given
            if isinstance(insertion, TokenPrompts) and insertion.keep
        )
        if not kept:
            raise BackboneError("prompt_states got no prompt that is kept; insert TokenPrompts(tokens, keep=True)")
        rows = [0, *range(length, length + kept)] if class_token else slice(length, None)
        states = self._prompted_states(states, insertions, rows, trim)
        return self.model.norm(states if trim else states[:, rows])

    def stream(self, images: Tensor) -> Iterator[Tensor]:
        """The frozen states block by block: what enters block 0, then what leaves each block.

        Gives depth + 1 tensors, float `(batch, tokens, width)`. A block runs when its output is asked for, and
        without gradient, whatever mode the caller is in; the caller's own mode is left alone.
        """
        states = self.tokens(images)
        yield states
        for block in self.blocks:
            with torch.no_grad():
                states = block(states)
            yield states

    def normed_stream(self, images: Tensor) -> NormedStream:
        """What every block's attention sees of `images`: see `NormedStream`."""
        return NormedStream(self, images)

    @property
    def blocks(self) -> list[Block]:
        """The stock blocks, in order."""
        return cast("list[Block]", list(self.model.blocks))

    @property
    def _rows_read(self) -> slice | None:
        """Leading rows that pooling reads; None: all of them."""
        if self.model.global_pool != "token" or self.model.attn_pool is not None:
            return None
        return slice(2 if isinstance(self.model, VisionTransformerDistilled) else 1)

    def _entering(self, images: Tensor | None, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            return tokens.detach()
        if images is None:
            raise BackboneError(
                "FrozenViT got neither images nor tokens; pass images, or tokens=backbone.tokens(images)"
            )
        return self.tokens(images)

    def _prompted_states(
        self,
        states: Tensor,
        insertions: Mapping[int, Sequence[Insertion]],
        rows: slice | list[int] | None,
        trim: bool,
    ) -> Tensor:
        """States behind the last block, kept prompts last; with `trim` only these rows where that block is prompted."""
        prompted = self._prompted(insertions, batch=states.shape[0])
        first = min(prompted, default=self.depth)
        with torch.no_grad():
            for block in self.blocks[:first]:
                states = block(states)
        for index, block in enumerate(self.blocks[first:], first):
            read = rows if trim and index == self.depth - 1 else None
            states = run_prompted(block, states, prompted.get(index, ()), read, trim)
        return states

    def _read(self, states: Tensor) -> Tensor:
        return self.model.forward_head(self.model.norm(states), pre_logits=True)

    def _read_without_norm(self, states: Tensor) -> Tensor:
        if self._rows_read is not None:
            return states[:, self._rows_read].mean(dim=1)
        if self.model.attn_pool is not None:
            return states[:, self.num_prefix_tokens :].mean(dim=1)
        return self.model.pool(states)

    def _prompted(self, insertions: Mapping[int, Sequence[Insertion]], batch: int) -> dict[int, list[Insertion]]:
        """The insertions that hold at least one prompt, checked against this backbone and the batch."""
        prompted = {}
        for index, given in insertions.items():
            if not 0 <= index < self.depth:
                raise BackboneError(
                    f"prompts for block {index}, but this backbone has blocks 0 to {self.depth - 1}; choose among these"
                )
            for insertion in given:
                if not isinstance(insertion, (TokenPrompts, Prefix, RoutedPrompts)):
                    raise BackboneError(
                        f"block {index} was given a {type(insertion).__name__}; "
                        "give a list of TokenPrompts and Prefix, or RoutedPrompts"
                    )
                shape = (insertion.key if isinstance(insertion, Prefix) else insertion.tokens).shape
                if shape[0] not in (1, batch) or shape[2] != self.width:
                    raise BackboneError(
                        f"a prompt of block {index} has shape {tuple(shape)}; "
                        f"it must be ({batch} or 1, prompts, {self.width}) here"
                    )
            holding = [insertion for insertion in given if insertion.length]
            if holding:
                prompted[index] = holding
        return prompted


class NormedStream:
    """What each block's attention reads in the un-prompted backbone, and its keys and values for who asks for them.

    Iterating gives one `AttentionInput` a block, without gradient; a block's attention and MLP run when the next one is
    asked for, so the last block costs its norm alone and has no keys and values. Bit-identical to timm's own pass.
    """

    def __init__(self, backbone: FrozenViT, images: Tensor) -> None:
        self._backbone = backbone
        self._images = images
        self._states: Tensor | None = None

    def __iter__(self) -> Iterator[AttentionInput]:
        states = self._backbone.tokens(self._images)
        blocks = self._backbone.blocks
        for block in blocks[:-1]:
            with torch.no_grad():
                seen = AttentionInput(block.norm1(states), cast("Attention", block.attn))
            # Outside of no_grad: the reader's own operations on it are to be recorded.
            yield seen
            with torch.no_grad():
                states = states + block.drop_path1(block.ls1(seen.take_attended()))
                states = states + block.drop_path2(block.ls2(block.mlp(block.norm2(states))))
        with torch.no_grad():
            last = AttentionInput(blocks[-1].norm1(states), None)
        yield last
        self._states = states

    @torch.no_grad()
    def query(self) -> Tensor:
        """What `FrozenViT.query(images)` gives: the rest of the last block alone, once all states were read."""
        backbone = self._backbone
        if self._states is None:
            return backbone.query(self._images)
        return backbone._read(run_block(backbone.blocks[-1], self._states, rows=backbone._rows_read))
