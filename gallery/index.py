"""Indexes over vectors: the protocol, the exact NumPy reference, and a table with an engine.

An index knows template ids and unit vectors, not people. It is not safe against a search
during a change, so additions go to a fork: :mod:`gallery.live` sees to that. Imports the
core, numpy, and this package's table and engines.
"""

from __future__ import annotations

import copy
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from facerec.types import FloatArray
from gallery.coded import CodedEngine
from gallery.engines import Engine
from gallery.faiss_rows import BATCH, rounding, search_flat
from gallery.table import Growing, VectorTable

IdArray = NDArray[np.int64]


class VectorIndex(Protocol):
    """Template ids and their unit vectors, searched by cosine similarity."""

    @property
    def dim(self) -> int:
        """Length of every vector."""

    @property
    def exact(self) -> bool:
        """Whether ``search`` misses nothing, ``tolerances`` apart."""

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        """(Q,): how far a similarity that ``search`` gives a (Q, d) query may be off."""

    def __len__(self) -> int: ...

    def fork(self) -> Self:
        """One to add to while others search this one, which does not find what is added.

        Only the last fork may be changed. Removals are made when nobody searches an older one.
        """

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (n,) ids, none of them present or twice, with (n, d) float32 unit vectors."""

    def remove(self, ids: IdArray) -> None:
        """Remove those of the (n,) ids that are present; nothing of them stays."""

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        """The k nearest of each of (Q, d) queries, nearest first.

        Returns (Q, k') float32 similarities in [-1, 1] and (Q, k') int64 ids, where
        k' = min(k, len). Equal similarities come in the order of ids; which of several
        equal ones make the last places is open. An index that is not exact may find less:
        its rows then end in similarity -inf and id -1.
        """

    def vectors(self, ids: IdArray) -> FloatArray:
        """(n, d) float32 vectors of (n,) ids, all of them present."""


class ExactIndex:
    """Scores everything in float64 and sorts: slow, and obviously right."""

    exact = True

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._rows: dict[int, FloatArray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def fork(self) -> ExactIndex:
        forked = copy.copy(self)
        forked._rows = dict(self._rows)
        return forked

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        return np.zeros(len(queries))

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


class TableIndex:
    """A table of vectors: an engine searches its base, FAISS all of what was added since.

    What is added answers at once, whatever the engine; what is removed is masked, and its
    vector overwritten. :meth:`rows` gives all that is left, for a new base to be made of.
    """

    def __init__(
        self,
        dim: int,
        base_ids: IdArray | None = None,
        base: FloatArray | None = None,
        engine: Engine | None = None,
    ) -> None:
        """base_ids: (b,) ascending, of the (b, d) rows of ``base``, which ``engine`` searches."""
        self.dim = dim
        self._table = VectorTable(dim, base)
        self._engine = engine
        self._ids: Growing[np.int64] = Growing(np.int64)  # of each row
        self._ids.append(np.empty(0, np.int64) if base_ids is None else base_ids)
        self._alive: Growing[np.bool_] = Growing(np.bool_)
        self._alive.append(np.ones(len(self._ids), bool))
        self._removed_from_base = 0
        # Ids ascending and their rows, of what is alive; None while row i has the i-th id.
        self._lookup: tuple[IdArray, IdArray] | None = None
        self._count = len(self._ids)

    def __len__(self) -> int:
        return self._count

    def fork(self) -> TableIndex:
        forked = copy.copy(self)
        forked._table = self._table.fork()
        forked._ids, forked._alive = self._ids.fork(), self._alive.fork()
        return forked

    @property
    def exact(self) -> bool:
        return self._engine is None or self._engine.exact

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        if self._engine is None:
            return np.full(len(queries), rounding(self.dim))
        return self._engine.tolerances(queries)

    @property
    def kind(self) -> str:
        """Of the engine."""
        return "flat" if self._engine is None else self._engine.kind

    @property
    def pending(self) -> int:
        """Vectors added since the base was made, and removed from it: what a new base saves."""
        return len(self._table.tail) + self._removed_from_base

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        if not len(ids):
            return
        first = len(self._ids)
        last = self._ids.array[-1] if first else -1
        in_order = ids[0] > last and bool((ids[1:] > ids[:-1]).all())
        if not in_order and self._lookup is None:
            self._lookup = self._ids.array.copy(), np.arange(first)
        self._table.append(np.ascontiguousarray(vectors, np.float32))
        self._ids.append(ids)
        self._alive.append(np.ones(len(ids), bool))
        self._count += len(ids)
        if self._lookup is not None:
            order = np.argsort(ids, kind="stable")
            known, rows = self._lookup
            places = np.searchsorted(known, ids[order])
            self._lookup = (
                np.insert(known, places, ids[order]),
                np.insert(rows, places, first + order),
            )

    def remove(self, ids: IdArray) -> None:
        rows, at = self._find(ids)
        if not len(rows):
            return
        if self._lookup is None:
            self._lookup = self._ids.array.copy(), np.arange(len(self._ids))
        self._lookup = np.delete(self._lookup[0], at), np.delete(self._lookup[1], at)
        self._alive.array[rows] = False
        self._table.erase(rows)
        self._removed_from_base += int(np.count_nonzero(rows < len(self._table.base)))
        self._count -= len(rows)

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        k = min(k, len(self))
        queries = np.ascontiguousarray(queries, np.float32)
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        similarities, rows = self._search_rows(queries, k)
        found = rows >= 0
        ids = np.where(found, self._ids.array[rows], -1)
        similarities = np.where(found, np.clip(similarities, -1, 1), -np.inf).astype(np.float32)
        order = np.lexsort((ids, -similarities), axis=1)[:, :k]
        each = np.arange(len(queries))[:, None]
        return similarities[each, order], ids[each, order]

    def vectors(self, ids: IdArray) -> FloatArray:
        return self._table.take(self._find(ids)[0])

    def rows(self) -> tuple[IdArray, NDArray[np.intp]]:
        """(n,) ids, ascending, of what is there, and their rows for :meth:`take`."""
        if self._lookup is None:
            return self._ids.array.copy(), np.arange(len(self._ids))
        return self._lookup

    def take(self, rows: NDArray[np.intp]) -> FloatArray:
        """(m, d) float32 of (m,) rows. Rows keep their vectors until they are removed."""
        return self._table.take(rows)

    def _search_rows(self, queries: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        """At least the k nearest of all rows, in no order; row -1 where there is none."""
        base, tail = self._table.base, self._table.tail
        parts = []
        if len(base) > self._removed_from_base:
            assert self._engine is not None
            if len(queries) >= BATCH and isinstance(self._engine, CodedEngine):
                # Many queries wait for arithmetic, not for memory, of which codes save some.
                parts.append(search_flat(base, queries, min(k, len(base))))
            else:
                alive = self._alive.array[: len(base)] if self._removed_from_base else None
                parts.append(self._engine.search(queries, min(k, len(base)), alive))
        if len(tail):
            similarities, rows = search_flat(tail, queries, min(k, len(tail)))
            rows[rows >= 0] += len(base)
            parts.append((similarities, rows))
        if len(parts) == 1:
            return parts[0]
        return np.hstack([p[0] for p in parts]), np.hstack([p[1] for p in parts])

    def _find(self, ids: IdArray) -> tuple[IdArray, NDArray[np.intp]]:
        """Rows of those of (n,) ids that are there, and their places among all ids."""
        known, rows = self._lookup or (self._ids.array, None)
        at = np.searchsorted(known, ids)
        inside = at < len(known)
        at = at[inside][known[at[inside]] == ids[inside]]
        return (at if rows is None else rows[at]), at


def cosine(vectors: FloatArray, query: FloatArray) -> NDArray[np.float64]:
    """(n,) similarities of (n, d) unit vectors to a (d,) one, in [-1, 1].

    Summed in float64, each row by itself: the same two vectors have the same similarity
    to the last bit, wherever they stand and however many are scored at once.
    """
    products = np.multiply(vectors, query, dtype=np.float64)
    similarities: NDArray[np.float64] = np.clip(products.sum(axis=1), -1, 1)
    return similarities
