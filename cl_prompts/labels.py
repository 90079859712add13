"""What the loop asks of labels, for one class id an image and for several labels an image.

Several labels are float rows `(batch, classes)`: 1 positive, 0 negative, NaN hidden. A hidden label is neither, and
whoever reads it gets a loss that is not a number, which stops the run.
"""

from __future__ import annotations

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
