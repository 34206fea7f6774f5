"""Confidence intervals for the rates of :mod:`facerec.metrics`. Imports the core and numpy only.

Pairs that share a person are not independent: one hard face lowers many scores at
once. Where subjects are known, the bootstrap therefore draws people, not pairs (the
vertex bootstrap of Snijders and Borgatti 1999; Bolle's subsets bootstrap for
biometrics): a person drawn w times gives their genuine pairs weight w, and a pair
of two people weight w1 * w2. Resampling pairs instead gives intervals that are too
narrow. People err on the wide side: where the luck of single pairs outweighs that of
people, up to sqrt(3) times, since a product of two such weights has variance 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.metrics import Scores, allowed_count, as_scores
from facerec.pairs import TopImpostors

REPLICATES = 500
_MAX_EMPTY = 0.5

IntArray = NDArray[np.int64]


class ListTooShort(ValueError):
    """A bootstrap sample's threshold lies below the listed top impostors: list more."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval of a rate; ``confidence`` in (0, 1), 0.95 for 95 %."""

    low: float
    high: float
    confidence: float


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for ``count`` of ``n`` independent trials (Wilson 1927).

    Right for small counts, 0 and n included, where the normal approximation is not.
    For trials that are not independent it is a lower bound of the width.
    """
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"expected 0 <= count <= n and n >= 1, got {count} of {n}")
    z = NormalDist().inv_cdf((1 + _confidence(confidence)) / 2)
    rate, spread = count / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == n else min(1.0, centre + half)
    return Interval(low, high, confidence)


def _confidence(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"confidence lies between 0 and 1, got {value!r}")
    return value


def bootstrap_tar(
    genuine: ArrayLike,
    impostor: ArrayLike,
    fars: Sequence[float],
    *,
    genuine_subjects: ArrayLike | None = None,
    impostor_subjects: ArrayLike | None = None,
    seed: int,
    replicates: int = REPLICATES,
    confidence: float = 0.95,
) -> tuple[Interval, ...]:
    """Percentile-bootstrap interval of TAR at each of ``fars``, threshold and all.

    genuine: (g,). impostor: (n,). genuine_subjects: (g,) and impostor_subjects: (n, 2)
    integer labels of the people in each pair, both or neither. With them people are
    resampled, without them pairs, genuine and impostor apart. In every replicate the
    threshold is found anew, so that its own uncertainty is part of the interval.
    """
    g, i = as_scores("genuine", genuine), as_scores("impostor", impostor)
    descending = np.argsort(-i, kind="stable")
    i = i[descending]
    if (genuine_subjects is None) != (impostor_subjects is None):
        raise ValueError("genuine_subjects and impostor_subjects: give both or neither")
    if genuine_subjects is None or impostor_subjects is None:

        def draw(rng: np.random.Generator) -> tuple[IntArray, IntArray, int]:
            return _multiplicities(rng, len(g)), _multiplicities(rng, len(i)), len(i)

    else:
        solo, both = np.asarray(genuine_subjects), np.asarray(impostor_subjects)
        if solo.shape != g.shape or both.shape != (len(i), 2):
            raise ValueError(
                f"expected genuine_subjects ({len(g)},) and impostor_subjects ({len(i)}, 2), "
                f"got {solo.shape} and {both.shape}"
            )
        people, index = np.unique(np.concatenate((solo, both.ravel())), return_inverse=True)
        who, pair = index[: len(g)], index[len(g) :].reshape(-1, 2)[descending]
        left, right = np.ascontiguousarray(pair[:, 0]), np.ascontiguousarray(pair[:, 1])

        def draw(rng: np.random.Generator) -> tuple[IntArray, IntArray, int]:
            weight = _multiplicities(rng, len(people))
            impostors = weight[left] * weight[right]
            return weight[who], impostors, int(impostors.sum())

    return _intervals(g, i, fars, draw, np.random.default_rng(seed), replicates, confidence)


def bootstrap_tar_all_pairs(
    genuine: ArrayLike,
    genuine_subjects: ArrayLike,
    top: TopImpostors,
    fars: Sequence[float],
    *,
    seed: int,
    replicates: int = REPLICATES,
    confidence: float = 0.95,
) -> tuple[Interval, ...]:
    """As :func:`bootstrap_tar` by subject, where the impostors are every cross pair.

    genuine: (g,) with genuine_subjects (g,) integer labels. Only the top of the impostor
    distribution decides a threshold, so ``top`` need not hold more than about twice the
    share of the largest FAR; the weight of all the others follows from the number of
    photos of each person. Raises ListTooShort where ``top`` holds too little.
    """
    g, i = as_scores("genuine", genuine), as_scores("impostor", top.scores)
    people = np.union1d(top.people, np.asarray(genuine_subjects))
    photos = np.zeros(len(people), np.int64)
    photos[np.searchsorted(people, top.people)] = top.photos
    who = np.searchsorted(people, np.asarray(genuine_subjects))
    subjects = np.searchsorted(people, top.subjects).astype(np.int32)
    left, right = np.ascontiguousarray(subjects[:, 0]), np.ascontiguousarray(subjects[:, 1])

    def draw(rng: np.random.Generator) -> tuple[IntArray, IntArray, int]:
        weight = _multiplicities(rng, len(people))
        drawn = weight * photos
        total = (int(drawn.sum()) ** 2 - int((drawn**2).sum())) // 2
        return weight[who], weight[left] * weight[right], total

    return _intervals(g, i, fars, draw, np.random.default_rng(seed), replicates, confidence)


def _multiplicities(rng: np.random.Generator, n: int) -> IntArray:
    """How often each of ``n`` items is drawn in n draws with replacement."""
    return np.bincount(rng.integers(0, n, n), minlength=n)


Draw = Callable[[np.random.Generator], tuple[IntArray, IntArray, int]]
"""Weights of the genuine scores, of the listed impostors, and of all impostors."""


def _intervals(
    genuine: Scores,
    impostor: Scores,
    fars: Sequence[float],
    draw: Draw,
    rng: np.random.Generator,
    replicates: int,
    confidence: float,
) -> tuple[Interval, ...]:
    """``impostor`` is sorted, largest first. A replicate without any pair of a kind is void."""
    if any(not 0 <= far < 1 for far in fars):
        raise ValueError(f"every FAR lies in [0, 1), got {tuple(fars)}")
    tails = (50 * (1 - _confidence(confidence)), 50 * (1 + confidence))
    rates: list[list[float]] = []
    for _ in range(replicates):
        of_genuine, of_impostor, total = draw(rng)
        if total and of_genuine.any():
            rates.append(_weighted_tars(genuine, of_genuine, impostor, of_impostor, total, fars))
    if len(rates) < max(1, replicates * _MAX_EMPTY):
        raise ValueError(
            f"only {len(rates)} of {replicates} bootstrap samples hold genuine and impostor "
            "pairs: there are too few people for an interval"
        )
    low, high = np.percentile(np.asarray(rates), tails, axis=0)
    return tuple(Interval(float(a), float(b), confidence) for a, b in zip(low, high, strict=True))


def _weighted_tars(
    genuine: Scores,
    of_genuine: IntArray,
    impostor: Scores,
    of_impostor: IntArray,
    total: int,
    fars: Sequence[float],
) -> list[float]:
    """TAR at each FAR, of weighted scores; with weights of 1, :func:`metrics.tar_at_far`."""
    reached = np.cumsum(of_impostor)
    tars = []
    for far in fars:
        # The first impostor at which the accepted weight exceeds the share must be refused,
        # and with it all that tie with it.
        at = int(np.searchsorted(reached, allowed_count(total, far), side="right"))
        if at == len(impostor):
            raise ListTooShort(f"the list of top impostors is too short for FAR {far:g}")
        accepted = genuine > impostor[at]
        tars.append(float(of_genuine[accepted].sum() / of_genuine.sum()))
    return tars
