"""Every row as float16 or int8 codes, with what they may be off by.

Imports the core, numpy, and this package's faiss_rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from facerec.types import FloatArray
from gallery.faiss_rows import RowArray, chunks, in_parts, load_faiss, only, rounding

CodedKind = Literal["float16", "int8"]
_MOST = 127  # of a signed byte


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

    def __init__(self, kind: CodedKind, index: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
        """arrays: mean (d,), scale (d,) and limits (2,), the last of bound and longest."""
        self.kind = kind
        self.index = index
        self.arrays = dict(arrays)
        self._mean = np.ascontiguousarray(arrays["mean"], np.float32)
        self._scale = np.ascontiguousarray(arrays["scale"], np.float32)
        self._bound, self._longest = (float(value) for value in arrays["limits"])

    @classmethod
    def make(cls, kind: CodedKind, vectors: FloatArray) -> CodedEngine:
        faiss = load_faiss()
        dim = vectors.shape[1]
        mean = _mean(vectors)
        scale = np.ones(dim, np.float32)
        code = faiss.ScalarQuantizer.QT_fp16
        if kind == "int8":
            scale = _largest(vectors, mean) / np.float32(_MOST)
            code = faiss.ScalarQuantizer.QT_8bit_direct_signed
        index = faiss.IndexScalarQuantizer(dim, code, faiss.METRIC_INNER_PRODUCT)
        bound = longest = 0.0
        for chunk in chunks(vectors):
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
            params = only(
                None if alive is None else alive[start:stop], load_faiss().SearchParameters
            )
            similarities, rows = self._part(start, stop).search(coded, k, params=params)
            rows[rows >= 0] += start
            return similarities, rows

        similarities, rows = in_parts(search, (self.index.ntotal, self.index.d), queries, k)
        similarities *= unit
        similarities += (queries @ self._mean)[:, None]
        return similarities, rows

    def _part(self, start: int, stop: int) -> Any:
        """An index of some rows, for as long as this one lives; their codes are not copied.

        A selector of rows would do too, but FAISS asks it about every row there is.
        """
        faiss, whole = load_faiss(), self.index
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


def _mean(vectors: FloatArray) -> FloatArray:
    total = np.zeros(vectors.shape[1])
    for chunk in chunks(vectors):
        total += chunk.sum(axis=0, dtype=np.float64)
    return (total / max(1, len(vectors))).astype(np.float32)


def _largest(vectors: FloatArray, mean: FloatArray) -> FloatArray:
    """(d,) largest distance from the mean in each dimension; never 0."""
    largest = np.full(vectors.shape[1], 1e-12, np.float32)
    for chunk in chunks(vectors):
        np.maximum(largest, np.abs(chunk - mean).max(axis=0), out=largest)
    return largest
