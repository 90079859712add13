"""`BackboneGuard`: the frozen backbone is the same at the end of a run as at its start, to the last bit."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.errors import BackboneError


class BackboneGuard:
    """Compares a backbone with what it was when the guard was made.

    Cost: `look` reads a counter of each tensor (microseconds); the guard itself and `compare` hash every weight once,
    about a third of a second each for the 86 million weights of a ViT-B on a processor with instructions for sha256, a
    second on one without.

    Args:
        backbone: on the device where it stays.
    """

    def __init__(self, backbone: FrozenViT) -> None:
        self._backbone = backbone
        self._digests = self._hashed()
        self._states = self._counted()

    def look(self) -> None:
        """Compare where a tensor was replaced or written to since the last look; cheap otherwise.

        Raises:
            BackboneError: names the tensors whose values changed.
        """
        states = self._counted()
        if states != self._states:
            self._states = states
            self.compare()

    def compare(self) -> None:
        """Compare every value, those written past torch's counters, too.

        Raises:
            BackboneError: names the tensors whose values changed.
        """
        found = self._hashed()
        names = sorted(self._digests.keys() | found.keys())
        changed = [name for name in names if found.get(name) != self._digests.get(name)]
        if changed:
            more = f" and {len(changed) - 1} more tensors" if len(changed) > 1 else ""
            raise BackboneError(
                f"the frozen backbone changed during training: {changed[0]}{more}; the numbers of this run are not "
                "those of its weights. Look for a plugin or a method that writes to them, and start the run anew"
            )

    def _counted(self) -> dict[str, tuple[int, int, int]]:
        """Identity, place and number of changes of each tensor."""
        tensors = self._backbone.state_dict(keep_vars=True)
        return {name: (id(tensor), tensor.data_ptr(), tensor._version) for name, tensor in tensors.items()}

    def _hashed(self) -> dict[str, str]:
        return {name: tensor_sha256(tensor) for name, tensor in self._backbone.state_dict().items()}


def tensor_sha256(tensor: Tensor) -> str:
    """Hash of type, shape and bytes; one tensor at a time is fetched from a GPU."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
