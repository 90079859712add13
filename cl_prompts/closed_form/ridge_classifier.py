"""`RidgeClassifier`: features in, scores of all classes out; expansion, sums and the rule of the constant together."""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor, nn

from cl_prompts.closed_form.cached import Cached
from cl_prompts.closed_form.expansion import RandomExpansion
from cl_prompts.closed_form.ridge import GramRidge, RecursiveRidge, target_rows
from cl_prompts.closed_form.ridge_choice import RidgeRule

BORDER = 0.5
"""Scores are regressions to 0 and 1: in the middle lies the border between absent and present."""

_GROWTH = 1.1


class RidgeClassifier(nn.Module):
    """A ridge head on expanded features; solved when asked for scores after new samples, kept outside the state.

    Buffers of its own: `samples` seen, int64, and, where a head costs a solve, `running_head` float32
    `(width, classes)`, see `running_scores`.

    Args:
        expansion: of the features.
        sums: of the expanded features.
        rule: of the constant.
    """

    def __init__(self, expansion: RandomExpansion, sums: GramRidge | RecursiveRidge, rule: RidgeRule) -> None:
        super().__init__()
        self.expansion, self.sums, self.rule = expansion, sums, rule
        self._head: Cached[Tensor] = Cached()
        self.samples: Tensor
        self.running_head: Tensor | None
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))
        running = None if sums.is_current else torch.zeros(expansion.out_width, sums.num_classes)
        self.register_buffer("running_head", running)

    @torch.no_grad()
    def learn(self, features: Tensor, targets: Tensor) -> None:
        """Take up a batch: features `(batch, width)`, targets as `target_rows` takes them."""
        before = int(self.samples)
        features, rows = self.rule.take(features, target_rows(targets, self.sums.num_classes))
        self.sums.add(self.expansion(features), rows)
        self.samples += len(targets)
        if self.running_head is not None and _step(before + len(targets)) > _step(before):
            self.running_head.copy_(self.head())

    def scores(self, features: Tensor) -> Tensor:
        """Scores float64 `(batch, classes)`: above 0 is nearer to present, below to absent."""
        return self.expansion(features) @ self.head() - BORDER

    def running_scores(self, features: Tensor) -> Tensor:
        """The same from a head that is up to a tenth of the stream old.

        What a curve of the training batches needs, without a solve for each; which samples it knows depends on their
        number alone, so that nobody who asks for `scores` in between changes it.
        """
        if self.running_head is None:
            return self.scores(features)
        return self.expansion(features) @ self.running_head.double() - BORDER

    def head(self) -> Tensor:
        """The head of all samples so far, float64 `(width, classes)`."""
        state = chain(self.sums.buffers(), self.rule.buffers())
        return self._head.of(state, lambda: self.rule.solve(self.sums, self.expansion))


def _step(samples: int) -> int:
    """A number that grows by one whenever the samples grow by a tenth."""
    return int(math.log(samples) / math.log(_GROWTH)) + 1 if samples else 0
