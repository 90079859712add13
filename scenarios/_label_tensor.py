"""Label rows that refuse to be read as class ids.

Avalanche's accuracy, forgetting and confusion metrics take the largest entry of a two-dimensional target for its class
id. Of several labels an image that makes a number without meaning, and without an error. Labels are therefore tensors
that refuse exactly this step, from the item of a data set on: no data loader has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from scenarios.errors import DataError

_TO_CLASS_IDS = frozenset({torch.argmax, torch.Tensor.argmax, torch.topk, torch.Tensor.topk})
_LARGEST = frozenset({torch.max, torch.Tensor.max})  # to class ids only along a dimension
_STILL_LABELS = frozenset(
    {
        torch.Tensor.to,
        torch.Tensor.cpu,
        torch.Tensor.cuda,
        torch.Tensor.pin_memory,
        torch.Tensor.float,
        torch.Tensor.double,
        torch.Tensor.half,
        torch.Tensor.index_select,
        torch.index_select,
        torch.Tensor.clone,
        torch.clone,
        torch.Tensor.detach,
        torch.Tensor.contiguous,
        torch.Tensor.__getitem__,
        torch.cat,
        torch.stack,
    }
)


class LabelTensor(torch.Tensor):
    """Label rows, float32 `(classes,)` or `(batch, classes)`: a tensor whose largest entry is no class id.

    Moved, copied, joined and indexed rows stay what they are; what is computed from them is an ordinary tensor.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` unless it would turn rows of labels into class ids.

        Raises:
            DataError: `func` takes the largest entry of every row.
        """
        kwargs = dict(kwargs or {})
        # Everything below reads the tensor as an ordinary one: even its shape would come back here.
        with torch._C.DisableTorchFunctionSubclass():
            if func in _TO_CLASS_IDS | _LARGEST and args and isinstance(args[0], cls):
                _refuse_class_ids(func, args[0], (*args[1:], *kwargs.values()))
            result = func(*args, **kwargs)
            if func in _STILL_LABELS and isinstance(result, torch.Tensor):
                return result.as_subclass(cls)
            return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = copied = self.detach().clone()
        return copied


def _refuse_class_ids(func: Callable[..., Any], labels: torch.Tensor, options: Sequence[Any]) -> None:
    # The largest of all entries, or of two batches, is a label and no class id.
    along_rows = func in _TO_CLASS_IDS or any(isinstance(option, int) for option in options)
    if labels.ndim > 1 and along_rows:
        raise DataError(
            f"a batch has label rows {tuple(labels.shape)}, several labels an image: the largest entry of a row is no"
            " class id, so an accuracy, forgetting or confusion metric would be meaningless; use mean average precision"
            " (mAP), CF1 or OF1"
        )
