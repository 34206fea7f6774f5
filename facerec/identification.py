"""Searches of a gallery that holds one photo a person, and the error rates that they show.

How they change with the size of the gallery is ``facerec.growth``.

Imports the core and numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facerec.metrics import (
    MIN_IMPOSTORS,
    OpenSetPoint,
    Scores,
    allowed_count,
    fnir_at_fpir,
    hit_rates,
    mate_ranks,
    open_set_at,
)
from facerec.types import FloatArray

FPIRS = (1e-1, 1e-2)
CMC_RANKS = (1, 5, 10)
_MAX_RANK = 20
_NOT_FOUND = np.iinfo(np.int64).max
"""Rank of the person of a probe without a face."""
_SCORES_AT_ONCE = 1 << 24
_SEED = 2007
_FEWEST_STRANGERS = 100
"""So many searches of strangers show an FPIR of 10 %."""

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class OpenSet:
    """Identification with strangers among the probes, one enrolled photo a person.

    Enrolled: the first photo of everybody who has two or more. Mated probes: their other
    photos. Strangers: everybody with a single photo. hit_rates: (rank, share of mated
    probes whose person is among the first ``rank``). A probe without a face finds nobody.
    """

    enrolled: int
    hit_rates: tuple[tuple[int, float], ...]
    points: tuple[OpenSetPoint, ...]


@dataclass(frozen=True, eq=False)
class Searches:
    """What searching found. enrolled: people in the gallery.

    ranks: (m,) int64, place of each mated probe's person, from 1; beyond everybody where the
    probe has no face. mated: (m,) similarity of the best person found for each mated probe, and
    right: (m,) bool, whether it is the probe's. strangers: (s,) likewise of strangers' probes;
    -inf where a probe has no face.
    """

    enrolled: int
    ranks: NDArray[np.int64]
    mated: Scores
    right: NDArray[np.bool_]
    strangers: Scores

    @property
    def cmc(self) -> NDArray[np.float64]:
        """(20,), share of mated probes whose person is among the first 1, 2, ... people."""
        return hit_rates(self.ranks, _MAX_RANK)

    @property
    def hit_rates(self) -> tuple[tuple[int, float], ...]:
        """(rank, share of mated probes whose person is among the first ``rank``)."""
        return tuple((rank, float((self.ranks <= rank).mean())) for rank in CMC_RANKS)

    @property
    def points(self) -> tuple[OpenSetPoint, ...]:
        """FNIR at each of ``FPIRS`` that the number of strangers' probes can show."""
        return self.at(FPIRS)

    def at(self, fpirs: tuple[float, ...]) -> tuple[OpenSetPoint, ...]:
        """FNIR at each of ``fpirs`` that ``MIN_IMPOSTORS`` strangers' probes could exceed."""
        return tuple(
            fnir_at_fpir(self.mated, self.right, self.strangers, fpir)
            for fpir in fpirs
            if allowed_count(len(self.strangers), fpir) >= MIN_IMPOSTORS
        )

    def at_threshold(self, threshold: float, fpir: float) -> OpenSetPoint:
        """What a cosine ``threshold`` gives that was chosen for ``fpir`` by other means."""
        return open_set_at(self.mated, self.right, self.strangers, threshold, fpir)


def single_photos(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which photos (n,) show somebody of whom there is no other; labels: (n,) from 0."""
    return np.asarray(np.bincount(labels)[labels] == 1)


def choose_strangers(labels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], str]:
    """Which photos (n,) show people who are never enrolled, and in words who they are.

    labels: (n,) from 0. Strangers are the people of a single photo; where those are fewer than
    100, half of the others as well, drawn by a fixed seed.
    """
    strangers = single_photos(labels)
    if strangers.sum() >= _FEWEST_STRANGERS:
        return strangers, "the people of a single photo"
    known = np.unique(labels[~strangers])
    drawn = np.random.default_rng(_SEED).permutation(known)[: len(known) // 2]
    alone = " and the people of a single photo" if strangers.any() else ""
    who = f"half of the people, drawn by a fixed seed{alone}"
    return strangers | np.isin(labels, drawn), who


def first_photos(candidates: Rows, labels: NDArray[np.int64]) -> Rows:
    """Of the photos ``candidates`` (c,) the first of each person, by ascending label."""
    return candidates[np.unique(labels[candidates], return_index=True)[1]]


def search(
    rows: FloatArray,
    found: NDArray[np.bool_],
    labels: NDArray[np.int64],
    enrolled: Rows,
    mated: Rows,
    strangers: Rows,
) -> Searches:
    """Search the photos ``enrolled`` (g,), one a person, for ``mated`` (m,) and ``strangers`` (s,).

    rows: (n, d) float32 unit embeddings, of which those without ``found`` (n,) find nobody;
    enrolled ones are all found. labels: (n,) integers; of ``mated`` all among the enrolled,
    of ``strangers`` none. g and m at least 1. In blocks: memory is 64 MB of similarities.
    """
    gallery, people = rows[enrolled].T, labels[enrolled]
    step = max(1, _SCORES_AT_ONCE // len(enrolled))
    ranks = np.full(len(mated), _NOT_FOUND, np.int64)
    best = np.full(len(mated), -np.inf, np.float32)
    right = np.zeros(len(mated), np.bool_)
    for block in _blocks(np.flatnonzero(found[mated]), step):
        probes = mated[block]
        similarity = rows[probes] @ gallery
        ranks[block] = mate_ranks(similarity, labels[probes], people)
        best[block] = similarity.max(axis=1)
        right[block] = people[similarity.argmax(axis=1)] == labels[probes]
    of_strangers = np.full(len(strangers), -np.inf, np.float32)
    for block in _blocks(np.flatnonzero(found[strangers]), step):
        of_strangers[block] = (rows[strangers[block]] @ gallery).max(axis=1)
    return Searches(len(enrolled), ranks, best, right, of_strangers)


def _blocks(indices: Rows, step: int) -> Iterator[Rows]:
    return (indices[start : start + step] for start in range(0, len(indices), step))


def search_first_photos(
    rows: FloatArray,
    found: NDArray[np.bool_],
    labels: NDArray[np.int64],
    strangers: NDArray[np.bool_],
) -> Searches | None:
    """Enrol the first photo of everybody with two or more, and search for all the others.

    As :func:`search`, with labels from 0. strangers: (n,) bool, the photos of people who are not
    enrolled, all of them probes; a person is one or the other. Photos of one person alone who
    is no stranger are left out. None where nobody can be enrolled and searched for.
    """
    known = ~strangers & ~single_photos(labels)
    enrolled = first_photos(np.flatnonzero(known & found), labels)
    mated = np.flatnonzero(known & np.isin(labels, labels[enrolled]))
    mated = np.setdiff1d(mated, enrolled)
    if not len(mated):
        return None
    return search(rows, found, labels, enrolled, mated, np.flatnonzero(strangers))


def open_set(
    rows: FloatArray, found: NDArray[np.bool_], labels: NDArray[np.int64]
) -> OpenSet | None:
    """See :class:`OpenSet`; None where nobody can be enrolled and probed, or all can."""
    strangers = single_photos(labels)
    searches = search_first_photos(rows, found, labels, strangers) if strangers.any() else None
    if searches is None:
        return None
    return OpenSet(searches.enrolled, searches.hit_rates, searches.points)
