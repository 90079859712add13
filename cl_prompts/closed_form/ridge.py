"""Ridge regression on labels from a stream, in two forms that give the same head: sums, and a recursion.

`GramRidge` sums `G = H^T H` and `Q = H^T Y` and solves `(G + lambda I) W = Q` when asked; `RecursiveRidge` keeps
`R = (G + lambda I)^-1` and `W` current after each batch (GACL, arXiv 2403.15706, in the stable Cholesky form). Both
are exact: neither the order of the samples nor their cut into batches changes more than rounding. All is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_prompts.errors import StrategyError
from cl_prompts.labels import label_kind, visible_labels

SMALLEST_SHARE = 1e-6
"""Least ridge as a share of `tr(G) / M`: below it rounding begins to decide about the head."""


def target_rows(targets: Tensor, num_classes: int) -> Tensor:
    """What is regressed on, float64 `(batch, classes)`: 1 where a class is present, else 0.

    A hidden label counts as 0, as the absent classes of one label an image do: one matrix `G` then serves every class.
    Where whether a label is hidden does not depend on the image, that scales the scores of a class and leaves the order
    of the images by them.

    Args:
        targets: int64 `(batch,)` class ids, or float `(batch, classes)` rows with NaN where a label is hidden.
        num_classes: columns.
    """
    label_kind(targets)
    if targets.ndim == 1:
        rows = torch.zeros(len(targets), num_classes, dtype=torch.float64, device=targets.device)
        return rows.scatter_(1, targets[:, None], 1.0)
    return targets.double().masked_fill(~visible_labels(targets), 0.0)


def solve_ridge(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """`(G + lambda I)^-1 Q`, float64 `(width, classes)`, by Cholesky.

    Raises:
        StrategyError: the matrix is not positive definite in float64.
    """
    factor, failed = torch.linalg.cholesky_ex(_shifted(gram, ridge))
    if bool(failed):
        raise StrategyError(
            f"ridge={ridge:g}: too small for features whose squares sum to {float(gram.diagonal().mean()):.3g} on "
            "average; set a larger one"
        )
    return torch.cholesky_solve(cross, factor)


def check_ridge(key: str, ridge: float, mean_square: float) -> None:
    """Refuse a ridge so small that rounding would decide.

    Args:
        key: of the configuration, named in the error.
        ridge: its value.
        mean_square: `tr(G) / M`.

    Raises:
        StrategyError: below `SMALLEST_SHARE` of it.
    """
    least = SMALLEST_SHARE * mean_square
    if ridge < least:
        raise StrategyError(
            f"{key}={ridge:g}: below {SMALLEST_SHARE:g} of the mean squared norm of the expanded features "
            f"({mean_square:.3g}), where rounding decides about the head; set at least {least:.2g}"
        )


class GramRidge(nn.Module):
    """Sums from which the head of any ridge follows.

    Buffers, float64: `gram` `(width, width)`, `cross` `(width, classes)`, `energy` (sum of the squared targets) and
    `samples`, scalars.

    Args:
        width: of the features.
        num_classes: columns of the head.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.gram: Tensor
        self.cross: Tensor
        self.energy: Tensor
        self.samples: Tensor
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("cross", torch.zeros(width, num_classes, dtype=torch.float64))
        self.register_buffer("energy", torch.zeros((), dtype=torch.float64))
        self.register_buffer("samples", torch.zeros((), dtype=torch.float64))

    is_current = False
    """A head costs a solve."""

    @property
    def mean_square(self) -> float:
        """`tr(G) / M`, the scale that a ridge is compared with."""
        return float(self.gram.diagonal().mean())

    @torch.no_grad()
    def add(self, features: Tensor, rows: Tensor) -> None:
        """Take up features `(batch, width)` and their `target_rows` `(batch, classes)`, both float64."""
        self.gram.addmm_(features.T, features)
        self.cross.addmm_(features.T, rows)
        self.energy += rows.square().sum()
        self.samples += len(features)

    def head(self, ridge: float) -> Tensor:
        """The head for this ridge, float64 `(width, classes)`."""
        return solve_ridge(self.gram, self.cross, ridge)


class RecursiveRidge(nn.Module):
    """The head itself, current after each batch, for one ridge that is fixed at the start.

    Buffers, float64: `inverse` `(width, width)` of `G + ridge I`, `weights` `(width, classes)`, `mean_squares` (of the
    features seen, summed) and `samples`. A class that has not come yet has a column of zeros, which is exact.

    Args:
        width: of the features.
        num_classes: columns of the head.
        ridge: the constant lambda, above 0.
    """

    def __init__(self, width: int, num_classes: int, ridge: float) -> None:
        super().__init__()
        self.num_classes, self.ridge = num_classes, ridge
        self.inverse: Tensor
        self.weights: Tensor
        self.mean_squares: Tensor
        self.samples: Tensor
        self.register_buffer("inverse", torch.eye(width, dtype=torch.float64) / ridge)
        self.register_buffer("weights", torch.zeros(width, num_classes, dtype=torch.float64))
        self.register_buffer("mean_squares", torch.zeros((), dtype=torch.float64))
        self.register_buffer("samples", torch.zeros((), dtype=torch.float64))

    is_current = True
    """A head costs nothing."""

    @property
    def mean_square(self) -> float:
        """`tr(G) / M`, the scale that a ridge is compared with."""
        return float(self.mean_squares)

    @torch.no_grad()
    def add(self, features: Tensor, rows: Tensor) -> None:
        """Take up features `(batch, width)` and their `target_rows` `(batch, classes)`, both float64.

        With `X` the batch and `L L^T = I + X R X^T`: `T = L^-1 X R`, `R -= T^T T`, `W += R X^T (Y - X W)`.
        """
        self.mean_squares += features.square().sum() / features.shape[1]
        projected = features @ self.inverse
        factor = torch.linalg.cholesky(_shifted(projected @ features.T, 1.0))
        half = torch.linalg.solve_triangular(factor, projected, upper=False)
        self.inverse.addmm_(half.T, half, alpha=-1)
        # Rounding is not symmetric, and what is not would grow from batch to batch.
        self.inverse.copy_((self.inverse + self.inverse.T) / 2)
        residual = rows - features @ self.weights
        self.weights += self.inverse @ (features.T @ residual)
        self.samples += len(features)

    def head(self, ridge: float) -> Tensor:
        """The head, float64 `(width, classes)`.

        Raises:
            StrategyError: another ridge than the one of the recursion.
        """
        if ridge != self.ridge:
            raise StrategyError(f"ridge={ridge:g}: the recursion began with {self.ridge:g} and holds for it alone")
        return self.weights


def _shifted(matrix: Tensor, ridge: float) -> Tensor:
    shifted = matrix.clone()
    shifted.diagonal().add_(ridge)
    return shifted
