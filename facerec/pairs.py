"""Every pair among labelled embeddings, compared blockwise. Imports the core and numpy only.

A few thousand photos make tens of millions of cross-identity pairs, which is what
it takes to see a false-match rate of 1e-6. All scores are kept (4 bytes a pair),
so every order statistic is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.metrics import in_dtype
from facerec.types import FloatArray

_BLOCK = 512
"""Rows per matrix product: large enough for BLAS, 15 MB of scores for 7,701 photos."""


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Embeddings ordered by label, so that a row's genuine pairs are contiguous.

    rows: (n, d) float32. order: (n,) rows of the caller's array. people: distinct
    labels, ascending. person: (n,) index into ``people``. ends: (n,) one past the
    last row of the same person.
    """

    rows: FloatArray
    order: NDArray[np.intp]
    people: NDArray[np.int64]
    person: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Photos per person, (len(people),)."""
        return np.bincount(self.person, minlength=len(self.people))

    def scores(self) -> Iterator[tuple[int, FloatArray]]:
        """Each row r with its similarity to the rows after it, (n - r - 1,), in [-1, 1]."""
        for start in range(0, len(self.rows), _BLOCK):
            block = self.rows[start : start + _BLOCK] @ self.rows[start:].T
            np.clip(block, -1, 1, out=block)  # rounding: a vector with itself can give 1.0000001
            for at, row in enumerate(block):
                yield start + at, row[at + 1 :]


def _by_label(embeddings: ArrayLike, labels: ArrayLike) -> _Sorted:
    rows, names = np.asarray(embeddings, dtype=np.float32), np.asarray(labels)
    if rows.ndim != 2 or names.shape != rows.shape[:1]:
        raise ValueError(f"expected embeddings (n, d) and labels (n,): {rows.shape}, {names.shape}")
    if not np.issubdtype(names.dtype, np.integer):
        raise ValueError(f"labels: expected integers, got {names.dtype}")
    norms = np.linalg.norm(rows, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= 1e-3))  # also true for NaN
    if wrong.size:
        raise ValueError(f"embeddings: row {wrong[0]} has length {norms[wrong[0]]:.4f}, not 1")
    order = np.argsort(names, kind="stable")
    people, person, counts = np.unique(names[order], return_inverse=True, return_counts=True)
    return _Sorted(
        rows=np.ascontiguousarray(rows[order]),
        order=order,
        people=people.astype(np.int64),
        person=person.astype(np.int64),
        ends=np.cumsum(counts)[person],
    )


def pair_scores(embeddings: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """(genuine, impostor): cosine of every same-label and of every cross-label pair, float32.

    embeddings: (n, d), unit rows. labels: (n,) integers. Each unordered pair counts
    once. Genuine scores come label by label in ascending order, c(c-1)/2 for a label
    with c photos, as :func:`genuine_subjects` lists them; either array may be empty.
    Memory: 4 bytes per pair, 119 MB for 7,701 photos, which take a second or so.
    """
    data = _by_label(embeddings, labels)
    n, counts = len(data.rows), data.counts
    total = int((counts * (counts - 1) // 2).sum())
    genuine = np.empty(total, np.float32)
    impostor = np.empty(n * (n - 1) // 2 - total, np.float32)
    g = i = 0
    for row, scores in data.scores():
        same = int(data.ends[row]) - row - 1
        genuine[g : g + same] = scores[:same]
        impostor[i : i + len(scores) - same] = scores[same:]
        g, i = g + same, i + len(scores) - same
    return genuine, impostor


def genuine_subjects(labels: ArrayLike) -> NDArray[np.int64]:
    """The label of each genuine score of :func:`pair_scores`, (genuine pairs,) int64."""
    people, counts = np.unique(np.asarray(labels), return_counts=True)
    return np.repeat(people.astype(np.int64), counts * (counts - 1) // 2)


@dataclass(frozen=True, eq=False)
class TopImpostors:
    """The most similar cross-label pairs, most similar first.

    scores: (t,) float32. rows: (t, 2) rows of the embeddings. subjects: (t, 2) their
    labels. people: (s,) distinct labels, ascending. photos: (s,) photos of each.
    """

    scores: FloatArray
    rows: NDArray[np.int64]
    subjects: NDArray[np.int64]
    people: NDArray[np.int64]
    photos: NDArray[np.int64]

    @property
    def total(self) -> int:
        """Cross-label pairs altogether."""
        n = int(self.photos.sum())
        return (n * n - int((self.photos**2).sum())) // 2


def top_impostors(embeddings: ArrayLike, labels: ArrayLike, threshold: float) -> TopImpostors:
    """The cross-label pairs at or above ``threshold``, and who they are.

    A second pass over the products costs less than to carry two labels along with
    each of the pairs in the first. Arguments and scores as in :func:`pair_scores`.
    """
    data = _by_label(embeddings, labels)
    lowest = in_dtype(threshold, np.dtype(np.float32))
    found, lefts, rights = [], [], []
    for row, scores in data.scores():
        same = int(data.ends[row]) - row - 1
        at = np.flatnonzero(scores[same:] >= lowest) + same
        found.append(scores[at])
        rights.append(at + row + 1)
        lefts.append(np.full(len(at), row))
    similarity = np.concatenate(found)
    descending = np.argsort(-similarity, kind="stable")
    pairs = np.stack((np.concatenate(lefts), np.concatenate(rights)), axis=1)[descending]
    return TopImpostors(
        scores=similarity[descending],
        rows=data.order[pairs].astype(np.int64),
        subjects=data.people[data.person[pairs]],
        people=data.people,
        photos=data.counts,
    )
