"""Approximate search: a graph, or lists around centres, of int8 codes.

A row x is kept as round(x * scale), one scale for all, so that FAISS compares bytes. By Euclidean
distance, which ranks unit vectors as the cosine does, and unlike the inner product does not care
that all of them lie in a cone. Imports the core, numpy, and this package's faiss_rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from facerec.types import FloatArray
from gallery.faiss_rows import RowArray, chunks, load_faiss, only, sample, threads_for

_MOST = 127  # of a signed byte
_CODED_ABOUT = 0.01
"""How far a code's similarity is off, roughly: nothing is promised."""
_HNSW_LINKS = 32
_HNSW_BUILD = 80
_HNSW_STEP = 1 << 12
"""Rows added at once, between which whoever closes the gallery can stop it: half a second."""
_HNSW_SEARCH = 256
_IVF_PROBES = 128
_IVF_TRAIN = 40
"""Vectors a list to train with; FAISS advises 39 to 256."""


class _Approximate(ABC):
    """What the two have in common: ``index`` is FAISS's."""

    exact: ClassVar[bool] = False

    def __init__(self, index: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
        """arrays: scale (1,) float32, with which rows became bytes."""
        self.index = index
        self.arrays = dict(arrays)
        self._scale = np.float32(arrays["scale"][0])

    def tolerances(self, queries: FloatArray) -> NDArray[np.float64]:
        return np.full(len(queries), _CODED_ABOUT)

    def search(
        self, queries: FloatArray, k: int, alive: NDArray[np.bool_] | None
    ) -> tuple[FloatArray, RowArray]:
        coded = _coded(queries, self._scale)
        with threads_for(len(queries)):
            squares, rows = self.index.search(coded, k, params=self._parameters(k, alive))
        # Of unit vectors; FAISS gives the largest number there is where it found too few.
        found = np.isfinite(squares) & (squares < 1e30)
        return np.where(found, 1 - squares / (2 * self._scale**2), -np.inf), rows

    @abstractmethod
    def _parameters(self, k: int, alive: NDArray[np.bool_] | None) -> Any:
        """FAISS's parameters of a search for k rows that leave out what is not ``alive``."""


class GraphEngine(_Approximate):
    """HNSW (Malkov & Yashunin 2018): fast to search, slow to build."""

    kind: Literal["hnsw"] = "hnsw"

    @classmethod
    def make(cls, vectors: FloatArray) -> GraphEngine:
        """Of (n, d) unit vectors, in minutes for a million."""
        faiss = load_faiss()
        code = faiss.ScalarQuantizer.QT_8bit_direct_signed
        index = faiss.IndexHNSWSQ(vectors.shape[1], code, _HNSW_LINKS, faiss.METRIC_L2)
        index.hnsw.efConstruction = _HNSW_BUILD
        scale = _scale_of(vectors)
        for chunk in chunks(vectors, _HNSW_STEP):
            index.add(_coded(chunk, scale))
        return cls(index, {"scale": np.array([scale])})

    def _parameters(self, k: int, alive: NDArray[np.bool_] | None) -> Any:
        effort = max(_HNSW_SEARCH, k)
        return only(alive, load_faiss().SearchParametersHNSW, efSearch=effort)


class ListsEngine(_Approximate):
    """An inverted file (Jegou et al. 2011): the lists of the nearest centres are searched."""

    kind: Literal["ivf"] = "ivf"

    @classmethod
    def make(cls, vectors: FloatArray) -> ListsEngine:
        """Of (n, d) unit vectors, in minutes for a million."""
        faiss = load_faiss()
        dim = vectors.shape[1]
        lists = max(1, min(len(vectors) // 39, int(4 * len(vectors) ** 0.5)))
        centres = faiss.IndexFlatL2(dim)
        code, by_residual = faiss.ScalarQuantizer.QT_8bit_direct_signed, False
        index = faiss.IndexIVFScalarQuantizer(
            centres, dim, lists, code, faiss.METRIC_L2, by_residual
        )
        index.own_fields = True
        centres.this.disown()
        index.cp.max_points_per_centroid = _IVF_TRAIN
        scale = _scale_of(vectors)
        if len(vectors):
            index.train(_coded(sample(vectors, _IVF_TRAIN * lists), scale))
        for chunk in chunks(vectors):
            index.add(_coded(chunk, scale))
        return cls(index, {"scale": np.array([scale])})

    def _parameters(self, k: int, alive: NDArray[np.bool_] | None) -> Any:
        probes = min(_IVF_PROBES, self.index.nlist)
        return only(alive, load_faiss().SearchParametersIVF, nprobe=probes)


def _scale_of(vectors: FloatArray) -> np.float32:
    """With which the largest number of all becomes the largest byte."""
    largest = max((float(np.abs(chunk).max()) for chunk in chunks(vectors)), default=1.0)
    return np.float32(_MOST / max(largest, 1e-6))


def _coded(vectors: FloatArray, scale: np.float32) -> FloatArray:
    """As FAISS is to have them; a query may lie further out than any row."""
    coded: FloatArray = np.clip(np.rint(vectors * scale), -_MOST, _MOST)
    return coded
