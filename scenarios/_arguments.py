"""Arguments of the stream generators: checked by the same settings classes as the config files, errors in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from scenarios.errors import PlanError
from scenarios.settings import Settings

LARGEST_SEED = 2**64 - 1  # what a 64-bit generator takes

SettingsT = TypeVar("SettingsT", bound=Settings)


def checked(kind: type[SettingsT], stream: str, **values: Any) -> SettingsT:
    """The settings made of these arguments; numpy numbers count as numbers.

    Raises:
        PlanError: an argument of a wrong type or out of range; `stream` names the stream in the message.
    """
    try:
        return kind(**{key: plain(value) for key, value in values.items()})
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, one['loc']))}={one['input']!r}: {_reason(one)}" for one in error.errors()]
        raise PlanError(f"{stream} stream: {'; '.join(parts)}") from None


def _reason(details: ErrorDetails) -> str:
    """What a validator of this project says, without the frame that pydantic puts around it."""
    cause = details.get("ctx", {}).get("error")
    return details["msg"] if cause is None else str(cause)


def plain(value: Any) -> Any:
    """A numpy number or vector as the Python number or list it holds; everything else as it is."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int within `low..high`.

    Raises:
        PlanError: no whole number, or out of range.
    """
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise PlanError(f"{name}={value!r}: give a whole number from {low} to {high}")
    return value


def names_of_classes(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """Class names as a tuple of text, or None.

    Raises:
        PlanError: not one name a class.
    """
    if class_names is None:
        return None
    names = tuple(str(name) for name in class_names)
    if len(names) != num_classes:
        raise PlanError(f"class_names has {len(names)} names for {num_classes} classes: give one name a class")
    return names


def class_order(order: Any, num_classes: int, allowed: str) -> list[int]:
    """`order` as a list of all class ids.

    Raises:
        PlanError: no permutation of `0..num_classes - 1`; `allowed` says what else may be given.
    """
    given = _permutation(order)
    if given is None or len(given) != num_classes:
        order = plain(order)
        shown = list(order) if isinstance(order, tuple) else order
        raise PlanError(
            f"order={shown!r}: give {allowed}, or a list of the {num_classes} class ids 0..{num_classes - 1}, each once"
        )
    return list(given)


def order_setting(order: Any, allowed: str) -> tuple[int, ...]:
    """`order` as the class ids of a settings field, before the number of classes is known.

    Raises:
        ValueError: not every whole number from 0 once; `allowed` says what else may be given.
    """
    given = _permutation(order)
    if given is None:
        raise ValueError(f"give {allowed}, or a list of all class ids, each once")
    return given


def _permutation(order: Any) -> tuple[int, ...] | None:
    """`order` as class ids, or None where it is no permutation of whole numbers from 0."""
    order = plain(order)
    if not isinstance(order, Sequence) or isinstance(order, str):
        return None
    given = tuple(plain(one) for one in order)
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in given)
    return given if whole and sorted(given) == list(range(len(given))) else None


def as_tuple(value: Any) -> Any:
    """A list as the tuple that a frozen settings field holds; everything else as it is, for the field to judge."""
    return tuple(value) if isinstance(value, list) else value


ClassIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(as_tuple)]
"""A settings field that takes a list of class ids."""
