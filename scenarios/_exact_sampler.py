"""The exact Si-Blurry sampler: nothing dropped, no empty session, the requested ratios up to rounding.

Source: the stream definition of this project. Five stages (class roles, home sessions, pool, destinations, order) draw
from five child generators of one seed, so that changing one stage leaves the draws of the others as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scenarios._plan_measures import ABSENT, BLURRY, DISJOINT
from scenarios._sampled_stream import SampledStream
from scenarios.errors import PlanError

if TYPE_CHECKING:
    from scenarios.si_blurry import SiBlurrySettings

IntegerArray = npt.NDArray[np.int64]

_DESTINATION_TRIES = 100


def exact_sampler(labels: IntegerArray, classes: int, settings: SiBlurrySettings, seed: int) -> SampledStream:
    """Sample a stream in which every requested ratio holds up to rounding.

    Args:
        labels: class ids `(samples,)`, all within `0..classes - 1`.
        classes: classes of the data set.
        settings: shape of the stream.
        seed: root of the five child generators.

    Raises:
        PlanError: fewer classes than sessions, or no draw that leaves every session a sample.
    """
    stages = (np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(5))
    classes_random, homes_random, pool_random, destinations_random, order_random = stages
    class_sizes = np.bincount(labels, minlength=classes)
    present = np.flatnonzero(class_sizes)
    sessions = settings.n_sessions
    if len(present) < sessions and not settings.allow_empty_sessions:
        raise PlanError(
            f"n_sessions={sessions}: {len(present)} classes with samples cannot give every session a class;"
            f" choose at most {len(present)} sessions or allow_empty_sessions=true"
        )

    shuffled = classes_random.permutation(present)
    disjoint = _percent(len(shuffled), settings.disjoint_class_pct)
    blurry_classes = shuffled[disjoint:]
    kind = np.full(classes, ABSENT, dtype=np.int8)
    kind[shuffled[:disjoint]], kind[blurry_classes] = DISJOINT, BLURRY
    home = np.full(classes, -1, dtype=np.int64)
    homes = _random_homes if settings.varying else _equal_homes
    home[shuffled] = homes(disjoint, len(blurry_classes), settings, homes_random)

    session = home[labels]
    pooled = np.empty(0, dtype=np.int64)
    if sessions > 1:
        pooled = _pool(labels, class_sizes, blurry_classes, settings.blurry_sample_pct, pool_random)
        left_at_home = np.bincount(session, minlength=sessions) - np.bincount(session[pooled], minlength=sessions)
        session[pooled] = _destinations(session[pooled], left_at_home, settings, destinations_random)

    # Grouping one shuffle of the data set by session shuffles each session.
    order = order_random.permutation(len(labels))
    order = order[_stable_argsort(session[order], sessions)]
    ends = np.cumsum(np.bincount(session, minlength=sessions))
    return SampledStream(tuple(np.split(order, ends[:-1])), kind, home, len(pooled))


def _percent(number: int, percent: int) -> int:
    """`percent` of `number`, rounded half up, in whole numbers throughout."""
    return (2 * number * percent + 100) // 200


def _random_homes(disjoint: int, blurry: int, settings: SiBlurrySettings, random: np.random.Generator) -> IntegerArray:
    """Home of every class `(disjoint + blurry,)`: random runs, after one class each unless sessions may be empty."""
    sessions = settings.n_sessions
    home = np.full(disjoint + blurry, -1, dtype=np.int64)
    if not settings.allow_empty_sessions:
        home[random.choice(len(home), size=sessions, replace=False)] = np.arange(sessions)
    for role in (home[:disjoint], home[disjoint:]):
        rest = np.flatnonzero(role < 0)
        cuts = np.sort(random.integers(0, len(rest), size=sessions - 1, endpoint=True))
        role[rest] = np.repeat(np.arange(sessions), np.diff(cuts, prepend=0, append=len(rest)))
    return home


def _equal_homes(disjoint: int, blurry: int, settings: SiBlurrySettings, random: np.random.Generator) -> IntegerArray:
    """Home of every class `(disjoint + blurry,)` with equal counts of both kinds; remainders go to sessions in turn.

    The turn goes on from the disjoint to the blurry classes, which keeps the total counts within one of each other.
    """
    sessions = np.arange(settings.n_sessions)
    rounds = len(sessions)
    of_disjoint = disjoint // rounds + (sessions < disjoint % rounds)
    of_blurry = blurry // rounds + ((sessions - disjoint) % rounds < blurry % rounds)
    return np.concatenate([np.repeat(sessions, of_disjoint), np.repeat(sessions, of_blurry)])


def _pool(
    labels: IntegerArray, class_sizes: IntegerArray, blurry: IntegerArray, percent: int, random: np.random.Generator
) -> IntegerArray:
    """Data set indices of the samples to move, grouped by class: a quota of each blurry class, chosen at random.

    Quotas are largest-remainder shares of the exact total; ties are broken at random, because with equal class sizes
    all classes tie and a fixed order would always blur the same ones.
    """
    sizes = class_sizes[blurry]
    ties = random.permutation(len(blurry))
    quota, remainder = np.divmod(percent * sizes, 100)
    missing = _percent(int(sizes.sum()), percent) - int(quota.sum())
    largest_first = ties[np.argsort(-remainder[ties], kind="stable")]
    quota[largest_first[:missing]] += 1

    quota_of = np.zeros(len(class_sizes), dtype=np.int64)
    quota_of[blurry] = quota
    is_blurry = np.zeros(len(class_sizes), dtype=bool)
    is_blurry[blurry] = True
    samples = random.permutation(np.flatnonzero(is_blurry[labels]))
    samples = samples[_stable_argsort(labels[samples], len(class_sizes))]
    blurry_sizes = np.where(is_blurry, class_sizes, 0)
    starts = np.cumsum(blurry_sizes) - blurry_sizes
    rank_in_class = np.arange(len(samples)) - np.repeat(starts, blurry_sizes)
    return samples[rank_in_class < quota_of[labels[samples]]]


def _destinations(
    homes: IntegerArray, left_at_home: IntegerArray, settings: SiBlurrySettings, random: np.random.Generator
) -> IntegerArray:
    """New session of every pooled sample, redrawn until no session is without a sample."""
    spread = _random_spread if settings.varying else _even_spread
    for _ in range(_DESTINATION_TRIES):
        destinations = spread(homes, settings, random)
        received = np.bincount(destinations, minlength=settings.n_sessions)
        if settings.allow_empty_sessions or (left_at_home + received > 0).all():
            return destinations
    raise PlanError(
        f"n_sessions={settings.n_sessions} with blurry_sample_pct={settings.blurry_sample_pct}: none of"
        f" {_DESTINATION_TRIES} draws leaves every session a sample; choose fewer sessions, a smaller"
        " blurry_sample_pct or allow_empty_sessions=true"
    )


def _random_spread(homes: IntegerArray, settings: SiBlurrySettings, random: np.random.Generator) -> IntegerArray:
    """Sessions drawn by weights that are uniform on the simplex: this is what makes the session sizes vary."""
    weights = random.standard_exponential(settings.n_sessions)
    uniform = random.random(len(homes))
    ends = np.cumsum(weights)
    last = settings.n_sessions - 1
    if settings.allow_home:
        return np.minimum(np.searchsorted(ends, uniform * ends[-1], side="right"), last)
    # A point on the line of all weights with the stretch of the home session cut out.
    point = uniform * (ends[-1] - weights[homes])
    point += np.where(point >= ends[homes] - weights[homes], weights[homes], 0.0)
    destinations = np.minimum(np.searchsorted(ends, point, side="right"), last)
    rounded_home = destinations == homes  # a point on the very edge of the cut
    destinations[rounded_home] = (homes[rounded_home] + 1) % settings.n_sessions
    return destinations


def _even_spread(homes: IntegerArray, settings: SiBlurrySettings, random: np.random.Generator) -> IntegerArray:
    """Sessions dealt in turn to samples grouped by class: every class and every session gets its equal share."""
    sessions = settings.n_sessions
    if settings.allow_home:
        return (random.integers(0, sessions) + np.arange(len(homes))) % sessions
    # One deal a home session, over the others, each from a random start.
    start = random.integers(0, sessions - 1, size=sessions)
    by_home = _stable_argsort(homes, sessions)
    sizes = np.bincount(homes, minlength=sessions)
    turn = np.arange(len(homes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    home = homes[by_home]
    destinations = np.empty_like(homes)
    destinations[by_home] = (home + 1 + (start[home] + turn) % (sessions - 1)) % sessions
    return destinations


def _stable_argsort(values: IntegerArray, bound: int) -> IntegerArray:
    """Stable order of whole numbers below `bound`; small types are sorted by counting, in linear time."""
    return np.argsort(values.astype(np.min_scalar_type(bound)), kind="stable")
