"""L2P++, the version of L2P that CODA-Prompt compares with: no method of ours, its parts for who wants to repeat it.

Every image takes the prompts of its nearest keys, in training too; each picked prompt is cut into a half of keys and a
half of values behind the projection (K+), and the head reads the class token.
"""

from __future__ import annotations

from torch import Tensor

from cl_prompts.backbones.insertions import Prefix


def halves_of_picks(picks: Tensor) -> Prefix:
    """One block's prefix of the prompts that each image picked.

    `picks` is (batch, size, 2 * length, width); the first halves of all picks are the keys, the others the values.
    """
    keys, values = picks.unflatten(2, (2, -1)).unbind(2)
    return Prefix(keys.flatten(1, 2), values.flatten(1, 2), space="projected")


def paired_key_loss(similarity: Tensor, choice: Tensor) -> Tensor:
    """As released: distances of every query to the picks of every image, summed over batch x batch x size.

    The table of picks of the whole batch indexes each image's similarities, so the loss grows with the square of the
    batch. `similarity` is (batch, pool), `choice` (batch, size) int64; gives a scalar.
    """
    return (1 - similarity[:, choice.flatten()]).sum()
