"""Error rates of face verification and identification, exact about ties. Imports numpy only.

One convention runs through everything here: a comparison is *accepted* when its
similarity is at or above the threshold. From it follow FMR, the share of
impostor comparisons accepted; FNMR, the share of genuine comparisons not
accepted; and TAR = 1 - FNMR (ISO/IEC 19795-1). FAR is the field's older word for
FMR and is kept where the literature says TAR@FAR.

Rates are steps, never interpolated: TAR at FAR f is reached at a threshold whose
measured FMR is at most f. Scores are 1-D arrays, higher is more similar, in any
order; float32 stays float32, other types become float64. A threshold that is
derived from scores is a number of their type, so that it accepts the same
comparisons whether it is later compared in float32 or in float64. An array that
is empty, not 1-D or holds NaN raises ValueError naming it.

How sure the rates are is the business of :mod:`facerec.intervals`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.types import ThresholdTable

Scores = NDArray[np.floating[Any]]
"""(n,) float32 or float64, similarity; higher is more alike."""

DECADES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The false-match rates that a threshold table lists, as far as the data carry them."""

MIN_IMPOSTORS = 10
"""Impostor pairs that must lie above a threshold before its FMR counts as measured.

At 10 the relative standard error of the rate is about 1/sqrt(10), a third; with
none at all one only knows FMR < 3/n (the rule of three, at 95 % confidence).
"""


def as_scores(name: str, values: ArrayLike) -> Scores:
    """``values`` as a 1-D float array; ValueError naming it if empty, not 1-D or NaN."""
    array = np.asarray(values)
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected a 1-D array of scores, got shape {array.shape}")
    if not array.size:
        raise ValueError(f"{name}: no scores")
    if np.isnan(array).any():
        raise ValueError(f"{name}: holds NaN")
    return array


def in_dtype(threshold: float, dtype: np.dtype[Any]) -> Any:
    """The smallest number of ``dtype`` at or above ``threshold``.

    A score s of that type has s >= threshold exactly where s >= the result, which
    plain rounding to float32 would break for half of all thresholds.
    """
    rounded = dtype.type(threshold)
    if float(rounded) < threshold:
        rounded = np.nextafter(rounded, dtype.type(np.inf))
    return rounded


def _share_accepted(scores: Scores, threshold: float) -> float:
    return int(np.count_nonzero(scores >= in_dtype(threshold, scores.dtype))) / len(scores)


def fmr_at(impostor: ArrayLike, threshold: float) -> float:
    """Share of ``impostor`` scores (n,) at or above ``threshold``."""
    return _share_accepted(as_scores("impostor", impostor), threshold)


def fnmr_at(genuine: ArrayLike, threshold: float) -> float:
    """Share of ``genuine`` scores (n,) below ``threshold``."""
    scores = as_scores("genuine", genuine)
    return int(np.count_nonzero(scores < in_dtype(threshold, scores.dtype))) / len(scores)


def allowed_count(n: int, rate: float) -> int:
    """The largest k with k / n <= ``rate``, as floating point evaluates that quotient.

    ``floor(rate * n)`` is off by one where the product rounds: 0.29 * 100 is
    28.999999999999996, yet 29 of 100 is a rate of 0.29.
    """
    k = math.floor(rate * n)
    while (k + 1) / n <= rate:
        k += 1
    while k / n > rate:
        k -= 1
    return k


def _above(score: Any) -> float:
    """The next number above ``score``, in its own type."""
    return float(np.nextafter(score, score.dtype.type(np.inf)))


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"{name} lies in [0, 1), got {rate!r}")


def threshold_for_fmr(impostor: ArrayLike, fmr: float) -> float:
    """The smallest threshold at which the share of ``impostor`` scores (n,) accepted is <= fmr.

    With k the largest count that ``fmr`` allows, the (k+1)-th largest score must be
    refused, so the threshold is the next number above that score. Equal scores
    are accepted or refused together; ties can leave the share below ``fmr``, never
    above it. fmr: in [0, 1); 0 puts the threshold just above the largest score.
    """
    _check_rate("fmr", fmr)
    scores = as_scores("impostor", impostor)
    at = len(scores) - 1 - allowed_count(len(scores), fmr)
    return _above(np.partition(scores, at)[at])


@dataclass(frozen=True, eq=False)
class Roc:
    """Every operating point that the scores distinguish, from strictest to laxest.

    thresholds: (m,) descending, first +inf (nothing accepted), then each distinct
    score. far, tar: (m,) float64, non-decreasing, from (0, 0) to (1, 1).
    """

    thresholds: Scores
    far: NDArray[np.float64]
    tar: NDArray[np.float64]


def roc(genuine: ArrayLike, impostor: ArrayLike) -> Roc:
    """The receiver operating characteristic of genuine (g,) against impostor (n,) scores.

    Between two points of the result the curve is undefined for a real system
    (no threshold gives it); plot it as steps. Memory is 24 bytes per distinct
    score: for millions of pairs use :func:`tar_at_fars`.
    """
    g = np.sort(as_scores("genuine", genuine))
    i = np.sort(as_scores("impostor", impostor))
    distinct = np.unique(np.concatenate((g, i)))[::-1]
    thresholds = np.concatenate((np.full(1, np.inf, distinct.dtype), distinct))
    return Roc(
        thresholds,
        far=(len(i) - np.searchsorted(i, thresholds, side="left")) / len(i),
        tar=(len(g) - np.searchsorted(g, thresholds, side="left")) / len(g),
    )


def tar_at_fars(
    genuine: ArrayLike, impostor: ArrayLike, fars: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """TAR at each of ``fars``, each in [0, 1); (len(fars),) float64. Sorts once.

    See :func:`tar_at_far` for one.
    """
    g = np.sort(as_scores("genuine", genuine))
    i = np.sort(as_scores("impostor", impostor))
    for far in fars:
        _check_rate("far", far)
    refused = [i[len(i) - 1 - allowed_count(len(i), far)] for far in fars]
    # A genuine score is accepted where it is above the best refused impostor.
    accepted = len(g) - np.searchsorted(g, np.array(refused, dtype=i.dtype), side="right")
    return np.asarray(accepted / len(g), dtype=np.float64)


def tar_at_far(genuine: ArrayLike, impostor: ArrayLike, far: float) -> float:
    """Share of genuine scores (g,) accepted at ``threshold_for_fmr(impostor, far)``.

    The best TAR of any threshold whose measured FAR is at most ``far``. Code that
    interpolates the ROC instead (InsightFace's verification.py) can print slightly
    more.
    """
    return float(tar_at_fars(genuine, impostor, (far,))[0])


def auc(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """Area under the ROC: P(genuine > impostor) + P(equal) / 2 over all cross pairs.

    The Mann-Whitney statistic, counted in integers, hence exact for any ties.
    """
    g = as_scores("genuine", genuine)
    i = np.sort(as_scores("impostor", impostor))
    below = int(np.searchsorted(i, g, side="left").sum(dtype=np.int64))
    not_above = int(np.searchsorted(i, g, side="right").sum(dtype=np.int64))
    return (below + not_above) / (2 * len(g) * len(i))


def eer(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """Equal error rate: FMR where the ROC, joined by straight lines, crosses FNMR = FMR.

    Joining is the usual convention for this one number, because a step curve need
    not hold a point of equal errors. Exact by bisection over the sorted scores.
    """
    g = np.sort(as_scores("genuine", genuine))
    i = np.sort(as_scores("impostor", impostor))
    if g.dtype != i.dtype:
        g, i = g.astype(np.float64), i.astype(np.float64)

    def rates(threshold: Any) -> tuple[float, float]:
        refused = int(np.searchsorted(i, threshold, side="left"))
        fnmr = int(np.searchsorted(g, threshold, side="left")) / len(g)
        return (len(i) - refused) / len(i), fnmr

    def first_with_less_fmr(scores: Scores) -> int:
        # FMR - FNMR falls as the threshold rises: bisect for its change of sign.
        def crossed(at: int) -> bool:
            fmr, fnmr = rates(scores[at])
            return fmr <= fnmr

        return bisect_left(range(len(scores)), True, key=crossed)

    cuts = [(scores, first_with_less_fmr(scores)) for scores in (g, i)]
    after = min((scores[at] for scores, at in cuts if at < len(scores)), default=np.inf)
    before = max((scores[at - 1] for scores, at in cuts if at), default=-np.inf)
    fmr_before, fnmr_before = rates(before)
    fmr_after, fnmr_after = rates(after)
    gap_before, gap_after = fmr_before - fnmr_before, fnmr_after - fmr_after
    weight = gap_before / (gap_before + gap_after)
    return fmr_before + weight * (fmr_after - fmr_before)


@dataclass(frozen=True)
class OperatingPoint:
    """One row of a threshold table, with the evidence behind it.

    fmr: the target. cosine: see :func:`threshold_for_fmr`. fnmr: share of genuine
    scores below it. impostors_above: impostor pairs at or above it, of ``impostors``.
    """

    fmr: float
    cosine: float
    fnmr: float
    impostors_above: int
    impostors: int

    @property
    def is_measured(self) -> bool:
        """Whether the rate rests on ``MIN_IMPOSTORS`` pairs at least."""
        return allowed_count(self.impostors, self.fmr) >= MIN_IMPOSTORS


def operating_points(
    genuine: ArrayLike, impostor: ArrayLike, fmrs: Sequence[float] = DECADES
) -> tuple[OperatingPoint, ...]:
    """Threshold and FNMR at each target FMR, in the order given, measurable or not."""
    g = as_scores("genuine", genuine)
    i = np.sort(as_scores("impostor", impostor))
    points = []
    for fmr in fmrs:
        _check_rate("fmr", fmr)
        cosine = _above(i[len(i) - 1 - allowed_count(len(i), fmr)])
        above = len(i) - int(np.searchsorted(i, in_dtype(cosine, i.dtype), side="left"))
        points.append(OperatingPoint(fmr, cosine, fnmr_at(g, cosine), above, len(i)))
    return tuple(points)


def threshold_table(
    genuine: ArrayLike,
    impostor: ArrayLike,
    fmrs: Sequence[float] = DECADES,
    *,
    measured_on: str,
) -> ThresholdTable:
    """The threshold table of these scores, for a pack's manifest.

    fmrs: strictly decreasing. ``measured_on``: a sentence naming data, pairs and
    command. Raises ValueError for a rate that fewer than ``MIN_IMPOSTORS`` impostor
    pairs could exceed: such a threshold is a guess about the largest few scores.
    """
    points = operating_points(genuine, impostor, fmrs)
    for point in points:
        if not point.is_measured:
            raise ValueError(
                f"FMR {point.fmr:g} cannot be measured on {point.impostors:,} impostor pairs: "
                f"it needs {math.ceil(MIN_IMPOSTORS / point.fmr):,} or more"
            )
    return ThresholdTable(
        fmr=tuple(p.fmr for p in points),
        cosine=tuple(p.cosine for p in points),
        fnmr=tuple(p.fnmr for p in points),
        measured_on=measured_on,
    )


def best_accuracy_threshold(scores: ArrayLike, same: ArrayLike) -> float:
    """The threshold that decides most of these pairs rightly; exact, in O(n log n).

    scores: (n,). same: (n,) bool, True for genuine. Every cut between two distinct
    scores is weighed, and the two beyond the ends. Of equally good cuts the middle
    one counts (the lower of two), and of the gap that a cut lies in the middle: the
    choice least tied to any one pair.
    """
    values = as_scores("scores", scores).astype(np.float64)
    genuine = np.asarray(same, dtype=bool)
    if genuine.shape != values.shape:
        raise ValueError(f"same: expected shape {values.shape}, got {genuine.shape}")
    order = np.argsort(values, kind="stable")
    values, genuine = values[order], genuine[order]
    # right[c]: pairs decided rightly when the c lowest are refused and the rest accepted.
    right = np.concatenate(([0], np.cumsum(np.where(genuine, -1, 1)))) + int(genuine.sum())
    possible = np.concatenate(([True], values[1:] > values[:-1], [True]))
    cuts = np.flatnonzero(possible & (right == right[possible].max()))
    cut = int(cuts[(len(cuts) - 1) // 2])
    if cut == 0:
        return float(values[0])
    if cut == len(values):
        return _above(values[-1])
    low, high = values[cut - 1], values[cut]
    middle = low / 2 + high / 2
    return float(middle) if low < middle <= high else float(high)


@dataclass(frozen=True)
class KFoldAccuracy:
    """Verification accuracy over folds, each judged with the others' threshold.

    mean: of ``per_fold``. std: standard deviation over the folds with divisor k, what
    the code of FaceNet and InsightFace prints after the sign ±. stderr: standard
    error of the mean, the deviation with divisor k-1 over sqrt(k), what the LFW
    report (Huang 2007, section on View 2) asks for and its results page lists.
    thresholds: one per fold.
    """

    mean: float
    std: float
    stderr: float
    per_fold: tuple[float, ...]
    thresholds: tuple[float, ...]


def kfold_accuracy(scores: ArrayLike, same: ArrayLike, folds: ArrayLike) -> KFoldAccuracy:
    """Accuracy as LFW's View 2 protocol measures it.

    scores: (n,). same: (n,) bool. folds: (n,) integers, two distinct values at least.
    For each fold the threshold is :func:`best_accuracy_threshold` of all pairs
    outside it; the fold's accuracy is the share of its pairs decided rightly.
    """
    values = as_scores("scores", scores).astype(np.float64)
    genuine, fold = np.asarray(same, dtype=bool), np.asarray(folds)
    if not genuine.shape == fold.shape == values.shape:
        raise ValueError(
            f"scores, same and folds differ: {values.shape}, {genuine.shape}, {fold.shape}"
        )
    names = np.unique(fold)
    if len(names) < 2:
        raise ValueError("folds: at least two are needed, to choose a threshold on the others")
    accuracies, thresholds = [], []
    for name in names:
        test = fold == name
        threshold = best_accuracy_threshold(values[~test], genuine[~test])
        right = (values[test] >= threshold) == genuine[test]
        accuracies.append(float(right.mean()))
        thresholds.append(threshold)
    return KFoldAccuracy(
        mean=float(np.mean(accuracies)),
        std=float(np.std(accuracies)),
        stderr=float(np.std(accuracies, ddof=1) / math.sqrt(len(names))),
        per_fold=tuple(accuracies),
        thresholds=tuple(thresholds),
    )


@dataclass(frozen=True)
class OpenSetPoint:
    """Open-set identification at one operating point; see :func:`fnir_at_fpir`.

    false_positives: searches of strangers that returned somebody, of ``nonmated``.
    misses: searches of enrolled people that did not return them, of ``mated``.
    """

    fpir: float
    threshold: float
    fnir: float
    false_positives: int
    nonmated: int
    misses: int
    mated: int


def fnir_at_fpir(
    mated: ArrayLike, mated_is_right: ArrayLike, nonmated: ArrayLike, fpir: float
) -> OpenSetPoint:
    """FNIR at a target FPIR, rank 1 (ISO/IEC 19795-1; NIST FRTE 1:N).

    mated: (m,) top-1 similarity of searches whose person is enrolled. mated_is_right:
    (m,) bool, whether that top-1 was the person. nonmated: (n,) top-1 similarity of
    searches of strangers; -inf where a search returned nobody. The threshold is the
    smallest at which the share of ``nonmated`` accepted is at most ``fpir``; FNIR is
    the share of mated searches below it or led by somebody else.
    """
    _check_rate("fpir", fpir)
    threshold = threshold_for_fmr(as_scores("nonmated", nonmated), fpir)
    return open_set_at(mated, mated_is_right, nonmated, threshold, fpir)


def open_set_at(
    mated: ArrayLike,
    mated_is_right: ArrayLike,
    nonmated: ArrayLike,
    threshold: float,
    fpir: float,
) -> OpenSetPoint:
    """As :func:`fnir_at_fpir`, at a threshold that was chosen otherwise for a target ``fpir``.

    The FPIR that it has is ``false_positives / nonmated`` of the result.
    """
    scores, strangers = as_scores("mated", mated), as_scores("nonmated", nonmated)
    right = np.asarray(mated_is_right, dtype=bool)
    if right.shape != scores.shape:
        raise ValueError(f"mated_is_right: expected shape {scores.shape}, got {right.shape}")
    misses = int(np.count_nonzero(~right | (scores < in_dtype(threshold, scores.dtype))))
    false_positives = int(np.count_nonzero(strangers >= in_dtype(threshold, strangers.dtype)))
    return OpenSetPoint(
        fpir, threshold, misses / len(scores), false_positives, len(strangers), misses, len(scores)
    )


def mate_ranks(
    similarity: ArrayLike, probe_labels: ArrayLike, gallery_labels: ArrayLike
) -> NDArray[np.int64]:
    """Rank of each probe's person among the people of the gallery, from 1: (p,) int64.

    similarity: (p, g). probe_labels: (p,), gallery_labels: (g,) integers; a person may
    have several templates and scores with the best one. Ranks count people, not
    templates, and a tie counts against the probe's person. ValueError if a probe's
    person is not in the gallery.
    """
    scores = np.asarray(similarity)
    probes, gallery = np.asarray(probe_labels), np.asarray(gallery_labels)
    if scores.shape != (len(probes), len(gallery)) or not scores.size:
        raise ValueError(
            f"similarity: expected ({len(probes)}, {len(gallery)}), not empty, got {scores.shape}"
        )
    order = np.argsort(gallery, kind="stable")
    people, starts = np.unique(gallery[order], return_index=True)
    columns = np.minimum(np.searchsorted(people, probes), len(people) - 1)
    absent = np.flatnonzero(people[columns] != probes)
    if absent.size:
        raise ValueError(f"probe {absent[0]}: label {probes[absent[0]]} is not in the gallery")
    best = np.maximum.reduceat(scores[:, order], starts, axis=1)
    mate = best[np.arange(len(probes)), columns]
    return np.asarray(np.count_nonzero(best >= mate[:, None], axis=1), dtype=np.int64)


def cmc(
    similarity: ArrayLike, probe_labels: ArrayLike, gallery_labels: ArrayLike, max_rank: int
) -> NDArray[np.float64]:
    """Closed-set identification: share of probes whose person is among the first r people.

    (max_rank,) float64, for r = 1 to ``max_rank``: the cumulative match characteristic. The
    arguments and errors are those of :func:`mate_ranks`; ValueError for max_rank below 1, too.
    """
    if max_rank < 1:
        raise ValueError(f"max_rank: at least 1, got {max_rank}")
    return hit_rates(mate_ranks(similarity, probe_labels, gallery_labels), max_rank)


def hit_rates(ranks: NDArray[np.int64], max_rank: int) -> NDArray[np.float64]:
    """Share of ``ranks`` (p,) at or below r, for r = 1 to ``max_rank``: (max_rank,) float64."""
    return np.asarray([float((ranks <= r).mean()) for r in range(1, max_rank + 1)])
