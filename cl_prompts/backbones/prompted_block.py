"""One frozen block and its insertions: which tokens join the sequence, which only its attention, and who sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor

from cl_prompts.backbones.attention import Routed, run_block
from cl_prompts.backbones.insertions import Insertion, Prefix, RoutedPrompts, TokenPrompts
from cl_prompts.errors import BackboneError


def run_prompted(
    block: Block, states: Tensor, insertions: Sequence[Insertion], rows: slice | list[int] | None, trim: bool
) -> Tensor:
    """A frozen block with what is inserted into it, float `(batch, rows or tokens, width)`.

    Args:
        block: the stock block.
        states: what enters it, float `(batch, tokens, width)`.
        insertions: checked ones; those that stay are the last rows of the result, in their order.
        rows: compute only these rows of the result; with `trim` alone.
        trim: compute no row that is cut off; False: what timm computes on the longer sequence.

    Raises:
        BackboneError: a route that answers in another form.
    """
    tokens = [insertion for insertion in insertions if isinstance(insertion, TokenPrompts)]
    prefixes = [insertion for insertion in insertions if isinstance(insertion, Prefix)]
    kept = [insertion.tokens for insertion in tokens if insertion.keep]
    cut = [insertion.tokens for insertion in tokens if not insertion.keep]
    states = _joined(states, kept)
    routed = [_routed(one, states, rows) for one in insertions if isinstance(one, RoutedPrompts)]
    if trim:
        return run_block(block, states, context=cut, prefixes=prefixes, routed=routed, rows=rows)
    longer = _joined(states, cut)
    # Rows that are cut off may see anything.
    more = longer.shape[1] - states.shape[1]
    routed = [one._replace(visible=F.pad(one.visible, (0, 0, 0, more), value=True)) for one in routed]
    return run_block(block, longer, prefixes=prefixes, routed=routed)[:, : states.shape[1]]


def _routed(prompts: RoutedPrompts, states: Tensor, rows: slice | list[int] | None) -> Routed:
    """Routed prompts with the answer of their route for the rows that are computed."""
    visible = prompts.route(states)
    expected = (*states.shape[:2], prompts.length)
    if visible.shape != expected or visible.dtype != torch.bool:
        raise BackboneError(
            f"RoutedPrompts.route gave {visible.dtype} {tuple(visible.shape)}; it must give bool "
            f"(batch, rows, prompts), here {expected}"
        )
    return Routed(prompts.tokens, visible if rows is None else visible[:, rows], prompts.masking == "logits")


def _joined(states: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """Prompts behind the sequence: without positions, their place changes no number."""
    if not prompts:
        return states
    return torch.cat([states, *(prompt.expand(states.shape[0], -1, -1) for prompt in prompts)], dim=1)
