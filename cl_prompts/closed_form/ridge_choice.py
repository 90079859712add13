"""Which constant a ridge regression gets: fixed, a share of the scale, or the best of a grid by one of three measures.

A rule may keep features apart (`take`); `solve` gives the head for all samples that came, kept ones included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cl_prompts.closed_form.kept import HeldOut, KeptRows
from cl_prompts.closed_form.ridge import SMALLEST_SHARE, GramRidge, RecursiveRidge, check_ridge, solve_ridge

GRID = tuple(10.0**power for power in range(-8, 9))
"""Constants that RanPAC's released code tries (arXiv 2307.02251)."""

Expand = Callable[[Tensor], Tensor]


class RidgeRule(nn.Module):
    """Base: nothing is kept apart."""

    def begin_session(self) -> None:
        """A session begins."""

    def take(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See a batch of unexpanded features and target rows; returns what is summed now."""
        return features, rows

    def solve(self, sums: Any, expand: Expand) -> Tensor:
        """The head, float64 `(width, classes)`, from the form of ridge regression that the rule can read."""
        raise NotImplementedError


class FixedRidge(RidgeRule):
    """One constant, refused where it is too small for the features.

    Args:
        ridge: the constant.
        key: of the configuration, named in the error.
    """

    def __init__(self, ridge: float, key: str) -> None:
        super().__init__()
        self.ridge, self.key = ridge, key

    def solve(self, sums: GramRidge | RecursiveRidge, expand: Expand) -> Tensor:
        """The head of the constant."""
        check_ridge(self.key, self.ridge, sums.mean_square)
        return sums.head(self.ridge)


class ShareOfScale(RidgeRule):
    """A fixed share of `tr(G) / M`: it knows nothing but the scale of the features, and grows with the samples.

    Args:
        share: above `SMALLEST_SHARE`.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def solve(self, sums: GramRidge, expand: Expand) -> Tensor:
        """The head of that share; zeros before the first sample."""
        return sums.head(_scaled(self.share, sums))


class CrossValidated(RidgeRule):
    """Generalised cross-validation over the grid, from the sums alone; one eigendecomposition for a head."""

    def solve(self, sums: GramRidge, expand: Expand) -> Tensor:
        """The head of the constant with the least score."""
        if not bool(sums.samples):
            return torch.zeros_like(sums.cross)
        return sums.head(cross_validated_ridge(sums, _allowed(sums)))


class HoldOut(RidgeRule):
    """Least squared error on a uniform sample of the stream that is not in the sums while the constant is chosen.

    Until as many samples are summed as kept, the share decides.

    Args:
        kept: the sample.
        share: of `tr(G) / M`.
    """

    def __init__(self, kept: HeldOut, share: float) -> None:
        super().__init__()
        self.kept, self.share = kept, share

    def take(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange the batch with the sample."""
        return self.kept.exchange(features, rows)

    def solve(self, sums: GramRidge, expand: Expand) -> Tensor:
        """The head of all samples, for the constant that predicts the kept ones best from the others."""
        kept = expand(self.kept.features)
        gram, cross = sums.gram + kept.T @ kept, sums.cross + kept.T @ self.kept.rows
        if float(sums.samples) < len(kept) or not len(kept):
            scale = float(gram.diagonal().mean())
            return solve_ridge(gram, cross, self.share * scale or 1.0)
        ridge = held_out_ridge(sums.gram, sums.cross, kept, self.kept.rows, _allowed(sums))
        return solve_ridge(gram, cross, ridge)


class TaskGrid(RidgeRule):
    """As released with RanPAC: the grid on the current session alone, fitted on 80 % of it and measured on the rest.

    Only the constant comes from the session; the head always from all samples.

    Args:
        kept: features of the session.
        share: of `tr(G) / M`, for a session of one sample, where nothing is left to measure.
    """

    def __init__(self, kept: KeptRows, share: float) -> None:
        super().__init__()
        self.kept, self.share = kept, share

    def begin_session(self) -> None:
        """Forget the session before."""
        self.kept.clear()

    def take(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the batch and give it on."""
        self.kept.append(features, rows)
        return features, rows

    def solve(self, sums: GramRidge, expand: Expand) -> Tensor:
        """The head of all samples for the constant of the session so far."""
        fitted = int(0.8 * len(self.kept))
        if not fitted:
            return sums.head(_scaled(self.share, sums))
        features, rows = expand(self.kept.features), self.kept.rows
        first = features[:fitted]
        ridge = held_out_ridge(first.T @ first, first.T @ rows[:fitted], features[fitted:], rows[fitted:], GRID)
        if ridge >= SMALLEST_SHARE * sums.mean_square:
            return sums.head(ridge)
        # So small a constant is nobody's choice but the release's: its formula without what Cholesky needs.
        values, vectors = torch.linalg.eigh(sums.gram)
        return vectors @ ((vectors.T @ sums.cross) / (values.clamp(min=0) + ridge)[:, None])


def cross_validated_ridge(sums: GramRidge, grid: tuple[float, ...]) -> float:
    """The constant of least `RSS / (1 - df / n)^2` (Golub, Heath and Wahba 1979); the first of equal ones.

    `RSS = sum Y^2 - 2 tr(W^T Q) + tr(W^T G W)` for the head `W` of the constant, `df = tr((G + lambda I)^-1 G)`.
    """
    values, vectors = torch.linalg.eigh(sums.gram)
    values = values.clamp(min=0)
    squares = (vectors.T @ sums.cross).square().sum(1)

    def score(ridge: float) -> float:
        filtered = values + ridge
        residual = sums.energy - (2 * squares / filtered).sum() + (values * squares / filtered.square()).sum()
        left = 1 - float((values / filtered).sum() / sums.samples)
        return float(residual.clamp(min=0)) / left**2 if left > 1e-9 else float("inf")

    return min(grid, key=score)


def held_out_ridge(gram: Tensor, cross: Tensor, features: Tensor, rows: Tensor, grid: tuple[float, ...]) -> float:
    """The constant whose head from `gram`, `cross` has the least mean squared error on `features`, `rows`.

    The mean is over samples and all columns; the first of equal constants wins. All float64.
    """
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    inner, turned = vectors.T @ cross, features @ vectors

    def error(ridge: float) -> float:
        return float((turned @ (inner / (values + ridge)[:, None]) - rows).square().mean())

    return min(grid, key=error)


def _scaled(share: float, sums: GramRidge) -> float:
    # Without a sample every constant gives the head of zeros.
    return share * sums.mean_square or 1.0


def _allowed(sums: GramRidge) -> tuple[float, ...]:
    """The grid without what rounding would decide about."""
    least = SMALLEST_SHARE * sums.mean_square
    return tuple(ridge for ridge in GRID if ridge >= least) or (_scaled(1.0, sums),)
