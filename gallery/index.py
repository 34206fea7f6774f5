"""Indexes over vectors: the protocol, the exact NumPy reference, and FAISS.

An index knows template ids and unit vectors, not people. It is not safe against a
search during a change: :mod:`gallery.live` sees to that. Imports the core and numpy;
faiss when the first FAISS index is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from facerec.types import FloatArray

IdArray = NDArray[np.int64]


class VectorIndex(Protocol):
    """Template ids and their unit vectors, searched by cosine similarity."""

    @property
    def dim(self) -> int:
        """Length of every vector."""

    @property
    def tolerance(self) -> float:
        """How far a similarity from ``search`` may lie from the exact one."""

    def __len__(self) -> int: ...

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (n,) ids, none of them present or twice, with (n, d) float32 unit vectors."""

    def remove(self, ids: IdArray) -> None:
        """Remove those of the (n,) ids that are present; nothing of them stays."""

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        """The k nearest of each of (Q, d) queries, nearest first.

        Returns (Q, k') float32 similarities in [-1, 1] and (Q, k') int64 ids, where
        k' = min(k, len). Equal similarities come in the order of ids; which of several
        equal ones make the last places is open.
        """

    def vectors(self, ids: IdArray) -> FloatArray:
        """(n, d) float32 vectors of (n,) ids, all of them present."""


class ExactIndex:
    """Scores everything in float64 and sorts: slow, and obviously right."""

    tolerance = 0.0

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._rows: dict[int, FloatArray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        self._rows.update(zip(ids.tolist(), vectors.copy(), strict=True))

    def remove(self, ids: IdArray) -> None:
        for template_id in ids.tolist():
            self._rows.pop(template_id, None)

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        ids = np.array(list(self._rows), dtype=np.int64)
        k = min(k, len(ids))
        similarities = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        for row, query in enumerate(queries):
            scores = cosine(self.vectors(ids), query)
            best = np.lexsort((ids, -scores))[:k]
            similarities[row], found[row] = scores[best], ids[best]
        return similarities, found

    def vectors(self, ids: IdArray) -> FloatArray:
        rows = [self._rows[template_id] for template_id in ids.tolist()]
        return np.array(rows, np.float32).reshape(len(rows), self.dim)


class FaissFlatIndex:
    """FAISS over all vectors, without approximation; float32 rounding apart it is exact."""

    def __init__(self, dim: int) -> None:
        import faiss

        self.dim = dim
        # |fl(x.y) - x.y| <= d u |x||y| for any order of summation (Higham 2002, eq. 3.5),
        # and doubled for good measure: unit length itself holds to 1e-3 only.
        self.tolerance = 2.0 * dim * 2.0**-24
        self._faiss: Any = faiss
        self._index: Any = faiss.IndexFlatIP(dim)
        self._ids: IdArray = np.empty(0, np.int64)  # of each row of the index
        self._sorted = True

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        self._index.add(np.ascontiguousarray(vectors, np.float32))
        before = len(self._ids)
        self._ids = np.concatenate([self._ids, ids])
        new = self._ids[max(0, before - 1) :]
        self._sorted = self._sorted and bool((new[1:] > new[:-1]).all())

    def remove(self, ids: IdArray) -> None:
        doomed = np.isin(self._ids, ids)
        rows = np.flatnonzero(doomed)
        if len(rows):
            # Rows behind a removed one move up, as they do in the mask below.
            self._index.remove_ids(self._faiss.IDSelectorBatch(rows))
            self._ids = self._ids[~doomed]

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        k = min(k, len(self))
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        with self._threads_for(len(queries)):
            similarities, rows = self._index.search(np.ascontiguousarray(queries, np.float32), k)
        ids = self._ids[rows]
        order = np.lexsort((ids, -similarities), axis=1)
        similarities = np.take_along_axis(similarities, order, axis=1)
        return np.clip(similarities, -1, 1), np.take_along_axis(ids, order, axis=1)

    def vectors(self, ids: IdArray) -> FloatArray:
        order = None if self._sorted else np.argsort(self._ids)
        rows = np.searchsorted(self._ids, ids, sorter=order)
        found: FloatArray = self._index.reconstruct_batch(rows if order is None else order[rows])
        return found

    @contextmanager
    def _threads_for(self, queries: int) -> Iterator[None]:
        """One query runs on the calling thread: waking others takes longer, above all when busy.

        OpenMP keeps this number per calling thread, so nobody else's searches change.
        """
        before = self._faiss.omp_get_max_threads()
        if queries == 1:
            self._faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)


def cosine(vectors: FloatArray, query: FloatArray) -> NDArray[np.float64]:
    """(n,) similarities of (n, d) unit vectors to a (d,) one, in [-1, 1].

    Summed in float64, each row by itself: the same two vectors have the same similarity
    to the last bit, wherever they stand and however many are scored at once.
    """
    products = np.multiply(vectors, query, dtype=np.float64)
    similarities: NDArray[np.float64] = np.clip(products.sum(axis=1), -1, 1)
    return similarities
