"""Nested state as one safetensors file and back: no pickle, so that a file can hold numbers and text and nothing else.

Tensors go into the file by number; everything around them is JSON in its metadata. Dictionaries may have any plain
keys, and tuples stay tuples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cl_prompts.errors import UserError

FORMAT = "cl_prompts state 1"
_LENGTH = 8
"""Bytes in front of the header of a safetensors file that say how long it is."""
_PLAIN = (str, int, float, bool, type(None))


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """The content of a file that holds `state`: dictionaries, lists, tuples, numbers, text, tensors and arrays.

    Raises:
        TypeError: something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_encoded(state, tensors))
    return in_one_order(save(tensors, metadata={"format": FORMAT, "tree": tree}))


def in_one_order(content: bytes) -> bytes:
    """The content of a safetensors file with its metadata sorted: equal states give equal bytes.

    The library writes them in an order that differs from call to call.
    """
    size = int.from_bytes(content[:_LENGTH], "little")
    header = json.loads(content[_LENGTH : _LENGTH + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _LENGTH)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(_LENGTH, "little") + text + content[_LENGTH + size :]


def from_bytes(content: bytes) -> dict[str, Any]:
    """The state that `to_bytes` made the content of.

    Raises:
        UserError: a file of another kind, damaged, or that contradicts itself.
    """
    try:
        # The header: its length in 8 bytes, then JSON; the reader of tensors checks it again.
        size = int.from_bytes(content[:_LENGTH], "little")
        metadata = json.loads(content[_LENGTH : _LENGTH + size])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise UserError(f"a state of the format {str(metadata['format'])[:40]!r}, this version reads {FORMAT!r}")
        state = _decoded(json.loads(metadata["tree"]), load(content))
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__} in place of a state")
        return state
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"no saved state, or a damaged one ({reason})") from error


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor | np.ndarray):
        name = str(len(tensors))
        # A copy: tensors that share memory are refused by the format.
        tensors[name] = torch.as_tensor(value).detach().cpu().contiguous().clone()
        return {"array" if isinstance(value, np.ndarray) else "tensor": name}
    if isinstance(value, Mapping):
        return {"pairs": [[_encoded(key, tensors), _encoded(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encoded(item, tensors) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be part of a saved state")


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return READERS[kind](content, tensors)


READERS = {
    "tensor": lambda content, tensors: tensors[content],
    "array": lambda content, tensors: tensors[content].numpy(),
    "tuple": lambda content, tensors: tuple(_decoded(item, tensors) for item in content),
    "pairs": lambda content, tensors: {_decoded(key, tensors): _decoded(item, tensors) for key, item in content},
}
"""Mark in the tree -> what it stands for."""
