"""The published Si-Blurry samplers, bit for bit, as array work.

Source: the sampler of the official Si-Blurry repository (release of October 2023), and that of its fork MISA, which
keeps the classes that the official one drops by rounding. Both may lose or misplace samples; `StreamPlan.warnings` says
so for each stream. All draws come from one torch CPU generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scenarios._plan_measures import ABSENT, BLURRY, DISJOINT
from scenarios._sampled_stream import SampledStream
from scenarios.errors import PlanError

if TYPE_CHECKING:
    from scenarios.si_blurry import SiBlurrySettings

IntegerArray = npt.NDArray[np.int64]


def official_sampler(labels: IntegerArray, classes: int, settings: SiBlurrySettings, seed: int) -> SampledStream:
    """The official sampler: disjoint and blurry class counts are rounded down to multiples of `n_sessions`."""
    disjoint = _round_down(classes * settings.disjoint_class_pct // 100, settings.n_sessions)
    blurry = _round_down(classes - disjoint, settings.n_sessions)
    return _sample(labels, classes, disjoint, blurry, settings, seed)


def misa_sampler(labels: IntegerArray, classes: int, settings: SiBlurrySettings, seed: int) -> SampledStream:
    """The sampler of the MISA fork: every class that is not disjoint is blurry, none is dropped.

    Raises:
        PlanError: equal sessions asked for a number of blurry classes that they cannot share equally.
    """
    disjoint = _round_down(classes * settings.disjoint_class_pct // 100, settings.n_sessions)
    blurry = classes - disjoint
    if not settings.varying and blurry % settings.n_sessions:
        raise PlanError(
            f"mode=misa with varying=false: {blurry} blurry classes cannot be shared equally by"
            f" n_sessions={settings.n_sessions}; choose a divisor of {blurry}, varying=true or mode=exact"
        )
    return _sample(labels, classes, disjoint, blurry, settings, seed)


class _Draws:
    """The one random source of the published sampler: the order of the calls is part of the algorithm."""

    def __init__(self, seed: int, sessions: int) -> None:
        import torch  # only these modes need it, and it takes seconds to import

        self._torch: Any = torch
        self._generator = torch.Generator().manual_seed(seed)
        self._sessions = sessions
        self.libraries = {"torch": str(torch.__version__)}

    def permutation(self, size: int) -> IntegerArray:
        """Order of `size` things; none leave the random state as it is."""
        return self._torch.randperm(size, generator=self._generator).numpy()

    def random_cuts(self, size: int) -> IntegerArray:
        """Borders `(sessions + 1,)` of runs of random length over `size` things, without a draw if there are none."""
        cuts = np.zeros(self._sessions + 1, dtype=np.int64)
        if size > 0:
            drawn = self._torch.randint(0, size, (self._sessions - 1,), generator=self._generator)
            cuts[1:-1] = np.sort(drawn.numpy())
            cuts[-1] = size
        return cuts


def _sample(
    labels: IntegerArray, classes: int, disjoint: int, blurry: int, settings: SiBlurrySettings, seed: int
) -> SampledStream:
    sessions, pct = settings.n_sessions, settings.blurry_sample_pct
    draws = _Draws(seed, sessions)
    permuted = draws.permutation(classes)
    cuts = draws.random_cuts if settings.varying else (lambda size: np.arange(sessions + 1) * (size // sessions))

    kind = np.full(classes, ABSENT, dtype=np.int8)
    kind[permuted[:disjoint]], kind[permuted[disjoint : disjoint + blurry]] = DISJOINT, BLURRY
    home = np.full(classes, -1, dtype=np.int64)
    home[permuted[:disjoint]] = np.repeat(np.arange(sessions), np.diff(cuts(disjoint)))
    home[permuted[disjoint : disjoint + blurry]] = np.repeat(np.arange(sessions), np.diff(cuts(blurry)))

    fixed = _by_session(labels, home, kind == DISJOINT, sessions)
    own = _by_session(labels, home, kind == BLURRY, sessions)
    held = np.array([len(part) for part in own])
    take = np.diff(cuts(int(held.sum()) * pct // 100)) if settings.varying else held * pct // 100
    # The first samples in data set order, and fewer than asked for where a session holds fewer.
    pool = np.concatenate([part[:count] for part, count in zip(own, take, strict=True)])
    pool = pool[draws.permutation(len(pool))]
    give = take if settings.varying else np.full(sessions, len(pool) // sessions)
    ends = np.cumsum(give)
    own = [
        np.concatenate([part[count:], pool[end - given : end]])
        for part, count, end, given in zip(own, take, ends, give, strict=True)
    ]
    streams = [np.concatenate(parts) for parts in zip(fixed, own, strict=True)]
    return SampledStream(
        sessions=tuple(stream[draws.permutation(len(stream))] for stream in streams),
        class_kind=kind,
        home_session=home,
        pooled_samples=len(pool),
        libraries=draws.libraries,
    )


def _by_session(
    labels: IntegerArray, home: IntegerArray, chosen: npt.NDArray[np.bool_], sessions: int
) -> list[IntegerArray]:
    """Ascending data set indices of the samples of the chosen classes, one array a home session."""
    samples = np.flatnonzero(chosen[labels])
    session = home[labels[samples]]
    grouped = samples[np.argsort(session, kind="stable")]
    return np.split(grouped, np.cumsum(np.bincount(session, minlength=sessions))[:-1])


def _round_down(number: int, multiple: int) -> int:
    return number // multiple * multiple
