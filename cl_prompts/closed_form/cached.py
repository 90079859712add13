"""`Cached`: what is computed from buffers, kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class Cached(Generic[Value]):
    """A value that lives beside the state of a module and never inside it: saved states stay what they are."""

    def __init__(self) -> None:
        # The tensors themselves: the identity of one that is gone may be given to another.
        self._of: list[tuple[Tensor, int]] | None = None
        self._value: Value

    def of(self, buffers: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
        """The value for these buffers as they are; computed anew where one was written to or replaced."""
        found = [(buffer, buffer._version) for buffer in buffers]
        known = self._of
        if (
            known is None
            or len(known) != len(found)
            or any(old is not new or version != now for (old, version), (new, now) in zip(known, found, strict=True))
        ):
            self._value = compute()
            self._of = found
        return self._value

    def __deepcopy__(self, memo: dict[int, object]) -> Cached[Value]:
        return Cached()
