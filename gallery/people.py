"""Search by person: the k most similar people, not templates, and exactly those.

Puts the knowledge of whose a template is on top of a :class:`VectorIndex`. Imports
the core, numpy, and this package's index.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facerec.types import FloatArray
from gallery.index import IdArray, VectorIndex, cosine

_FIRST_WIDTH = 32
_SCORES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Hit:
    """A person, by their template most similar to the probe; of equals the oldest."""

    identity_id: int
    similarity: float
    template_id: int


class PeopleIndex:
    """Templates, whose they are, and their vectors. Not safe against a search during a change."""

    def __init__(self, index: VectorIndex) -> None:
        self._index = index
        self._ids: IdArray = np.empty(0, np.int64)  # ascending
        self._owners: IdArray = np.empty(0, np.int64)
        self._templates_of: Counter[int] = Counter()

    def __len__(self) -> int:
        """Templates."""
        return len(self._ids)

    @property
    def people(self) -> int:
        """People with at least one template."""
        return len(self._templates_of)

    @property
    def rows(self) -> tuple[IdArray, IdArray, FloatArray]:
        """All of it: (n,) ids ascending, (n,) owners, (n, d) vectors."""
        return self._ids, self._owners, self._index.vectors(self._ids)

    def put(self, ids: IdArray, owners: IdArray, vectors: FloatArray) -> None:
        """Add (n,) templates, ids ascending, or change the owner of those that are there."""
        known, at = self._find(ids)
        self._count(self._owners[at], -1)
        self._count(owners, +1)
        self._owners[at] = owners[known]
        new_ids, new_owners = ids[~known], owners[~known]
        self._index.add(new_ids, vectors[~known] if known.any() else vectors)
        places = np.searchsorted(self._ids, new_ids)
        self._ids = np.insert(self._ids, places, new_ids)
        self._owners = np.insert(self._owners, places, new_owners)

    def remove(self, ids: IdArray) -> None:
        """Remove those of the (n,) templates that are there."""
        _, at = self._find(ids)
        if len(at):
            self._count(self._owners[at], -1)
            self._index.remove(self._ids[at])
            self._ids, self._owners = np.delete(self._ids, at), np.delete(self._owners, at)

    def best_of(self, identity_id: int, probe: FloatArray) -> Hit | None:
        """The person's template most similar to a (d,) probe; None if they have none."""
        ids = self._ids[self._owners == identity_id]
        if not len(ids):
            return None
        scores = cosine(self._index.vectors(ids), probe)
        best = int(np.argmax(scores))  # the first of equals, and ids ascend
        return Hit(identity_id, float(scores[best]), int(ids[best]))

    def nearest(self, probes: FloatArray, k: int) -> list[list[Hit]]:
        """For each of (N, d) probes the k most similar people, or all if there are fewer.

        Most similar first, of equals the one with the older template. Exact, however
        many templates a person has: the search widens until k people are certain.
        """
        found: list[list[Hit]] = [[] for _ in probes]
        width = min(len(self), max(4 * k, _FIRST_WIDTH))
        pending: NDArray[np.intp] = np.arange(len(probes) if width else 0)
        while len(pending):
            undecided = []
            step = max(1, _SCORES_AT_ONCE // width)
            for start in range(0, len(pending), step):
                block = pending[start : start + step]
                similarities, ids = self._index.search(probes[block], width)
                for probe, tail, row in zip(block, similarities[:, -1], ids, strict=True):
                    hits = self._best_people(probes[probe], float(tail), row)
                    if len(hits) < k and width < len(self):
                        undecided.append(probe)
                    else:
                        found[probe] = hits[:k]
            pending = np.array(undecided, dtype=np.intp)
            width = min(len(self), 4 * width)
        return found

    def _best_people(self, probe: FloatArray, tail: float, ids: IdArray) -> list[Hit]:
        """The people among the nearest templates ``ids`` whose rank is certain.

        Whatever the index left out scores at most ``tail``, give or take its tolerance;
        so people above that are in their final order, and none is missing between them.
        """
        scores = cosine(self._index.vectors(ids), probe)
        if len(ids) < len(self):
            certain = scores > tail + self._index.tolerance
            scores, ids = scores[certain], ids[certain]
        order = np.lexsort((ids, -scores))
        scores, ids = scores[order], ids[order]
        owners = self._owners[np.searchsorted(self._ids, ids)]
        first = np.sort(np.unique(owners, return_index=True)[1])
        return [Hit(int(owners[i]), float(scores[i]), int(ids[i])) for i in first]

    def _find(self, ids: IdArray) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Which of ``ids`` are here, and the rows of those."""
        at = np.searchsorted(self._ids, ids)
        known = np.zeros(len(ids), bool)
        inside = at < len(self._ids)
        known[inside] = self._ids[at[inside]] == ids[inside]
        return known, at[known]

    def _count(self, owners: IdArray, sign: int) -> None:
        for owner, n in zip(*np.unique(owners, return_counts=True), strict=True):
            self._templates_of[int(owner)] += sign * int(n)
            if not self._templates_of[int(owner)]:
                del self._templates_of[int(owner)]
