"""Prompts as values: what is inserted into a frozen block, and where. Source: the codes of L2P, DualPrompt and MVP.

Four forms are used in the literature; they compute different functions, so each is spelled differently here:

| form | written as | where the prompt enters |
| --- | --- | --- |
| T  | `TokenPrompts(tokens, keep=True)` | joined before the block, stays a token of all later blocks |
| T* | `TokenPrompts(tokens)` | joined before the block, cut off after it |
| K- | `Prefix(key, value, space="input")` | projected by the block's own key and value weights, not normed |
| K+ | `Prefix(key, value, space="projected")` | used as keys and values as they are, heads side by side |

A fifth kind is routed: `RoutedPrompts` are T* tokens of which every row of the sequence sees its own choice.

No position is added to any of them: a method that wants one adds `FrozenViT.position_of_class_token` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from cl_prompts.errors import BackboneError


@dataclass(frozen=True, eq=False)
class TokenPrompts:
    """Extra tokens in front of a block (T, T*).

    `tokens` is `(batch, prompts, width)`, or `(1, prompts, width)` to share them among all samples; `prompts` may be 0.
    With `keep` they stay to the end of the network, and are removed before average or attention pooling.

    Raises:
        BackboneError: the tensor has another rank.
    """

    tokens: Tensor
    keep: bool = False

    def __post_init__(self) -> None:
        _check_rank("TokenPrompts.tokens", self.tokens)

    @property
    def length(self) -> int:
        """Number of prompt tokens."""
        return self.tokens.shape[1]


@dataclass(frozen=True, eq=False)
class Prefix:
    """Extra keys and values inside the attention of a block (K-, K+); queries and rows stay as they are.

    `key` and `value` are `(batch, prompts, width)`, or `(1, prompts, width)` to share them. In `"input"` space the
    block's own key and value weights and biases project them (its first norm is skipped, its key norm, if any, is
    applied). In `"projected"` space they are taken as they are, head 0 first, without the key norm.

    Raises:
        BackboneError: a tensor has another rank, key and value differ in shape, or the space is unknown.
    """

    key: Tensor
    value: Tensor
    space: Literal["input", "projected"] = "input"

    def __post_init__(self) -> None:
        _check_rank("Prefix.key", self.key)
        if self.key.shape != self.value.shape:
            raise BackboneError(
                f"Prefix.value has shape {tuple(self.value.shape)} but Prefix.key {tuple(self.key.shape)}; "
                "every key needs its value: give both the same shape"
            )
        if self.space not in ("input", "projected"):
            raise BackboneError(f"Prefix.space is {self.space!r}; use 'input' (before projection) or 'projected'")

    @property
    def length(self) -> int:
        """Number of keys (and values)."""
        return self.key.shape[1]


@dataclass(frozen=True, eq=False)
class RoutedPrompts:
    """Extra tokens in front of a block, cut off after it, of which each row of the sequence sees some (TCPA).

    `tokens` is as in `TokenPrompts`. `route` is asked once a pass with the states that enter the block, float
    `(batch, rows, width)`, and answers which row sees which prompt, bool `(batch, rows, prompts)`. What a row may not
    see is left out before the softmax (`"logits"`), or only its values are, so that it still takes its share of the
    attention and the rest sums to less than one (`"output"`).

    Raises:
        BackboneError: the tensor has another rank, or the masking is unknown.
    """

    tokens: Tensor
    route: Callable[[Tensor], Tensor]
    masking: Literal["output", "logits"] = "output"

    def __post_init__(self) -> None:
        _check_rank("RoutedPrompts.tokens", self.tokens)
        if self.masking not in ("output", "logits"):
            raise BackboneError(f"RoutedPrompts.masking is {self.masking!r}; use 'output' or 'logits'")

    @property
    def length(self) -> int:
        """Number of prompt tokens."""
        return self.tokens.shape[1]


Insertion: TypeAlias = TokenPrompts | Prefix | RoutedPrompts


def _check_rank(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 3:
        raise BackboneError(
            f"{name} has shape {tuple(tensor.shape)}; it must be (batch, prompts, width), with batch 1 to share it"
        )
