"""Finding the linear head of a foreign model and hooking what it reads."""

from __future__ import annotations

from typing import Any

from torch import nn

from cl_prompts.errors import StrategyError


def find_head(model: nn.Module, name: str | None) -> nn.Linear:
    """The model's classifier: the module called `name`, or the last `nn.Linear` that is trained if None.

    Raises:
        StrategyError: no such module, or it is not an `nn.Linear`.
    """
    modules = dict(model.named_modules())
    if name is None:
        linears = [
            module for module in modules.values() if isinstance(module, nn.Linear) and module.weight.requires_grad
        ]
        if not linears:
            raise StrategyError(f"{type(model).__name__} has no trained nn.Linear that could be its classifier")
        return linears[-1]
    head = modules.get(name)
    if not isinstance(head, nn.Linear):
        raise StrategyError(f"head={name!r}: {type(model).__name__} has no nn.Linear of that name")
    return head


def refuse_own(model: nn.Module, setting: str, plugin: str) -> None:
    """Refuse a method that has the plugin's part itself: the two would not see each other.

    Raises:
        StrategyError: the model's settings hold `setting`.
    """
    if hasattr(getattr(model, "settings", None), setting):
        raise StrategyError(
            f"{plugin}: {type(model).__name__} has this part itself; use its setting strategy.{setting}"
        )


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
