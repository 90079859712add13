"""Finding the linear head of a foreign model and hooking what it reads."""

from __future__ import annotations

from typing import Any

from torch import nn

from cl_prompts.errors import StrategyError


def find_head(model: nn.Module, name: str | None) -> nn.Linear:
    """The model's classifier: the module called `name`, or the last `nn.Linear` if None.

    Raises:
        StrategyError: no such module, or it is not an `nn.Linear`.
    """
    modules = dict(model.named_modules())
    if name is None:
        linears = [module for module in modules.values() if isinstance(module, nn.Linear)]
        if not linears:
            raise StrategyError(f"{type(model).__name__} has no nn.Linear; give the classifier's name as head=...")
        return linears[-1]
    head = modules.get(name)
    if not isinstance(head, nn.Linear):
        raise StrategyError(f"head={name!r}: {type(model).__name__} has no nn.Linear of that name")
    return head


class HeadHook:
    """Keeps one forward pre-hook on the head of a strategy's model, also when the strategy replaces its model."""

    def __init__(self, name: str | None, hook: Any, *, first: bool) -> None:
        self.name = name
        self.hook = hook
        self.first = first
        self.head: nn.Linear | None = None
        self._handle: Any = None

    def attach(self, model: nn.Module) -> None:
        """Hook the head of `model`, unhooking the previous one."""
        head = find_head(model, self.name)
        if head is not self.head:
            self.detach()
            self.head = head
            self._handle = head.register_forward_pre_hook(self.hook, prepend=self.first)

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self.head, self._handle = None, None
