"""The mathematics of MVP's losses as pure functions on tensors; strategies and plugins call the same ones.

B batch, C classes, D width, P prompts in the pool. Sources: MVP (Moon et al., ICCV 2023) as released and as read in
its figures; where both differ, both are here under their own names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_distance(left: Tensor, right: Tensor) -> Tensor:
    """1 - cosine of vectors along the last axis; broadcasts; in [0, 2]."""
    return 1 - F.cosine_similarity(left, right, dim=-1, eps=1e-8)


# --- prompt losses -------------------------------------------------------------------------------------------------


def pull_loss(distance: Tensor) -> Tensor:
    """Mean distance between queries and their chosen keys; `distance` (B, S) -> scalar."""
    return distance.mean()


def similarity_pull_loss(similarity: Tensor) -> Tensor:
    """Minus the cosines of queries and chosen keys, summed over the picks and averaged over images (L2P, DualPrompt).

    `similarity` (B, S) -> scalar; the papers write distances, which is the same up to a constant.
    """
    return -similarity.sum(-1).mean()


def released_contrastive_loss(keys: Tensor, choice: Tensor, distance: Tensor, usage: Tensor) -> Tensor:
    """MVP's contrastive prompt loss as released: both ratios are averaged over all B x B pairs of images.

    With r the choice, mu = usage + 1 and k the key-to-key distance:
    K = mean_{i,j,p} exp(k[r_i, p] / mu[r_j]), D = mean_{i,j} exp(d_j / mu[r_i]), loss = -log(K / (D + K) + 1e-6).
    The pairs arise from broadcasting in the published code; they depend on the images only through how often each
    prompt was chosen, which is how they are summed here.

    Args:
        keys: (P, D), receives gradient through both arguments of k.
        choice: (B,) int64, the prompt of each image.
        distance: (B,) query to chosen key, with gradient.
        usage: (P,) usage counts before this batch.

    Returns:
        Scalar.
    """
    pool_size = keys.shape[0]
    divisor = usage + 1
    # Not `bincount`: on a GPU it waits for the largest value.
    share = keys.new_zeros(pool_size).index_add(0, choice, keys.new_ones(choice.shape)) / choice.numel()
    key_distance = cosine_distance(keys[:, None], keys[None])
    key_term = torch.exp(key_distance[:, None, :] / divisor[None, :, None]).mean(-1)  # (chosen, divisor)
    # Weighted sums instead of matrix products, which autocast would take to half precision: the ratio stays near 1/2.
    repel = (share[:, None] * share * key_term).sum()
    attract = (torch.exp(distance[:, None] / divisor) * share).sum(-1).mean()
    return -torch.log(repel / (attract + repel) + 1e-6)


def per_query_contrastive_loss(keys: Tensor, choice: Tensor, distance: Tensor, usage: Tensor) -> Tensor:
    """MVP's contrastive prompt loss as the paper's figure reads: one ratio for each query, only chosen keys train.

    s_n = mean_{p != r} exp(k[r, p] / mu[r]), s_p = exp(d / mu[r]), loss = mean -log(s_n / (s_p + s_n)); the other
    keys are constants in k. Equation text unverified.

    Args:
        keys: (P, D), P >= 2.
        choice: (B,) int64.
        distance: (B,) query to chosen key, with gradient.
        usage: (P,) usage counts before this batch.

    Returns:
        Scalar.
    """
    divisor = usage[choice] + 1
    key_distance = cosine_distance(keys[choice][:, None], keys.detach()[None])
    others = torch.ones_like(key_distance, dtype=torch.bool).scatter(1, choice[:, None], False)
    repel = (torch.exp(key_distance / divisor[:, None]) * others).sum(-1) / (keys.shape[0] - 1)
    attract = torch.exp(distance / divisor)
    return -torch.log(repel / (attract + repel)).mean()


# --- gradient-similarity focal loss ---------------------------------------------------------------------------------


@torch.no_grad()
def gradient_dissimilarity(
    features: Tensor, logits: Tensor, targets: Tensor, soft_mask: Tensor | None = None
) -> Tensor:
    """How much each sample's head gradient departs from the batch's, in closed form (MVP, "ign").

    For the row of the sample's own class, with A = (softmax(logits) - onehot) * soft_mask:
    g_i = A[i, y_i] f_i, h_i = mean_j A[j, y_i] f_j, result = 1 - cos(g_i, h_i). Equals B backward passes through the
    head, at the cost of one small matrix product.

    Args:
        features: (B, D), what the head read.
        logits: (B, C), after soft and class mask; minus infinity where a class does not compete.
        targets: (B,) int64.
        soft_mask: (B, C) factor between head and logits; None means 1.

    Returns:
        (B,) in [0, 2]; 1 where a sample has no gradient.
    """
    own = targets[:, None]
    features = _at_least_float32(features)
    residual = torch.softmax(_at_least_float32(logits), dim=-1)
    residual.scatter_add_(1, own, -torch.ones_like(own, dtype=residual.dtype))
    if soft_mask is not None:
        residual = residual * _at_least_float32(soft_mask)
    sample_gradient = residual.gather(1, own) * features
    with torch.autocast(features.device.type, enabled=False):
        batch_gradient = residual[:, targets].T @ features / targets.numel()
    # Rounding can push parallel vectors below 0, and a negative base with a fractional gamma is NaN.
    return cosine_distance(sample_gradient, batch_gradient).clamp(0, 2)


def focal_batch_loss(cross_entropy: Tensor, dissimilarity: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal term as released: one factor on the batch mean, c * ((1 - alpha) + alpha * mean(ign^gamma)).

    Args:
        cross_entropy: (B,) per sample.
        dissimilarity: (B,) from `gradient_dissimilarity`.
        alpha: share of the focal term, in [0, 1].
        gamma: exponent.

    Returns:
        Scalar.
    """
    return cross_entropy.mean() * ((1 - alpha) + alpha * dissimilarity.pow(gamma).mean())


def focal_sample_loss(cross_entropy: Tensor, dissimilarity: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal term as in the paper: a weight for each sample, mean_i ce_i * ((1 - alpha) + alpha * ign_i^gamma).

    Arguments and result as in `focal_batch_loss`.
    """
    return (cross_entropy * ((1 - alpha) + alpha * dissimilarity.pow(gamma))).mean()


def plain_loss(cross_entropy: Tensor, dissimilarity: Tensor, alpha: float, gamma: float) -> Tensor:
    """No focal term: the mean of the per-sample cross-entropy (B,)."""
    return cross_entropy.mean()


FOCAL_LOSSES = {"none": plain_loss, "batch": focal_batch_loss, "sample": focal_sample_loss}
"""Switch value -> loss."""


# --- adaptive feature scaling ---------------------------------------------------------------------------------------


@torch.no_grad()
def feature_divisor(features: Tensor, class_weights: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Divisor of adaptive feature scaling: 1 - cos(w_y, f) + margin (MVP, "cps").

    Args:
        features: (B, D).
        class_weights: (C, D), rows of the head.
        targets: (B,) int64.
        margin: smallest divisor; 0.5 as published.

    Returns:
        (B, 1): features aligned with their class weight are enlarged, misaligned ones shrunk.
    """
    own_weights = _at_least_float32(class_weights[targets])
    return (cosine_distance(own_weights, _at_least_float32(features)) + margin)[:, None]


# --- distillation ---------------------------------------------------------------------------------------------------


def softmax_distillation(logits: Tensor, teacher: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened class probabilities from a teacher's, over some columns, mean over rows (LwF).

    Its gradient is that of the cross-entropy with soft targets; not multiplied by the square of the temperature.

    Args:
        logits: (B, C), unmasked, with the graph behind them.
        teacher: (B, C) logits without one.
        columns: (C,) bool, the classes that are compared; none: 0.
        temperature: divisor of both logits.

    Returns:
        Scalar, 0 where student and teacher agree.
    """
    # A finite fill: infinity times a probability of 0 would be NaN. Its exponential is exactly 0 beside any logit.
    ours = torch.log_softmax((_at_least_float32(logits) / temperature).masked_fill(~columns, -1.0e4), -1)
    theirs = torch.log_softmax((_at_least_float32(teacher) / temperature).masked_fill(~columns, -1.0e4), -1)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def sigmoid_distillation(logits: Tensor, teacher: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """The same for several labels an image: KL divergence of each label's probability, mean over rows and columns.

    Arguments and result as in `softmax_distillation`.
    """
    ours, theirs = _at_least_float32(logits) / temperature, _at_least_float32(teacher) / temperature
    positive = torch.sigmoid(theirs) * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    negative = torch.sigmoid(-theirs) * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    compared = (positive + negative).masked_fill(~columns, 0.0)
    return compared.sum() / (columns.sum() * len(logits)).clamp(min=1)


DISTILLATION = {1: softmax_distillation, 2: sigmoid_distillation}
"""Dimensions of a batch of labels -> distillation."""


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision widened; float64 stays, so that double-precision checks mean something."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
