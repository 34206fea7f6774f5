"""How rows are searched: flat, compressed, or approximately, all on FAISS.

An engine is made of the rows of a table's base, or opened from a file, and does not change;
rows that are removed later are left out by a mask, rows that are added are searched apart.
Imports the core, numpy, and this package's engines of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError
from facerec.types import FloatArray
from gallery.approximate import GraphEngine, ListsEngine
from gallery.coded import CodedEngine
from gallery.faiss_rows import RowArray, load_faiss, rounding, search_flat

Kind = Literal["flat", "float16", "int8", "hnsw", "ivf"]
KINDS: tuple[Kind, ...] = get_args(Kind)

AUTO_INT8 = 100_000
"""Vectors from which "auto" takes int8, which is exact as well, and a quarter of the memory."""


class Engine(Protocol):
    """Searches rows 0 to n-1."""

    @property
    def kind(self) -> Kind: ...

    @property
    def exact(self) -> bool:
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
    faiss = load_faiss()
    if kind == "flat":
        return FlatEngine(vectors)
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    if kind in ("float16", "int8"):
        return CodedEngine(kind, index, arrays)
    return GraphEngine(index, arrays) if kind == "hnsw" else ListsEngine(index, arrays)


def save_engine(engine: Engine, path: Path) -> dict[str, NDArray[Any]]:
    """Write the engine's FAISS index to ``path``; returns what else is needed to open it.

    Raises OSError.
    """
    faiss = load_faiss()
    if isinstance(engine, FlatEngine):
        return {}
    assert isinstance(engine, (CodedEngine, GraphEngine, ListsEngine))
    try:
        faiss.write_index(engine.index, str(path))
    except RuntimeError as exc:  # FAISS's word for a full disk
        raise OSError(str(exc).splitlines()[0]) from exc
    return engine.arrays


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
