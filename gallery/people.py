"""Search by person: the k most similar people, not templates, and exactly those.

Puts the knowledge of whose a template is on top of a :class:`VectorIndex`. Imports
the core, numpy, and this package's index.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facerec.types import FloatArray
from gallery.index import IdArray, VectorIndex, cosine

_FIRST_WIDTH = 32
_FIRST_WIDTH_COARSE = 256
"""Of an index whose similarities are coarse: more candidates make it likelier that they suffice."""
_COARSE = 1e-3
_SCORES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Hit:
    """A person, by their template most similar to the probe; of equals the oldest."""

    identity_id: int
    similarity: float
    template_id: int


class PeopleIndex:
    """Templates, whose they are, and their vectors. Not safe against a search during a change."""

    def __init__(
        self, index: VectorIndex, ids: IdArray | None = None, owners: IdArray | None = None
    ) -> None:
        """ids, owners: (n,) of what ``index`` holds already, ids ascending."""
        self._index = index
        self._ids = np.empty(0, np.int64) if ids is None else ids
        self._owners = np.empty(0, np.int64) if owners is None else owners
        self._people: IdArray | None = None  # ascending, those with a template; None: not known

    def __len__(self) -> int:
        """Templates."""
        return len(self._ids)

    @property
    def index(self) -> VectorIndex:
        """What is searched."""
        return self._index

    @property
    def people(self) -> int:
        """People with at least one template."""
        if self._people is None:
            self._people = np.unique(self._owners)
        return len(self._people)

    def fork(self) -> PeopleIndex:
        """As :meth:`gallery.index.VectorIndex.fork`."""
        _ = self.people  # known once, every fork only has to note what changes
        forked = copy.copy(self)
        forked._index = self._index.fork()
        return forked

    @property
    def rows(self) -> tuple[IdArray, IdArray, FloatArray]:
        """All of it: (n,) ids ascending, (n,) owners, (n, d) vectors."""
        return self._ids, self._owners, self._index.vectors(self._ids)

    @property
    def owners(self) -> tuple[IdArray, IdArray]:
        """(n,) ids ascending, and (n,) owners, as of now."""
        return self._ids, self._owners

    def put(self, ids: IdArray, owners: IdArray, vectors: FloatArray) -> None:
        """Add (n,) templates, ids ascending, or change the owner of those that are there."""
        known, at = self._find(ids)
        former, present = self._owners[at], owners
        if known.any():
            self._owners = self._owners.copy()  # whoever reads the old one, reads on
            self._owners[at] = owners[known]
            ids, owners, vectors = ids[~known], owners[~known], vectors[~known]
        self._index.add(ids, vectors)
        places = np.searchsorted(self._ids, ids)
        self._ids = np.insert(self._ids, places, ids)
        self._owners = np.insert(self._owners, places, owners)
        self._note_people(present, former)

    def remove(self, ids: IdArray) -> None:
        """Remove those of the (n,) templates that are there."""
        _, at = self._find(np.unique(ids))
        if len(at):
            former = self._owners[at]
            self._index.remove(self._ids[at])
            self._ids, self._owners = np.delete(self._ids, at), np.delete(self._owners, at)
            self._note_people(former[:0], former)

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

        Most similar first, of equals the one with the older template. Exact where the index
        is, however many templates a person has: the search widens until k people are certain.
        """
        found: list[list[Hit]] = [[] for _ in probes]
        tolerances = self._index.tolerances(probes)
        coarse = self._index.exact and bool((tolerances > _COARSE).any())
        width = max(4 * k, _FIRST_WIDTH_COARSE if coarse else _FIRST_WIDTH)
        width = min(len(self), width)
        pending: NDArray[np.intp] = np.arange(len(probes) if width else 0)
        while len(pending):
            undecided = []
            step = max(1, _SCORES_AT_ONCE // width)
            for start in range(0, len(pending), step):
                block = pending[start : start + step]
                similarities, ids = self._index.search(probes[block], width)
                for probe, similar, row in zip(block, similarities, ids, strict=True):
                    hits = self._best_people(probes[probe], similar, row, tolerances[probe], k)
                    if len(hits) < k and width < len(self) and row[-1] >= 0:
                        undecided.append(probe)
                    else:
                        found[probe] = hits
            pending = np.array(undecided, dtype=np.intp)
            width = min(len(self), 4 * width)
        return found

    def _best_people(
        self, probe: FloatArray, similar: FloatArray, ids: IdArray, tolerance: float, k: int
    ) -> list[Hit]:
        """The people among the nearest templates ``ids`` whose rank is certain.

        similar: what the index says of each, within ``tolerance``. Whatever it left out scores
        at most the last of them and the tolerance; so people above that are in their final
        order, and none is missing between them.
        """
        floor = -math.inf
        if len(ids) < len(self) and self._index.exact:
            floor = float(similar[-1]) + tolerance
        ids = ids[ids >= 0]
        hits, enough = self._scored(probe, ids[: 4 * k + _FIRST_WIDTH], floor, k), -math.inf
        if len(hits) == k:
            enough = hits[-1].similarity
        # Of the others, those that cannot reach the k-th person need no exact score.
        more = int(np.searchsorted(-similar[: len(ids)], tolerance - enough, side="right"))
        if more > 4 * k + _FIRST_WIDTH:
            hits = self._scored(probe, ids[:more], floor, k)
        return hits

    def _scored(self, probe: FloatArray, ids: IdArray, floor: float, k: int) -> list[Hit]:
        """The k best owners of ``ids``, each by their best template above ``floor``."""
        scores = cosine(self._index.vectors(ids), probe)
        above = scores > floor
        scores, ids = scores[above], ids[above]
        order = np.lexsort((ids, -scores))
        scores, ids = scores[order], ids[order]
        owners = self._owners[np.searchsorted(self._ids, ids)]
        hits: dict[int, Hit] = {}
        for owner, score, template_id in zip(owners.tolist(), scores.tolist(), ids.tolist(),
                                             strict=True):  # fmt: skip
            if owner not in hits:
                hits[owner] = Hit(owner, score, template_id)
                if len(hits) == k:
                    break
        return list(hits.values())

    def _find(self, ids: IdArray) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Which of ``ids`` are here, and the rows of those."""
        at = np.searchsorted(self._ids, ids)
        known = np.zeros(len(ids), bool)
        inside = at < len(self._ids)
        known[inside] = self._ids[at[inside]] == ids[inside]
        return known, at[known]

    def _note_people(self, present: IdArray, former: IdArray) -> None:
        """After a change: ``present`` own templates, ``former`` have lost some."""
        if self._people is None:
            return
        new = np.unique(present[~np.isin(present, self._people)])
        people = np.insert(self._people, np.searchsorted(self._people, new), new)
        if len(former):
            gone = np.unique(former[~np.isin(former, self._owners)])
            people = np.delete(people, np.searchsorted(people, gone))
        self._people = people
