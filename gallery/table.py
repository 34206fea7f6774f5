"""Vectors by row: some that lie on disk and are mapped, and those added since, in memory.

Rows are only ever appended; a removed row becomes NaN, which no search returns, until the
table is written anew without it. Imports the core and numpy only.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from facerec.types import FloatArray

T = TypeVar("T", bound=np.generic)

_FIRST_CAPACITY = 64


class Growing(Generic[T]):
    """An array that grows at its end; what was handed out stays valid and does not grow."""

    def __init__(self, dtype: DTypeLike, width: int | None = None) -> None:
        self._buffer: NDArray[T] = np.empty(self._shape(_FIRST_CAPACITY, width), dtype)
        self._width = width
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def array(self) -> NDArray[T]:
        """All that was appended: (n,) or (n, width), a view."""
        return self._buffer[: self._size]

    def fork(self) -> Growing[T]:
        """One that grows apart from this one, on the same memory: grow only the last fork."""
        return copy.copy(self)

    def append(self, values: ArrayLike) -> None:
        """Add (m,) or (m, width) values."""
        more = np.asarray(values)
        size = self._size + len(more)
        if size > len(self._buffer):
            buffer = np.empty(self._shape(max(size, 2 * len(self._buffer)), self._width),
                              self._buffer.dtype)  # fmt: skip
            buffer[: self._size] = self.array
            self._buffer = buffer
        self._buffer[self._size : size] = more
        self._size = size

    @staticmethod
    def _shape(rows: int, width: int | None) -> tuple[int, ...]:
        return (rows,) if width is None else (rows, width)


class VectorTable:
    """(n, d) float32 rows: ``base`` first, then ``tail``.

    base: (b, d) float32, mapped from a file or not; private to this process, since rows
    that are removed are overwritten in it.
    """

    def __init__(self, dim: int, base: FloatArray | None = None) -> None:
        self.base = np.empty((0, dim), np.float32) if base is None else base
        self._tail: Growing[np.float32] = Growing(np.float32, dim)

    def __len__(self) -> int:
        """Rows, removed ones too."""
        return len(self.base) + len(self._tail)

    @property
    def tail(self) -> FloatArray:
        """(m, d): the rows behind ``base``."""
        return self._tail.array

    def fork(self) -> VectorTable:
        """As :meth:`Growing.fork`. Rows that are erased are so in every fork."""
        forked = copy.copy(self)
        forked._tail = self._tail.fork()
        return forked

    def append(self, vectors: FloatArray) -> None:
        """Add (m, d) rows."""
        self._tail.append(vectors)

    def erase(self, rows: NDArray[np.intp]) -> None:
        """Make (m,) rows NaN."""
        split = len(self.base)
        self.base[rows[rows < split]] = np.nan
        self.tail[rows[rows >= split] - split] = np.nan

    def take(self, rows: NDArray[np.intp]) -> FloatArray:
        """(m, d) float32, a copy of (m,) rows."""
        split = len(self.base)
        in_tail = rows >= split
        if not in_tail.any():
            return np.take(self.base, rows, axis=0)
        found = np.empty((len(rows), self.base.shape[1]), np.float32)
        found[~in_tail] = self.base[rows[~in_tail]]
        found[in_tail] = self.tail[rows[in_tail] - split]
        return found
