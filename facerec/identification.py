"""Searches of a gallery that holds one photo a person, and the error rates that they show.

Imports the core and numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facerec.metrics import (
    MIN_IMPOSTORS,
    OpenSetPoint,
    Scores,
    allowed_count,
    cmc,
    fnir_at_fpir,
)
from facerec.types import FloatArray

FPIRS = (1e-1, 1e-2)
CMC_RANKS = (1, 5, 10)
_MAX_RANK = 20


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

    cmc: (20,) float64, share of mated probes whose person is among the first 1, 2, ... people.
    mated: (m,) similarity of the best person found for each mated probe, and right: (m,) bool,
    whether it is the probe's. strangers: (s,) likewise of strangers' probes; -inf where a probe
    has no face.
    """

    enrolled: int
    cmc: NDArray[np.float64]
    mated: Scores
    right: NDArray[np.bool_]
    strangers: Scores

    @property
    def hit_rates(self) -> tuple[tuple[int, float], ...]:
        """(rank, share of mated probes whose person is among the first ``rank``)."""
        return tuple((rank, float(self.cmc[rank - 1])) for rank in CMC_RANKS)

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


def single_photos(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which photos (n,) show somebody of whom there is no other; labels: (n,) from 0."""
    return np.asarray(np.bincount(labels)[labels] == 1)


def search_first_photos(
    rows: FloatArray,
    found: NDArray[np.bool_],
    labels: NDArray[np.int64],
    strangers: NDArray[np.bool_],
) -> Searches | None:
    """Enrol the first photo of everybody with two or more, and search for all the others.

    rows: (n, d) float32 unit embeddings, of which those without ``found`` (n,) count for nothing:
    a probe without a face finds nobody. labels: (n,) integers from 0. strangers: (n,) bool, the
    photos of people who are not enrolled, all of them probes; a person is one or the other.
    Photos of one person alone who is no stranger are left out. None where nobody can be
    enrolled and searched for. Memory: 4 bytes for each pair of a probe and an enrolled person.
    """
    known = ~strangers & ~single_photos(labels)
    candidates = np.flatnonzero(known & found)
    people, first = np.unique(labels[candidates], return_index=True)
    enrolled = candidates[first]
    mated = np.flatnonzero(known & np.isin(labels, people))
    mated = np.setdiff1d(mated, enrolled)
    if not len(mated):
        return None
    similarity = np.where(found[mated, None], rows[mated] @ rows[enrolled].T, -np.inf)
    outside = np.flatnonzero(strangers)
    of_strangers = (rows[outside] @ rows[enrolled].T).max(axis=1)
    of_strangers[~found[outside]] = -np.inf
    return Searches(
        enrolled=len(enrolled),
        cmc=cmc(similarity, labels[mated], people, _MAX_RANK),
        mated=similarity.max(axis=1),
        right=people[similarity.argmax(axis=1)] == labels[mated],
        strangers=of_strangers,
    )


def open_set(
    rows: FloatArray, found: NDArray[np.bool_], labels: NDArray[np.int64]
) -> OpenSet | None:
    """See :class:`OpenSet`; None where nobody can be enrolled and probed, or all can."""
    strangers = single_photos(labels)
    searches = search_first_photos(rows, found, labels, strangers) if strangers.any() else None
    if searches is None:
        return None
    return OpenSet(searches.enrolled, searches.hit_rates, searches.points)
