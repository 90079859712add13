"""Class means and the scatter around them from a stream, in float64, and the linear discriminant they give.

`add` is exact: means and within-class scatter equal those of all samples together, in any order and any batches
(the merge of Welford, and of Chan, Golub and LeVeque 1983). `add_released` is the recursion of the published
streaming LDA (Hayes and Kanan 2020), whose factor is that of one global mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class ClassScatter(nn.Module):
    """Buffers, float64: `means` `(classes, width)`, `counts` `(classes,)`, `scatter` `(width, width)` around the class
    means, and `scatter_samples`, a scalar: how many samples the scatter stands for.

    Args:
        width: of the features.
        num_classes: rows of the means.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.means: Tensor
        self.counts: Tensor
        self.scatter: Tensor
        self.scatter_samples: Tensor
        self.register_buffer("means", torch.zeros(num_classes, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("scatter", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("scatter_samples", torch.zeros((), dtype=torch.float64))

    def covariance(self) -> Tensor:
        """The within-class covariance, `(width, width)`; zero without a sample."""
        return self.scatter / self.scatter_samples.clamp(min=1)

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor, *, scatter: bool = True) -> None:
        """Take up features `(batch, width)` of class ids `(batch,)`; `scatter=False`: in the means alone."""
        features = features.double()
        batch = batch_means(features, targets, len(self.counts))
        total = self.counts + batch.counts
        shift = batch.means - self.means
        if scatter:
            centred = features - batch.means[targets]
            self.scatter.addmm_(centred.T, centred)
            weight = self.counts * batch.counts / total.clamp(min=1)
            self.scatter.addmm_((shift * weight[:, None]).T, shift)
            self.scatter_samples += len(targets)
        self.means += shift * (batch.counts / total.clamp(min=1))[:, None]
        self.counts.copy_(total)

    @torch.no_grad()
    def add_released(self, features: Tensor, targets: Tensor, *, scatter: bool = True) -> None:
        """The same as published, sample by sample: each deviation from the mean before it counts `N / (N + 1)`.

        `N` are the samples of all classes. The first sample of a class is measured from a mean of zero.
        """
        features = features.double()
        deviations = torch.empty_like(features)
        for number, target in enumerate(targets.tolist()):
            deviations[number] = features[number] - self.means[target]
            self.means[target] += deviations[number] / (self.counts[target] + 1)
            self.counts[target] += 1
        if scatter:
            seen = self.scatter_samples + torch.arange(len(targets), dtype=torch.float64, device=features.device)
            self.scatter.addmm_((deviations * (seen / (seen + 1))[:, None]).T, deviations)
            self.scatter_samples += len(targets)

    @torch.no_grad()
    def replace(self, features: Tensor, targets: Tensor) -> None:
        """The published base phase: means and counts of the classes that occur are set to theirs, the rest to OAS."""
        features = features.double()
        batch = batch_means(features, targets, len(self.counts))
        occurs = batch.counts > 0
        self.means.copy_(torch.where(occurs[:, None], batch.means, self.means))
        self.counts.copy_(torch.where(occurs, batch.counts, self.counts))
        residuals = features - batch.means[targets]
        self.scatter.copy_(residuals.T @ residuals)
        self.scatter_samples.fill_(len(targets))
        self.shrink()

    @torch.no_grad()
    def shrink(self) -> None:
        """Put the OAS estimate of the covariance in the place of the scatter's own."""
        self.scatter.copy_(oas_covariance(self.covariance(), self.scatter_samples) * self.scatter_samples)


class BatchMeans(NamedTuple):
    """Of the classes of a batch: `means` `(classes, width)`, zero without a sample, and `counts` `(classes,)`."""

    means: Tensor
    counts: Tensor


def batch_means(features: Tensor, targets: Tensor, num_classes: int) -> BatchMeans:
    """Class means of features float64 `(batch, width)` with class ids `(batch,)`."""
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, targets, features)
    counts = features.new_zeros(num_classes).index_add_(0, targets, torch.ones_like(targets, dtype=features.dtype))
    return BatchMeans(sums / counts.clamp(min=1)[:, None], counts)


def oas_covariance(covariance: Tensor, samples: Tensor) -> Tensor:
    """Oracle approximating shrinkage of a covariance of centred samples (Chen, Wiesel, Eldar and Hero 2010).

    `(1 - rho) S + rho m I` with `m = tr(S) / D`, `a = mean(S^2)` over all entries, and `rho` the smaller of 1 and
    `(a + m^2) / ((n + 1) (a - m^2 / D))`.

    Args:
        covariance: `S`, `(D, D)`.
        samples: `n`, a scalar.
    """
    width = len(covariance)
    mean_variance = covariance.diagonal().mean()
    mean_square = covariance.square().mean()
    numerator = mean_square + mean_variance.square()
    denominator = (samples + 1) * (mean_square - mean_variance.square() / width)
    # A multiple of the unit matrix, such as zero, is its own estimate.
    share = torch.where(denominator > 0, numerator / denominator.clamp(min=1e-300), 1.0).clamp(max=1)
    return (1 - share) * covariance + share * mean_variance * torch.eye(width, dtype=covariance.dtype).to(covariance)


class Discriminant(NamedTuple):
    """Scores of a class: `features @ weight + bias`; `weight` `(width, classes)`, `bias` `(classes,)`, float64."""

    weight: Tensor
    bias: Tensor


def linear_discriminant(means: Tensor, covariance: Tensor, shrinkage: float) -> Discriminant:
    """`f^T L m_c - m_c^T L m_c / 2` for every class, with `L` the inverse of `(1 - e) covariance + e I`.

    Args:
        means: `m`, float64 `(classes, width)`.
        covariance: float64 `(width, width)`.
        shrinkage: `e`, above 0.
    """
    shrunk = (1 - shrinkage) * covariance
    shrunk.diagonal().add_(shrinkage)
    weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(shrunk))
    return Discriminant(weight, -0.5 * (means.T * weight).sum(0))
