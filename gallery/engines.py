"""How rows are searched: flat, compressed, or approximately, all on FAISS.

An engine is made of the rows of a table's base, or opened from a file, and does not change;
rows that are removed later are left out by a mask, rows that are added are searched apart.
Imports the core, numpy, and faiss when the first engine is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError, GalleryError
from facerec.runtime import available_threads
from facerec.types import FloatArray

Kind = Literal["flat", "float16", "int8", "hnsw", "ivf"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RowArray = NDArray[np.int64]

AUTO_INT8 = 100_000
"""Vectors from which "auto" takes int8, which is exact as well, and a quarter of the memory."""

_CHUNK = 1 << 16
BATCH = 8
"""Queries from which products of whole matrices are faster than going through rows."""
_FIRST_PRODUCT, _PRODUCT = 1 << 12, 1 << 16
_WORTH_SHARING = 1 << 24
"""Numbers to go through, from which the threads share one query."""
_MOST = 127  # of a signed byte
_CODED_ABOUT = 0.01
"""Of the codes of the approximate types, which promise nothing."""
_HNSW_LINKS = 32
_HNSW_BUILD = 80
_HNSW_SEARCH = 128
_CUDA_MOST = 2048
"""Neighbours that FAISS can return from a device."""
_IVF_PROBES = 64
_IVF_TRAIN = 64
"""Vectors a list to train with; FAISS advises 39 to 256."""


class Engine(Protocol):
    """Searches rows 0 to n-1."""

    kind: Kind
    exact: bool
    """Whether nothing nearer than the last result can be missing, the tolerances apart."""

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        """(Q,): how far a similarity to each query may lie from that of the float32 rows."""

    def search(
        self, queries: FloatArray, k: int, alive: NDArray[np.bool_] | None
    ) -> tuple[FloatArray, RowArray]:
        """(Q, k) float32 similarities, best first, and (Q, k) int64 rows; -1 where none is left.

        alive: (n,) bool, the rows that may be found; None: all.
        """


def choose_kind(kind: str, count: int) -> Kind:
    """``kind``, or for "auto" what suits ``count`` vectors. Raises ConfigError."""
    if kind == "auto":
        return "int8" if count >= AUTO_INT8 else "flat"
    if kind not in KINDS:
        raise ConfigError(f"index type {kind!r} is not known; use auto, {', '.join(KINDS)}")
    return kind


def make_engine(kind: Kind, vectors: FloatArray) -> Engine:
    """An engine over (n, d) rows, which may be mapped; ``flat`` goes on reading them."""
    if kind == "flat":
        return FlatEngine(vectors)
    if kind in ("float16", "int8"):
        return CodedEngine.make(kind, vectors)
    return GraphEngine.make(vectors) if kind == "hnsw" else ListsEngine.make(vectors)


def open_engine(
    kind: Kind, vectors: FloatArray, path: Path, arrays: Mapping[str, NDArray[Any]]
) -> Engine:
    """The engine that :func:`save_engine` wrote of ``vectors``; the file is mapped, not read."""
    faiss = _faiss()
    if kind == "flat":
        return FlatEngine(vectors)
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    if kind in ("float16", "int8"):
        return CodedEngine(kind, index, arrays)
    if kind == "hnsw":
        return GraphEngine(index)
    return ListsEngine(index)


def save_engine(engine: Engine, path: Path) -> dict[str, NDArray[Any]]:
    """Write the engine's FAISS index to ``path``; returns what else is needed to open it.

    Raises OSError.
    """
    faiss = _faiss()
    if isinstance(engine, FlatEngine):
        return {}
    assert isinstance(engine, (CodedEngine, GraphEngine, ListsEngine))
    try:
        faiss.write_index(engine.index, str(path))
    except RuntimeError as exc:  # FAISS's word for a full disk
        raise OSError(str(exc).splitlines()[0]) from exc
    return engine.arrays if isinstance(engine, CodedEngine) else {}


def rounding(dim: int) -> float:
    """How far a float32 dot product of unit vectors may be off, in any order of summation.

    |fl(x.y) - x.y| <= d u |x||y| (Higham 2002, eq. 3.5), and doubled for good measure: unit
    length itself holds to 1e-3 only.
    """
    return 2.0 * dim * 2.0**-24


class FlatEngine:
    """Every row, in float32. Removed rows are NaN, and NaN is never better than anything."""

    kind: Kind = "flat"
    exact = True

    def __init__(self, vectors: FloatArray) -> None:
        self._vectors = vectors

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        return np.full(len(queries), rounding(self._vectors.shape[1]))

    def search(
        self, queries: FloatArray, k: int, alive: NDArray[np.bool_] | None
    ) -> tuple[FloatArray, RowArray]:
        return search_flat(self._vectors, queries, k)


def search_flat(vectors: FloatArray, queries: FloatArray, k: int) -> tuple[FloatArray, RowArray]:
    """As :meth:`Engine.search`, over (n, d) float32 vectors wherever they lie."""
    if len(queries) >= BATCH:
        return _search_by_product(vectors, queries, k)
    faiss = _faiss()

    def search(start: int, stop: int) -> tuple[FloatArray, RowArray]:
        part, width = vectors[start:stop], min(k, stop - start)
        similarities, rows = faiss.knn(queries, part, width, metric=faiss.METRIC_INNER_PRODUCT)
        rows[rows >= 0] += start
        return similarities, rows

    return _in_parts(search, vectors.shape, queries, k)


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


class CodedEngine:
    """Every row, as float16 or int8 codes of what it differs by from the mean.

    A row x is kept as c = round((x - mean) / scale), one scale a dimension, so that a query q has
    q.x = q.mean + (q * scale).c, off by at most |q||x - x'| for the x' that the code stands for;
    ``bound`` is the largest |x - x'| of all rows. For int8, q * scale is rounded too, to p / K with
    integers p, since FAISS multiplies bytes; that adds at most |q * scale - p / K||c|, and
    ``longest`` is the largest |c|. A similarity is thus within known limits of the exact one:
    who ranks by exact scores, and looks at all that these limits leave open, misses nothing.
    """

    exact = True

    def __init__(self, kind: Kind, index: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
        """arrays: mean (d,), scale (d,) and limits (2,), the last of bound and longest."""
        self.kind = kind
        self.index = index
        self.arrays = dict(arrays)
        self._mean = np.ascontiguousarray(arrays["mean"], np.float32)
        self._scale = np.ascontiguousarray(arrays["scale"], np.float32)
        self._bound, self._longest = (float(value) for value in arrays["limits"])

    @classmethod
    def make(cls, kind: Kind, vectors: FloatArray) -> CodedEngine:
        faiss = _faiss()
        dim = vectors.shape[1]
        mean = _mean(vectors)
        scale = np.ones(dim, np.float32)
        code = faiss.ScalarQuantizer.QT_fp16
        if kind == "int8":
            scale = _largest(vectors, mean) / np.float32(_MOST)
            code = faiss.ScalarQuantizer.QT_8bit_direct_signed
        index = faiss.IndexScalarQuantizer(dim, code, faiss.METRIC_INNER_PRODUCT)
        bound = longest = 0.0
        for chunk in _chunks(vectors):
            values = (chunk - mean) / scale
            kept = np.rint(values) if kind == "int8" else values.astype(np.float16)
            kept = np.ascontiguousarray(kept, np.float32)
            index.add(kept)
            left = np.multiply(kept, scale, dtype=np.float64) + mean - chunk
            bound = max(bound, float(np.linalg.norm(left, axis=1).max()))
            longest = max(longest, float(np.linalg.norm(kept, axis=1).max()))
        limits = np.array([bound, longest])
        return cls(kind, index, {"mean": mean, "scale": scale, "limits": limits})

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        scaled = queries * self._scale
        coded, unit = self._coded(scaled)
        off = np.linalg.norm(scaled - np.multiply(coded, unit, dtype=np.float64), axis=1)
        # A unit vector's length holds to 1e-3 only.
        off = 1.01 * (self._bound + off * self._longest) + 2 * rounding(self.index.d)
        return np.asarray(off)

    def search(
        self, queries: FloatArray, k: int, alive: NDArray[np.bool_] | None
    ) -> tuple[FloatArray, RowArray]:
        coded, unit = self._coded(queries * self._scale)

        def search(start: int, stop: int) -> tuple[FloatArray, RowArray]:
            params = _only(None if alive is None else alive[start:stop], _faiss().SearchParameters)
            similarities, rows = self._part(start, stop).search(coded, k, params=params)
            rows[rows >= 0] += start
            return similarities, rows

        similarities, rows = _in_parts(search, (self.index.ntotal, self.index.d), queries, k)
        similarities *= unit
        similarities += (queries @ self._mean)[:, None]
        return similarities, rows

    def _part(self, start: int, stop: int) -> Any:
        """An index of some rows, for as long as this one lives; their codes are not copied.

        A selector of rows would do too, but FAISS asks it about every row there is.
        """
        faiss, whole = _faiss(), self.index
        if (start, stop) == (0, whole.ntotal):
            return whole
        part = faiss.IndexScalarQuantizer(whole.d, whole.sq.qtype, whole.metric_type)
        size = whole.code_size
        first = faiss.cast_integer_to_uint8_ptr(int(whole.codes.data()) + start * size)
        codes, count = faiss.MaybeOwnedVectorUInt8, stop - start
        part.codes = codes.create_view(first, count * size, whole.codes.owner)
        part.ntotal = count
        return part

    def _coded(self, scaled: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(Q, d) as FAISS is to have them, and (Q, 1) what one stands for."""
        if self.kind == "float16":
            return np.ascontiguousarray(scaled), np.ones((len(scaled), 1), np.float32)
        unit = np.abs(scaled).max(axis=1, keepdims=True) / np.float32(_MOST)
        unit = np.maximum(unit, np.float32(1e-30))
        return np.ascontiguousarray(np.rint(scaled / unit)), unit


class GraphEngine:
    """HNSW (Malkov & Yashunin 2018) over int8 codes: approximate, fast, slow to build.

    By Euclidean distance, which ranks unit vectors as the cosine does, and unlike the inner
    product does not care that all of them lie in a cone.
    """

    kind: Kind = "hnsw"
    exact = False

    def __init__(self, index: Any) -> None:
        self.index = index

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        return np.full(len(queries), _CODED_ABOUT)

    @classmethod
    def make(cls, vectors: FloatArray) -> GraphEngine:
        faiss = _faiss()
        index = faiss.IndexHNSWSQ(
            vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, _HNSW_LINKS, faiss.METRIC_L2
        )
        index.hnsw.efConstruction = _HNSW_BUILD
        if len(vectors):
            index.train(_sample(vectors, _CHUNK))
        for chunk in _chunks(vectors):
            index.add(chunk)
        return cls(index)

    def search(
        self, queries: FloatArray, k: int, alive: NDArray[np.bool_] | None
    ) -> tuple[FloatArray, RowArray]:
        faiss = _faiss()
        effort = max(_HNSW_SEARCH, k)
        params = _only(alive, faiss.SearchParametersHNSW, efSearch=effort)
        with _threads_for(len(queries)):
            squares, rows = self.index.search(queries, k, params=params)
        return _cosines(squares), rows


class ListsEngine:
    """An inverted file of int8 codes: the lists of the nearest centres are searched.

    By Euclidean distance, as :class:`GraphEngine`.
    """

    kind: Kind = "ivf"
    exact = False

    def __init__(self, index: Any) -> None:
        self.index = index

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        return np.full(len(queries), _CODED_ABOUT)

    @classmethod
    def make(cls, vectors: FloatArray) -> ListsEngine:
        faiss = _faiss()
        dim = vectors.shape[1]
        lists = max(1, min(len(vectors) // 39, int(4 * len(vectors) ** 0.5)))
        centres = faiss.IndexFlatL2(dim)
        index = faiss.IndexIVFScalarQuantizer(
            centres, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2
        )
        index.own_fields = True
        centres.this.disown()
        index.cp.max_points_per_centroid = _IVF_TRAIN
        if len(vectors):
            index.train(_sample(vectors, _IVF_TRAIN * lists))
        for chunk in _chunks(vectors):
            index.add(chunk)
        return cls(index)

    def search(
        self, queries: FloatArray, k: int, alive: NDArray[np.bool_] | None
    ) -> tuple[FloatArray, RowArray]:
        faiss = _faiss()
        probes = min(_IVF_PROBES, self.index.nlist)
        with _threads_for(len(queries)):
            params = _only(alive, faiss.SearchParametersIVF, nprobe=probes)
            squares, rows = self.index.search(queries, k, params=params)
        return _cosines(squares), rows


class CudaEngine:
    """Every row, in float32, in the memory of a CUDA device as well as where the rows lie."""

    kind: Kind = "flat"
    exact = True

    def __init__(self, vectors: FloatArray) -> None:
        require_cuda()
        faiss = _faiss()
        self._vectors = vectors
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1])
        for chunk in _chunks(vectors):
            self._index.add(chunk)

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        # A device may multiply in TF32, with 10 bits of mantissa; candidates are scored again.
        return np.full(len(queries), 2.0**-9)

    def search(
        self, queries: FloatArray, k: int, alive: NDArray[np.bool_] | None
    ) -> tuple[FloatArray, RowArray]:
        removed = 0 if alive is None else int(np.count_nonzero(~alive))
        # The device knows nothing of removals, so it may return those.
        width = min(k + removed, len(self._vectors))
        if width > _CUDA_MOST:
            return search_flat(self._vectors, queries, k)
        similarities, rows = self._index.search(queries, width)
        if alive is not None:
            gone = ~alive[rows]
            similarities[gone], rows[gone] = -np.inf, -1
            order = np.argsort(gone, axis=1, kind="stable")[:, :k]
            similarities = np.take_along_axis(similarities, order, axis=1)
            rows = np.take_along_axis(rows, order, axis=1)
        return similarities, rows


def _cosines(squares: FloatArray) -> FloatArray:
    """Of unit vectors, from their squared distances; -inf where there is none."""
    return np.where(np.isfinite(squares) & (squares < 1e30), 1 - squares / 2, -np.inf)


def require_cuda() -> None:
    """Raises GalleryError, with the reason, where FAISS cannot use a CUDA device."""
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise GalleryError(
            "device cuda: this FAISS was built without CUDA. Install facerec[gpu] in an "
            "environment without faiss-cpu; 'facerec doctor' shows which builds are there."
        )
    if not faiss.get_num_gpus():
        raise GalleryError(
            "device cuda: FAISS sees no CUDA device. 'nvidia-smi' shows whether the driver does."
        )


def _in_parts(
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
        with _threads_for(len(queries)):
            return search(0, count)
    bounds = np.linspace(0, count, threads + 1).astype(int).tolist()
    with _threads_for(1):
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
    with _threads_for(1):
        return search(start, stop)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(available_threads(), thread_name_prefix="facerec-search")


def _only(alive: NDArray[np.bool_] | None, parameters: Any, **values: int) -> Any:
    """FAISS's search parameters that leave out what is not alive."""
    made = parameters(**values)
    if alive is not None:
        # Python keeps what it was set to for as long as the parameters live.
        made.sel = made.kept = _faiss().IDSelectorBitmap(np.packbits(alive, bitorder="little"))
    return made


@contextmanager
def _threads_for(queries: int) -> Iterator[None]:
    """One query runs on the calling thread: waking others takes longer, above all when busy.

    OpenMP keeps this number per calling thread, so nobody else's searches change.
    """
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    if queries == 1:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _faiss() -> Any:
    import faiss

    return faiss


def _chunks(vectors: FloatArray) -> Iterator[FloatArray]:
    for start in range(0, len(vectors), _CHUNK):
        yield np.ascontiguousarray(vectors[start : start + _CHUNK])


def _sample(vectors: FloatArray, count: int) -> FloatArray:
    """At most ``count`` rows, the same ones every time."""
    if len(vectors) <= count:
        return np.ascontiguousarray(vectors[:])
    rows = np.random.default_rng(0).choice(len(vectors), count, replace=False)
    return np.ascontiguousarray(vectors[np.sort(rows)])


def _mean(vectors: FloatArray) -> FloatArray:
    total = np.zeros(vectors.shape[1])
    for chunk in _chunks(vectors):
        total += chunk.sum(axis=0, dtype=np.float64)
    return (total / max(1, len(vectors))).astype(np.float32)


def _largest(vectors: FloatArray, mean: FloatArray) -> FloatArray:
    """(d,) largest distance from the mean in each dimension; never 0."""
    largest = np.full(vectors.shape[1], 1e-12, np.float32)
    for chunk in _chunks(vectors):
        np.maximum(largest, np.abs(chunk - mean).max(axis=0), out=largest)
    return largest
