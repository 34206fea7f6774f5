"""Every row in float32, in the memory of a CUDA device.

Imports the core, numpy, and this package's faiss_rows.
"""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from facerec.errors import GalleryError
from facerec.types import FloatArray
from gallery.faiss_rows import RowArray, chunks, load_faiss, search_flat

_MOST = 2048
"""Neighbours that FAISS can return from a device."""


class CudaEngine:
    """Every row, in float32, in the memory of a CUDA device as well as where the rows lie."""

    kind: Literal["flat"] = "flat"
    exact = True

    def __init__(self, vectors: FloatArray) -> None:
        require_cuda()
        faiss = load_faiss()
        self._vectors = vectors
        self._resources = faiss.StandardGpuResources()
        self._one_search = threading.Lock()  # FAISS's are not safe against another at once
        self._index = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1])
        for chunk in chunks(vectors):
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
        if width > _MOST:
            return search_flat(self._vectors, queries, k)
        with self._one_search:
            similarities, rows = self._index.search(queries, width)
        if alive is not None:
            gone = ~alive[rows]
            similarities[gone], rows[gone] = -np.inf, -1
            order = np.argsort(gone, axis=1, kind="stable")[:, :k]
            similarities = np.take_along_axis(similarities, order, axis=1)
            rows = np.take_along_axis(rows, order, axis=1)
        return similarities, rows


def require_cuda() -> None:
    """Raises GalleryError, with the reason, where FAISS cannot use a CUDA device."""
    faiss = load_faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        raise GalleryError(
            "device cuda: this FAISS was built without CUDA. Install facerec[gpu] in an "
            "environment without faiss-cpu; 'facerec doctor' shows which builds are there."
        )
    if not faiss.get_num_gpus():
        raise GalleryError(
            "device cuda: FAISS sees no CUDA device. 'nvidia-smi' shows whether the driver does."
        )
