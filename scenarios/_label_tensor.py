"""Label rows that refuse to be read as class ids.

Avalanche's accuracy, forgetting and confusion metrics take the largest entry of a two-dimensional target for its class
id. Of several labels an image that makes a number without meaning, and without an error. Labels are therefore tensors
that refuse exactly this step, from the item of a data set on: no data loader has to know. Nor may a loss of torch read
hidden labels: it would be no number, and so would every weight after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from scenarios.errors import DataError

_TO_CLASS_IDS = frozenset({torch.argmax, torch.Tensor.argmax, torch.topk, torch.Tensor.topk})
_LARGEST = frozenset({torch.max, torch.Tensor.max})  # to class ids only along a dimension
_LOSSES = frozenset(
    {
        torch.binary_cross_entropy_with_logits,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.cross_entropy,
        F.hinge_embedding_loss,
        F.huber_loss,
        F.kl_div,
        F.l1_loss,
        F.mse_loss,
        F.multilabel_soft_margin_loss,
        F.poisson_nll_loss,
        F.smooth_l1_loss,
        F.soft_margin_loss,
    }
)
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


_NO_CLASS_ID = (
    "several labels an image: {} no class id, so an accuracy, forgetting or confusion metric would be meaningless; use"
    " mean average precision (mAP), CF1 or OF1"
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
        """Run `func` unless it would turn rows of labels into class ids, or hidden labels into a loss.

        Raises:
            DataError: `func` takes the largest entry of every row, or is a loss and some labels are hidden.
        """
        kwargs = dict(kwargs or {})
        # Everything below reads the tensor as an ordinary one: even its shape would come back here.
        with torch._C.DisableTorchFunctionSubclass():
            if func in _TO_CLASS_IDS | _LARGEST and args and isinstance(args[0], cls):
                _refuse_class_ids(func, args[0], (*args[1:], *kwargs.values()))
            if func in _LOSSES:
                _refuse_hidden([one for one in (*args, *kwargs.values()) if isinstance(one, LabelTensor)])
            result = func(*args, **kwargs)
            if func in _STILL_LABELS and isinstance(result, torch.Tensor):
                return result.as_subclass(cls)
            if func in _LARGEST and isinstance(result, torch.Tensor) and isinstance(args[0], cls):
                return result.as_subclass(LargestLabel)
            return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = copied = self.detach().clone()
        return copied


class LargestLabel(LabelTensor):
    """The largest of all labels of a batch, which a top-k accuracy would take for the last class id."""

    def __int__(self) -> int:
        """Refused.

        Raises:
            DataError: always; `float` and `item` read the label.
        """
        raise DataError(_NO_CLASS_ID.format("the largest label of a batch is"))


def _refuse_hidden(labels: Sequence[torch.Tensor]) -> None:
    for rows in labels:
        hidden = int(torch.isnan(rows).sum())
        if hidden:
            raise DataError(
                f"labels of this batch are hidden (nan): {hidden} of {rows.numel()}, so the loss would be no number;"
                " use cl_prompts.labels.VisibleLabelLoss() as criterion, which reads visible labels only"
            )


def _refuse_class_ids(func: Callable[..., Any], labels: torch.Tensor, options: Sequence[Any]) -> None:
    # The largest of all entries, or of two batches, is a label and no class id.
    along_rows = func in _TO_CLASS_IDS or any(isinstance(option, int) for option in options)
    if labels.ndim > 1 and along_rows:
        raise DataError(
            _NO_CLASS_ID.format(f"a batch has label rows {tuple(labels.shape)}: the largest entry of a row is")
        )
