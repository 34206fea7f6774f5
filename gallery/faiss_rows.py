"""Rows of vectors searched with FAISS: what the engines have in common.

Flat search, one query shared among threads, and the few things that FAISS wants to be told.
Imports the core, numpy, and faiss when something is first searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec.runtime import available_threads
from facerec.types import FloatArray

RowArray = NDArray[np.int64]

CHUNK = 1 << 16
"""Rows that are looked at together while an index is made."""
BATCH = 8
"""Queries from which products of whole matrices are faster than going through rows."""
_FIRST_PRODUCT, _PRODUCT = 1 << 12, 1 << 16
_WORTH_SHARING = 1 << 22
"""Numbers to go through, from which the threads share one query."""


def rounding(dim: int) -> float:
    """How far a float32 dot product of unit vectors may be off, in any order of summation.

    |fl(x.y) - x.y| <= d u |x||y| (Higham 2002, eq. 3.5), and doubled for good measure: unit
    length itself holds to 1e-3 only.
    """
    return 2.0 * dim * 2.0**-24


def search_flat(vectors: FloatArray, queries: FloatArray, k: int) -> tuple[FloatArray, RowArray]:
    """As :meth:`gallery.engines.Engine.search`, over (n, d) float32 vectors wherever they lie."""
    if len(queries) >= BATCH:
        return _search_by_product(vectors, queries, k)
    faiss = load_faiss()

    def search(start: int, stop: int) -> tuple[FloatArray, RowArray]:
        part, width = vectors[start:stop], min(k, stop - start)
        similarities, rows = faiss.knn(queries, part, width, metric=faiss.METRIC_INNER_PRODUCT)
        rows[rows >= 0] += start
        return similarities, rows

    return in_parts(search, vectors.shape, queries, k)


def _search_by_product(
    vectors: FloatArray, queries: FloatArray, k: int
) -> tuple[FloatArray, RowArray]:
    """The same by matrix products, some rows at a time: several times as fast as FAISS here.

    Once there are k, only scores above the k-th are looked at, and these are few.
    """
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    stop = 0
    while stop < len(vectors):
        start, stop = stop, min(len(vectors), stop + (_PRODUCT if stop else _FIRST_PRODUCT))
        scores = queries @ vectors[start:stop].T  # (Q, b); NaN for a removed row
        better = scores > similarities[:, -1:]
        for query in np.flatnonzero(better.any(axis=1)):
            at = np.flatnonzero(better[query])
            merged = np.concatenate([similarities[query], scores[query, at]])
            named = np.concatenate([rows[query], at + start])
            best = np.argpartition(-merged, k - 1)[:k]
            best = best[np.argsort(-merged[best])]
            similarities[query], rows[query] = merged[best], named[best]
    return similarities, rows


def in_parts(
    search: Callable[[int, int], tuple[FloatArray, RowArray]],
    shape: tuple[int, ...],
    queries: FloatArray,
    k: int,
) -> tuple[FloatArray, RowArray]:
    """``search`` over all rows of an index of (n, d); one query's rows shared among threads.

    FAISS gives a query to one thread, which leaves the others idle while it goes through
    gigabytes. Of a small index the other way round: waking threads would take longer.
    """
    count, dim = shape
    threads = available_threads() if len(queries) == 1 and count * dim >= _WORTH_SHARING else 1
    if threads == 1:
        with threads_for(len(queries)):
            return search(0, count)
    bounds = np.linspace(0, count, threads + 1).astype(int).tolist()
    with threads_for(1):
        others = [_pool().submit(_alone, search, *b) for b in pairwise(bounds[1:])]
        found = [search(bounds[0], bounds[1]), *(other.result() for other in others)]
    similarities = np.hstack([part[0] for part in found])
    rows = np.hstack([part[1] for part in found])
    similarities[rows < 0] = -np.inf
    best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, best, 1), np.take_along_axis(rows, best, 1)


def _alone(
    search: Callable[[int, int], tuple[FloatArray, RowArray]], start: int, stop: int
) -> tuple[FloatArray, RowArray]:
    with threads_for(1):
        return search(start, stop)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(available_threads(), thread_name_prefix="facerec-search")


def only(alive: NDArray[np.bool_] | None, parameters: Any, **values: int) -> Any:
    """FAISS's search parameters that leave out what is not alive."""
    made = parameters(**values)
    if alive is not None:
        # Python keeps what it was set to for as long as the parameters live.
        made.sel = made.kept = load_faiss().IDSelectorBitmap(np.packbits(alive, bitorder="little"))
    return made


@contextmanager
def threads_for(queries: int) -> Iterator[None]:
    """One query runs on the calling thread: waking others takes longer, above all when busy.

    OpenMP keeps this number per calling thread, so nobody else's searches change.
    """
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    if queries == 1:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def load_faiss() -> Any:
    """The module, imported when it is first needed."""
    import faiss

    return faiss


def chunks(vectors: FloatArray, size: int = CHUNK) -> Iterator[FloatArray]:
    """(n, d) vectors, which may be mapped, some at a time."""
    for start in range(0, len(vectors), size):
        yield np.ascontiguousarray(vectors[start : start + size])


def sample(vectors: FloatArray, count: int) -> FloatArray:
    """At most ``count`` rows, the same ones every time."""
    if len(vectors) <= count:
        return np.ascontiguousarray(vectors[:])
    rows = np.random.default_rng(0).choice(len(vectors), count, replace=False)
    return np.ascontiguousarray(vectors[np.sort(rows)])
