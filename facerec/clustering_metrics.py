"""How well a clustering agrees with who is who: pairwise and BCubed. Imports numpy only.

Both count from the contingency table of true against found labels, in time linear in the
number of occupied cells: no pair is ever formed. Integers are exact.

Pairwise: of the pairs put together, the share that belongs together (precision); of the pairs
that belong together, the share put together (recall). A person with many photos weighs by
their square. BCubed (Bagga & Baldwin 1998; Amigo 2009): the same two shares for each item, the
item itself counted, averaged over the items: every photo weighs the same, and single ones count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Agreement:
    """precision, recall: in [0, 1]; 1 where there is nothing that could be wrong or missed."""

    precision: float
    recall: float

    @property
    def f(self) -> float:
        """Their harmonic mean; 0 where both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def pairwise(true: ArrayLike, found: ArrayLike) -> Agreement:
    """Pairwise agreement of ``found`` (n,) with ``true`` (n,), integer labels in any numbering.

    Raises ValueError for labels that are no integers, of different length, or none.
    """
    cells = _contingency(true, found)
    together = _pairs(cells.both)
    return Agreement(
        _share(together, _pairs(np.bincount(cells.found, cells.both).astype(np.int64))),
        _share(together, _pairs(np.bincount(cells.true, cells.both).astype(np.int64))),
    )


def bcubed(true: ArrayLike, found: ArrayLike) -> Agreement:
    """BCubed agreement of ``found`` (n,) with ``true`` (n,); arguments as :func:`pairwise`."""
    cells = _contingency(true, found)
    of_found = np.bincount(cells.found, cells.both)[cells.found]
    of_true = np.bincount(cells.true, cells.both)[cells.true]
    n, squares = cells.both.sum(), cells.both.astype(np.float64) ** 2
    # Each of a cell's items has this share of its cluster, or of its person, in the cell.
    return Agreement(
        min(1.0, float((squares / of_found).sum() / n)),
        min(1.0, float((squares / of_true).sum() / n)),
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """Occupied cells of the contingency table: (m,) row, (m,) column, (m,) items of both."""

    true: NDArray[np.intp]
    found: NDArray[np.intp]
    both: NDArray[np.int64]


def _contingency(true: ArrayLike, found: ArrayLike) -> _Cells:
    a, b = np.asarray(true), np.asarray(found)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two lists of labels of one length, got {a.shape}, {b.shape}")
    if not len(a):
        raise ValueError("no labels")
    for name, labels in (("true", a), ("found", b)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name}: labels are integers, got {labels.dtype}")
    rows = np.unique(a, return_inverse=True)[1].astype(np.int64)
    columns, names = np.unique(b, return_inverse=True)[1], np.unique(b)
    codes, both = np.unique(rows * len(names) + columns, return_counts=True)
    return _Cells(*np.divmod(codes, len(names)), both.astype(np.int64))


def _pairs(counts: NDArray[np.int64]) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
