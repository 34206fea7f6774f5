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

from facerec.metrics import Scores, allowed_count, as_scores, threshold_for_fmr
from facerec.pairs import TopImpostors, genuine_subjects, pair_scores, top_impostors

REPLICATES = 500
_MAX_EMPTY = 0.5
_LISTED = 1000
"""Impostors that are listed at least, before a share of them is enough."""

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
    pairs = _EveryPair.of(genuine, np.asarray(genuine_subjects), top)

    def draw(rng: np.random.Generator) -> tuple[IntArray, IntArray, int]:
        return pairs.weights(_multiplicities(rng, pairs.people))

    return _intervals(
        pairs.genuine,
        pairs.impostor,
        fars,
        draw,
        np.random.default_rng(seed),
        replicates,
        confidence,
    )


@dataclass(frozen=True, eq=False)
class _EveryPair:
    """Every pair among some photos, as a bootstrap of people weighs them.

    genuine: (g,) scores. impostor: (t,) the top of the others, largest first. who: (g,), left
    and right: (t,) the people of each pair, 0 to ``people`` - 1. photos: (people,) of each.
    """

    genuine: Scores
    impostor: Scores
    who: IntArray
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    photos: IntArray

    @staticmethod
    def of(genuine: ArrayLike, subjects: NDArray[np.int64], top: TopImpostors) -> _EveryPair:
        people = np.union1d(top.people, subjects)
        photos = np.zeros(len(people), np.int64)
        photos[np.searchsorted(people, top.people)] = top.photos
        pair = np.searchsorted(people, top.subjects).astype(np.int32)
        return _EveryPair(
            genuine=as_scores("genuine", genuine),
            impostor=as_scores("impostor", top.scores),
            who=np.searchsorted(people, subjects),
            left=np.ascontiguousarray(pair[:, 0]),
            right=np.ascontiguousarray(pair[:, 1]),
            photos=photos,
        )

    @staticmethod
    def among(embeddings: ArrayLike, labels: ArrayLike, share: float) -> _EveryPair:
        """Of embeddings (n, d) and labels (n,), with the top ``share`` of the impostors."""
        genuine, impostor = pair_scores(embeddings, labels)
        share = max(share, _LISTED / max(1, len(impostor)))
        lowest = threshold_for_fmr(impostor, share) if share < 1 else -1.0
        top = top_impostors(embeddings, labels, lowest)
        if len(impostor) and not len(top.scores):  # all of them tie
            raise ListTooShort("no impostor lies above the others")
        return _EveryPair.of(genuine, genuine_subjects(labels), top)

    @property
    def people(self) -> int:
        return len(self.photos)

    def weights(self, drawn: IntArray) -> tuple[IntArray, IntArray, int]:
        """Of genuine and of listed impostor pairs, and the sum over all impostor pairs.

        drawn: (people,) how often each person was drawn.
        """
        photos = drawn * self.photos
        total = (int(photos.sum()) ** 2 - int((photos**2).sum())) // 2
        return drawn[self.who], drawn[self.left] * drawn[self.right], total


@dataclass(frozen=True)
class PairedDifference:
    """TAR at ``far`` of two models on the same photos, each at its own threshold.

    difference: second minus first. interval: of the difference. share_better: of the
    bootstrap samples, those in which the second model's TAR is the larger: a one-sided
    bootstrap probability that it is better. people: that were resampled.
    """

    far: float
    first: float
    second: float
    interval: Interval
    share_better: float
    people: int

    @property
    def difference(self) -> float:
        """Of the TARs, second minus first, in [-1, 1]."""
        return self.second - self.first


def paired_tar_difference(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    far: float,
    *,
    seed: int,
    replicates: int = REPLICATES,
    confidence: float = 0.95,
) -> PairedDifference:
    """Percentile-bootstrap interval of TAR(second) - TAR(first), every pair of photos compared.

    first: (n, d) and second: (n, e) unit embeddings of the same n photos by two models, in the
    same order. labels: (n,) integers. far: in [0, 1). People are resampled as in
    :func:`bootstrap_tar_all_pairs`, and both models see the same sample, so that what makes a
    sample hard for both cancels: of two models that err alike, the difference is known far
    better than either rate. In every sample each model's threshold is found anew.

    Raises ValueError for inputs that do not fit, and where there are too few people.
    """
    for share in (2 * far, 1.0):
        try:
            sides = [_EveryPair.among(rows, labels, share) for rows in (first, second)]
            drawn = _paired_tars(sides, far, np.random.default_rng(seed), replicates)
        except ListTooShort:  # few people have most of the photos: list every pair
            continue
        break
    low, high = np.percentile(
        drawn[:, 1] - drawn[:, 0], (50 * (1 - _confidence(confidence)), 50 * (1 + confidence))
    )
    once = np.ones(sides[0].people, np.int64)
    plain = [_weighted_tar(side, once, far) for side in sides]
    return PairedDifference(
        far=far,
        first=plain[0],
        second=plain[1],
        interval=Interval(float(low), float(high), confidence),
        share_better=float((drawn[:, 1] > drawn[:, 0]).mean()),
        people=sides[0].people,
    )


def _paired_tars(
    sides: Sequence[_EveryPair], far: float, rng: np.random.Generator, replicates: int
) -> NDArray[np.float64]:
    """(replicates that are not void, 2): each model's TAR on the same drawn people."""
    if not 0 <= far < 1:
        raise ValueError(f"every FAR lies in [0, 1), got {far}")
    people = sides[0].people
    tars = []
    for _ in range(replicates):
        drawn = _multiplicities(rng, people)
        of_genuine, _, total = sides[0].weights(drawn)
        if total and of_genuine.any():
            tars.append([_weighted_tar(side, drawn, far) for side in sides])
    _require_enough(len(tars), replicates)
    return np.asarray(tars)


def _weighted_tar(side: _EveryPair, drawn: IntArray, far: float) -> float:
    of_genuine, of_impostor, total = side.weights(drawn)
    [tar] = _weighted_tars(side.genuine, of_genuine, side.impostor, of_impostor, total, (far,))
    return tar


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
    _require_enough(len(rates), replicates)
    low, high = np.percentile(np.asarray(rates), tails, axis=0)
    return tuple(Interval(float(a), float(b), confidence) for a, b in zip(low, high, strict=True))


def _require_enough(found: int, replicates: int) -> None:
    if found < max(1, replicates * _MAX_EMPTY):
        raise ValueError(
            f"only {found} of {replicates} bootstrap samples hold genuine and impostor "
            "pairs: there are too few people for an interval"
        )


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
