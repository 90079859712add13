"""How evenly a pool of prompts is used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def usage_entropy(counts: npt.ArrayLike) -> float:
    """Entropy of the shares in which prompts were chosen: H = -sum_p u_p ln u_p, u_p = counts_p / sum counts, in nats.

    0 = one prompt does everything, ln P = all P prompts equally often; exp(H) is the effective number of prompts in
    use. NaN before the first choice. Shannon's definition.

    Args:
        counts: how often each prompt was chosen, `(P,)`, not negative.

    >>> round(usage_entropy([5, 5, 0]), 6)
    0.693147
    """
    values = np.asarray(counts, np.float64)
    total = values.sum()
    if total <= 0:
        return float("nan")
    share = values[values > 0] / total
    return float(max(0.0, -np.sum(share * np.log(share))))
