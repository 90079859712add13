"""Counting floating-point operations, to say how many passes of the backbone a learner needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_FORMULAS = {
    **flop_registry,
    # Fused attention on the CPU, which torch's own table leaves out.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class OperationCounter(TorchDispatchMode):
    """A context that counts matrix products, convolutions and attention, forward and backward; a multiply-add is 2.

    torch's own `FlopCounterMode` also follows modules by hooks on their outputs, which a module that runs without
    gradient inside one that has them does not survive.

    Attributes:
        operations: counted so far, over all times that the context was entered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None:
            # Without gradient, torch leaves it to us to take a product apart into those that have a formula.
            with self:
                result = func.decompose(*args, **named)
            return func(*args, **named) if result is NotImplemented else result
        result = func(*args, **named)
        self.operations += formula(*args, **named, out_val=result)
        return result
