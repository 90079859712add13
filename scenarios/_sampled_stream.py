"""What every sampler hands over; `si_blurry` makes a `StreamPlan` of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SampledStream:
    """Sessions of sample indices with the role of every class, before anything is measured.

    Attributes:
        sessions: int64 data set indices in presentation order, one array a session.
        class_kind: `(classes,)`: disjoint, blurry or absent, as drawn.
        home_session: int64 `(classes,)`, -1 where absent.
        pooled_samples: samples taken from their home session for redistribution.
        libraries: versions of the libraries, beside numpy, whose random numbers decided the stream.
    """

    sessions: tuple[npt.NDArray[np.int64], ...]
    class_kind: npt.NDArray[np.int8]
    home_session: npt.NDArray[np.int64]
    pooled_samples: int
    libraries: dict[str, str] = field(default_factory=dict)
