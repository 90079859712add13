"""What the loop asks of labels, for one class id an image and for several labels an image.

Several labels are float rows `(batch, classes)`: 1 positive, 0 negative, NaN hidden. A hidden label is neither, and
whoever reads it gets a loss that is not a number, which stops the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_prompts.errors import StrategyError


class LabelKind(Protocol):
    """One form of labels."""

    name: str

    def shown(self, targets: Tensor, num_classes: int) -> Tensor:
        """Columns that a batch of labels tells about, bool `(classes,)`."""

    def outside(self, targets: Tensor, num_classes: int) -> Tensor:
        """Rows of a batch with a label that cannot be, bool `(batch,)`."""

    def describe(self, target: Tensor, num_classes: int) -> str:
        """One label of a row that is `outside`, and what is allowed."""

    def loss(self, logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
        """Mean classification loss over the competing columns `allowed`, bool `(classes,)`."""

    def evaluation_loss(self, logits: Tensor, targets: Tensor, exposed: Tensor) -> Tensor:
        """The same in evaluation; `exposed`, bool `(classes,)`, are the classes seen so far."""

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Two numbers whose ratio is the running score of training, float `(2,)`: hits, and what could be hit."""


class OneLabel:
    """One class id an image, int64 `(batch,)`: cross-entropy, accuracy."""

    name = "accuracy"

    def shown(self, targets: Tensor, num_classes: int) -> Tensor:
        """The classes that occur."""
        columns = torch.zeros(num_classes, dtype=torch.bool, device=targets.device)
        return columns.index_fill_(0, targets, True)

    def outside(self, targets: Tensor, num_classes: int) -> Tensor:
        """Class ids without a column in the head."""
        return (targets < 0) | (targets >= num_classes)

    def describe(self, target: Tensor, num_classes: int) -> str:
        """The class id, and the ids there are."""
        return f"label {int(target)} is outside 0..{num_classes - 1}"

    def loss(self, logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
        """Cross-entropy over the competing classes."""
        return F.cross_entropy(logits.masked_fill(~allowed, float("-inf")), targets)

    def evaluation_loss(self, logits: Tensor, targets: Tensor, exposed: Tensor) -> Tensor:
        """Cross-entropy of masked logits: a class that does not compete is a large loss, not an infinite one."""
        return F.cross_entropy(logits, targets)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Share of correct predictions over one."""
        correct = (logits.argmax(-1) == targets).float().mean()
        return torch.stack([correct, torch.ones_like(correct)])


class SeveralLabels:
    """Rows of labels, float `(batch, classes)`, NaN where hidden: sigmoid loss, micro F1."""

    name = "F1"

    def shown(self, targets: Tensor, num_classes: int) -> Tensor:
        """The columns with a visible label, positive or negative."""
        return visible_labels(targets).any(0)

    def outside(self, targets: Tensor, num_classes: int) -> Tensor:
        """Rows of another length than the head, or with a visible label below 0 or above 1."""
        if targets.shape[1] != num_classes:
            return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
        return ((targets < 0) | (targets > 1)).any(1)

    def describe(self, target: Tensor, num_classes: int) -> str:
        """The first label that is neither positive, negative nor hidden; or the length of the row."""
        if len(target) != num_classes:
            return f"a row has {len(target)} labels, the head {num_classes} columns"
        column = int(((target < 0) | (target > 1)).nonzero()[0])
        return f"label {float(target[column]):g} of class {column} is outside 0..1 (NaN where it is hidden)"

    def loss(self, logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the visible labels of the competing columns."""
        visible = visible_labels(targets) & allowed
        return visible_cross_entropy(logits, targets, visible).sum() / visible.sum().clamp(min=1)

    def evaluation_loss(self, logits: Tensor, targets: Tensor, exposed: Tensor) -> Tensor:
        """The same over the columns of the classes seen so far."""
        return self.loss(logits, targets, exposed)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Twice the true positives over positives and predictions at probability 0.5: micro F1."""
        visible = visible_labels(targets)
        predicted = (logits > 0) & visible
        positive = (targets > 0.5) & visible
        found = 2 * (predicted & positive).sum()
        return torch.stack([found, predicted.sum() + positive.sum()]).float()


class VisibleLabelLoss(nn.Module):
    """Binary cross-entropy over the labels that a batch shows: a criterion for Avalanche's own strategies.

    `(batch, classes)` logits and label rows, NaN where hidden, to the mean over the visible labels; 0 if none is.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of the visible labels, a scalar with the graph behind it."""
        visible = visible_labels(targets)
        return visible_cross_entropy(logits, targets, visible).sum() / visible.sum().clamp(min=1)


LABEL_KINDS: dict[int, LabelKind] = {1: OneLabel(), 2: SeveralLabels()}
"""Dimensions of a batch of labels -> what they are."""


def label_kind(targets: Tensor) -> LabelKind:
    """The kind of a batch of labels.

    Raises:
        StrategyError: neither class ids nor rows of labels.
    """
    if targets.ndim not in LABEL_KINDS or targets.is_floating_point() != (targets.ndim == 2):
        raise StrategyError(
            f"labels of shape {tuple(targets.shape)} and type {targets.dtype}: give int64 class ids (batch,), or float "
            "rows (batch, classes) with NaN where a label is hidden"
        )
    return LABEL_KINDS[targets.ndim]


def check_labels_of_batch(targets: Tensor, num_classes: int, sample_ids: Sequence[int] | Tensor | None = None) -> None:
    """Refuse labels that a head of so many columns does not have.

    Labels on a GPU are not looked at: that would wait for it, and loaders give them on the CPU.

    Args:
        targets: class ids `(batch,)` or rows of labels `(batch, classes)`.
        num_classes: columns of the head.
        sample_ids: data-set indices of the rows, where they are known.

    Raises:
        StrategyError: names the first such label, its sample and what is allowed; or labels of neither kind.
    """
    kind = label_kind(targets)
    if targets.device.type != "cpu":
        return
    # As ordinary numbers: rows of labels refuse much of what can be done with tensors.
    targets = targets.detach().as_subclass(Tensor)
    outside = kind.outside(targets, num_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        known = sample_ids is not None and row < len(sample_ids)
        where = f"sample {int(sample_ids[row])}" if sample_ids is not None and known else f"row {row} of the batch"
        raise StrategyError(
            f"{where}: {kind.describe(targets[row], num_classes)}; correct the labels, or give the strategy as many "
            "classes as the stream has"
        )


def visible_labels(targets: Tensor) -> Tensor:
    """Labels that may be read, bool `(batch, classes)`."""
    return ~torch.isnan(targets)


def visible_cross_entropy(logits: Tensor, targets: Tensor, visible: Tensor) -> Tensor:
    """Binary cross-entropy of each label, float `(batch, classes)`; 0 where `visible`, bool of that shape, is not.

    A label called visible that is hidden gives NaN: nothing here turns it into a number.
    """
    # The fill keeps hidden entries out of the gradient; NaN times 0 would stay NaN.
    targets = targets.to(logits.dtype).masked_fill(~visible, 0.0)
    losses = F.binary_cross_entropy_with_logits(logits.masked_fill(~visible, 0.0), targets, reduction="none")
    return losses.masked_fill(~visible, 0.0)
