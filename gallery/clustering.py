"""Which faces are one person's: average linkage over the links that FAISS finds.

Two faces are linked where their similarity reaches a threshold; groups that a link connects are
joined, the most similar first, as long as the mean similarity of all pairs between them
reaches it too. One wrong link so joins nothing but single faces. Where no face has more than
``NEIGHBOURS`` links the result is that of average linkage (UPGMA) on all n(n-1)/2 similarities,
cut at the threshold: a mean reaches it only if one pair does, and joining reciprocal nearest
neighbours in any order gives the same tree (Murtagh 1983; Mullner 2011). Nothing is
random. Imports the core, numpy and this package's policy; faiss where vectors are searched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec.types import FloatArray, ThresholdTable
from gallery.policy import DEFAULT_FMR, OperatingPoint, operating_point

NEIGHBOURS = 64
"""Links of a face at most, the nearest. A larger group needs no more: a few links lead
from each face into it, and the means are over all pairs."""
EXACT_UP_TO = 200_000
"""Faces that are compared one by one; of more, an inverted file finds nearly all links."""

_QUERIES = 1024
_PAIRS = 1 << 16
_PROBES = 32

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]
Progress = Callable[[int, int], object]
"""Told (done, in all); may raise to stop."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """(m,) first and (m,) second rows, first < second, each pair once."""

    first: Rows
    second: Rows

    def __len__(self) -> int:
        return len(self.first)

    @staticmethod
    def of(a: Any, b: Any) -> Pairs:
        """From rows in any order, pairs of a row with itself left out."""
        a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
        low, high = np.minimum(a, b), np.maximum(a, b)
        width = int(high.max(initial=0)) + 1
        first, second = np.divmod(np.unique((low * width + high)[low != high]), width)
        return Pairs(first, second)

    @property
    def both(self) -> Rows:
        """(2 m,) the rows of all pairs."""
        return np.concatenate([self.first, self.second])

    def take(self, which: NDArray[np.bool_]) -> Pairs:
        """Those of them."""
        return Pairs(self.first[which], self.second[which])

    def relabelled(self, labels: Labels) -> Pairs:
        """The pairs of groups that hold them; within a group there are none."""
        return Pairs.of(labels[self.first], labels[self.second])


NO_PAIRS = Pairs(np.empty(0, np.int64), np.empty(0, np.int64))


def linking_point(
    table: ThresholdTable | None,
    faces: int,
    *,
    pack_name: str,
    fmr: float | None = None,
    threshold: float | None = None,
) -> OperatingPoint:
    """The similarity from which two of ``faces`` faces are linked.

    By default that with false-match rate 1/faces: on average one stranger links to each face,
    however large the collection, and by the mean of a group strangers fall out again. At most
    DEFAULT_FMR, and within what the pack's table has measured. Raises ConfigError as
    :func:`gallery.policy.operating_point`.
    """
    if fmr is None and threshold is None and table is not None:
        wanted = min(DEFAULT_FMR, 1 / max(1, faces))
        fmr = min(max(wanted, table.fmr[-1]), table.fmr[0])
    return operating_point(table, 1, pack_name=pack_name, fmr=fmr, threshold=threshold)


def find_links(
    vectors: FloatArray,
    threshold: float,
    *,
    neighbours: int = NEIGHBOURS,
    exact_up_to: int = EXACT_UP_TO,
    progress: Progress | None = None,
) -> Pairs:
    """The pairs of (n, d) float32 unit vectors with a cosine of at least ``threshold``.

    Of each face the ``neighbours`` nearest. Memory: a copy of the vectors, and the links.
    """
    n = len(vectors)
    if n < 2:
        return NO_PAIRS
    index = _search_index(np.ascontiguousarray(vectors, np.float32), exact_up_to)
    firsts, seconds = [], []
    for start in range(0, n, _QUERIES):
        block = np.ascontiguousarray(vectors[start : start + _QUERIES], np.float32)
        similarities, rows = index.search(block, min(n, neighbours + 1))
        near, which = np.nonzero((similarities >= threshold) & (rows >= 0))
        firsts.append(near + start)
        seconds.append(rows[near, which])
        if progress is not None:
            progress(min(n, start + _QUERIES), n)
    return Pairs.of(np.concatenate(firsts), np.concatenate(seconds))


def _search_index(vectors: FloatArray, exact_up_to: int) -> Any:
    import faiss

    n, dim = vectors.shape
    index: Any
    if n <= exact_up_to:
        index = faiss.IndexFlatIP(dim)
    else:
        lists = int(4 * np.sqrt(n))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = 1234  # the same lists every time
        index.train(vectors[:: max(1, n // (64 * lists))])
        index.nprobe = min(lists, _PROBES)
    index.add(vectors)
    return index


def average_linkage(
    vectors: FloatArray,
    links: Pairs,
    threshold: float,
    *,
    start: Labels | None = None,
    owners: Labels | None = None,
    apart: Pairs = NO_PAIRS,
) -> Labels:
    """(n,) group of each of (n, d) float32 unit vectors; a group is called by its lowest row.

    links: pairs whose groups may be joined. start: (n,) groups that are there and stay whole, each
    called by one of its rows. owners: (n,) whom a face belongs to already, -1 for nobody; faces
    of two owners are never joined, those of one only if they are alike. apart: pairs of
    rows whose groups are never joined. Groups are joined while the mean cosine of the pairs
    between two linked ones reaches ``threshold``, the most similar first.
    """
    labels = np.arange(len(vectors)) if start is None else start.astype(np.int64)
    groups = _Groups(vectors, labels, owners)
    scored = groups.candidates(links, apart, threshold)
    while len(scored.pairs):
        best = _reciprocal(scored, len(vectors))
        groups.join(best)
        moved = np.isin(scored.pairs.first, best.both) | np.isin(scored.pairs.second, best.both)
        again = groups.candidates(scored.pairs.take(moved), apart, threshold)
        scored = scored.take(~moved).and_(again)
    return _by_lowest_row(groups.labels)


@dataclass(frozen=True, eq=False)
class _Scored:
    """Pairs of groups, and (m,) the mean cosine between the faces of each two."""

    pairs: Pairs
    similarities: FloatArray

    def take(self, which: NDArray[np.bool_]) -> _Scored:
        return _Scored(self.pairs.take(which), self.similarities[which])

    def and_(self, other: _Scored) -> _Scored:
        """Both, which have no pair in common; in no order."""
        return _Scored(
            Pairs(
                np.concatenate([self.pairs.first, other.pairs.first]),
                np.concatenate([self.pairs.second, other.pairs.second]),
            ),
            np.concatenate([self.similarities, other.similarities]),
        )


class _Groups:
    """Sums, sizes and owners of groups, kept in the row that a group is called by."""

    def __init__(self, vectors: FloatArray, labels: Labels, owners: Labels | None) -> None:
        n = len(vectors)
        self.labels = labels
        self._sizes = np.bincount(labels, minlength=n)
        self._sums = np.array(vectors, np.float32)
        inside = np.flatnonzero(labels != np.arange(n))
        np.add.at(self._sums, labels[inside], vectors[inside])
        self._owners = np.full(n, -1, np.int64)
        if owners is not None:
            np.maximum.at(self._owners, labels, owners)

    def candidates(self, links: Pairs, apart: Pairs, threshold: float) -> _Scored:
        """Pairs of groups that may be joined: linked, alike, not of two owners, not apart.

        A pair below the threshold is gone for good: a mean with what one of them is joined to
        can reach it only if that does, and then it has a link of its own.
        """
        links = links.relabelled(self.labels)
        a, b = self._owners[links.first], self._owners[links.second]
        links = links.take((a == b) | (a < 0) | (b < 0))
        if len(apart) and len(links):
            never = apart.relabelled(self.labels)
            n = len(self.labels)
            codes, wanted = never.first * n + never.second, links.first * n + links.second
            links = links.take(~np.isin(wanted, codes))
        scored = _Scored(links, self._similarities(links))
        return scored.take(scored.similarities >= threshold)

    def _similarities(self, pairs: Pairs) -> FloatArray:
        """(m,) mean cosine between the faces of two groups."""
        found = np.empty(len(pairs), np.float32)
        for at in range(0, len(pairs), _PAIRS):
            a, b = pairs.first[at : at + _PAIRS], pairs.second[at : at + _PAIRS]
            products = np.einsum("nd,nd->n", self._sums[a], self._sums[b])
            found[at : at + _PAIRS] = products / (self._sizes[a] * self._sizes[b])
        return found

    def join(self, pairs: Pairs) -> None:
        """Join the second group of each pair to the first; no group is in two pairs."""
        self._sums[pairs.first] += self._sums[pairs.second]
        self._sizes[pairs.first] += self._sizes[pairs.second]
        both = np.maximum(self._owners[pairs.first], self._owners[pairs.second])
        self._owners[pairs.first] = both
        now = np.arange(len(self.labels))
        now[pairs.second] = pairs.first
        self.labels = now[self.labels]


def _reciprocal(scored: _Scored, n: int) -> Pairs:
    """The pairs of which each is the other's most similar; of equals the lowest rows count."""
    pairs = scored.pairs
    order = np.lexsort((pairs.second, pairs.first, -scored.similarities))
    rank = np.empty(len(pairs), np.int64)
    rank[order] = np.arange(len(pairs))
    best = np.full(n, len(pairs))
    np.minimum.at(best, pairs.first, rank)
    np.minimum.at(best, pairs.second, rank)
    return pairs.take((best[pairs.first] == rank) & (best[pairs.second] == rank))


def _by_lowest_row(labels: Labels) -> Labels:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    named: Labels = first[inverse].astype(np.int64)
    return named
