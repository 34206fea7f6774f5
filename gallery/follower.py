"""The index in Milvus: at the store's revision before every answer, for any number of processes.

It stands where :class:`gallery.live.LiveIndex` does in other galleries. Next to nothing
is kept in this process: Milvus names candidates, and the store says whose they are and how
similar. So what Milvus has too much does no harm, and what it lacks is seen
by the revision that its collection is marked with. Whoever notices that it is behind brings
it up, one process at a time. Imports the core, numpy, and this package's store, lookups,
people and milvus.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from facerec.errors import GalleryError
from facerec.types import FloatArray
from gallery.index import IdArray, cosine
from gallery.lookups import Lookups
from gallery.milvus import (
    MAX_WIDTH,
    SETTLED_S,
    CollectionGone,
    Mark,
    MilvusCollection,
    type_of,
)
from gallery.people import Hit
from gallery.postgres import PostgresDatabase
from gallery.records import ReadTransaction, VectorBatch
from gallery.store import Store

_log = logging.getLogger(__name__)

_FIRST_WIDTH = 32
_FILL = 4096
"""Templates that are read, sent and marked at a time while a collection is filled."""
_COUNT_ALWAYS = 20_000
"""People of a gallery that are counted after every change; of a larger one they are once a
share of _COUNT_TOLERANCE may have come or gone: error rates depend on it no more than that."""
_COUNT_TOLERANCE = 1e-3
_REPORT_S = 10.0
_UNKNOWN = -1


@dataclass(eq=False)
class MilvusState:
    """What answers, the revision it has at least, and people's names (filled when asked)."""

    people: MilvusPeople
    revision: int
    names: dict[int, str] = field(default_factory=dict)


class MilvusIndex:
    """Keeps a collection of Milvus equal to the store's people. kind: of index.

    Raises GalleryError where Milvus does not answer.
    """

    def __init__(self, store: Store, kind: str) -> None:
        assert isinstance(store.database, PostgresDatabase) and store.location.milvus is not None
        self._store = store
        self._database = store.database
        self._timeout_s = store.location.timeout_s
        family = f"facerec_{store.uuid}_"
        self._collection = MilvusCollection(
            store.location.milvus,
            f"{family}{store.generation}",
            store.dim,
            kind,
            self._timeout_s,
        )
        self._one_update = threading.Lock()
        self._state = MilvusState(MilvusPeople(self, self._collection, 0), _UNKNOWN)
        try:
            if not store.read_only:
                # Of a model that does not answer any more: nobody would remove people from those.
                self._collection.drop_others(family)
            self._collection.attach()
            self.refresh()
        except BaseException:
            self._collection.close()
            raise

    @property
    def kind(self) -> str:
        """Of the index that answers."""
        return f"Milvus {self._collection.kind}"

    @contextmanager
    def searching(self) -> Iterator[MilvusState]:
        """The state as of a moment after the call."""
        self.refresh()
        yield self._state

    def refresh(self) -> None:
        """See to it that Milvus has what the store has now."""
        revision = self._store.revision()
        if revision != self._state.revision:
            with self._one_update:
                if self._state.revision < revision or self._state.revision > self._store.revision():
                    self._follow(revision)

    @property
    def residue(self) -> str:
        """What a removal leaves that is not in our power."""
        return (
            f"{self._collection.address}: the vectors are deleted in Milvus, and no search finds "
            "them; their bytes leave its files when it next compacts them, which it does by itself"
        )

    def require(self) -> None:
        """Before a change: it would be committed, and then not answered with, if Milvus is away.

        Raises GalleryError where that does not answer; nothing is changed then.
        """
        self._collection.ping()

    def save_if_due(self) -> None:
        """Milvus saves for itself."""

    def erase_copy(self) -> None:
        """There is no file; the collection follows a removal before that returns."""

    def want(self, kind: str) -> None:
        """Of which type the collection is to be when it is made anew."""
        self._collection.wanted = type_of(kind)

    def rebuild(self) -> None:
        """Make the collection anew, with an index of the kind asked for."""
        with self._one_update:
            with self._alone() as mine:
                if mine:
                    self._collection.drop()
            with self._store.writing() as change:
                change.touch()  # so that other processes look what has become of it
            self._follow(self._store.revision())

    def check(self) -> None:
        """Rebuild the collection unless it holds just the store's templates."""
        if self._store.read_only:
            return
        with self._one_update, self._alone() as mine:
            if not mine:
                return  # another process is at it
            mark = self._bring_up(self._store.revision())
            with self._store.reading() as view:
                self._catch_up(view, mark)
                if self._holds_all_of(view):
                    return
            _log.warning("%s: the index in Milvus differed; rebuilt", self._store.name)
            self._collection.drop()
            self._bring_up(self._store.revision())

    def _holds_all_of(self, view: ReadTransaction) -> bool:
        total = 0
        for batch in view.vectors_since(0):
            total += len(batch.ids)
            if not _equal(batch, self._collection.rows(batch.ids)):
                return False
        return total == len(self._collection)

    def close(self) -> None:
        self._collection.close()

    # For MilvusPeople

    def reattach(self) -> None:
        """After Milvus lost the collection, or came back without having it ready."""
        with self._one_update:
            self._state = MilvusState(self._state.people, _UNKNOWN)
            self._collection.attach()
        self.refresh()

    @contextmanager
    def lookups(self) -> Iterator[Lookups]:
        with self._store.reading() as view:
            yield Lookups(view)

    # Following

    def _follow(self, revision: int) -> None:
        """Return once the collection has all of ``revision``, by whomever."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            if not self._store.read_only:
                with self._alone() as mine:
                    if mine:
                        mark = self._bring_up(revision)
                        break
            found = self._collection.mark()
            if found is not None and self._has(revision, found):
                mark = found
                break
            if time.monotonic() > deadline:
                raise GalleryError(
                    f"{self._collection.address}: Milvus has not got all of this gallery's vectors "
                    "yet: another process, one that may write the gallery, has to bring it up. "
                    "The database is unharmed; try again later."
                )
            time.sleep(0.02)
        self._collection.look_at_index()
        people = MilvusPeople(self, self._collection, mark.people)
        self._state = MilvusState(people, revision)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        with self._database.alone(self._collection.name) as mine:
            yield mine

    def _has(self, revision: int, mark: Mark) -> bool:
        if not mark.done or mark.revision < revision:
            return False
        if self._store.read_only:
            return True  # a standby may be behind Milvus, and has no say in what is there
        # Ahead of what the store ever was: the store went back, and the collection is wrong.
        return mark.revision == revision or mark.revision <= self._store.revision()

    def _bring_up(self, revision: int) -> Mark:
        """To ``revision`` at least, or start anew. Of all processes, one at a time is here."""
        mark = self._collection.mark()
        if mark is not None and self._has(revision, mark):
            return mark
        with self._store.reading() as view:
            current = mark is not None and 0 < mark.revision <= view.revision()
            if mark is None or not current or not view.remembers(mark.revision):
                self._collection.create()
                mark = Mark(view.revision(), 0)
                self._collection.set_mark(mark)
        if not mark.done:
            mark = self._fill(mark)
        with self._store.reading() as view:
            return self._catch_up(view, mark)

    def _fill(self, mark: Mark) -> Mark:
        """From where it was left, in the order of ids; what changes meanwhile is caught up with."""
        began = told = time.monotonic()
        position, count = mark.position, 0
        while True:
            with self.lookups() as store:
                batch = store.after(position, _FILL)
            if not len(batch.ids):
                break
            self._collection.put(batch)
            position, count = int(batch.ids[-1]), count + len(batch.ids)
            self._collection.set_mark(Mark(mark.revision, position))
            if time.monotonic() - told > _REPORT_S:
                told = time.monotonic()
                _log.warning("%s: %s vectors sent to Milvus, %.0f a second",
                             self._store.name, f"{count:,}", count / (told - began))  # fmt: skip
        self._collection.settle(now=True)
        with self.lookups() as store:
            filled = Mark(mark.revision, people=store.count_people(), counted=mark.revision)
        self._collection.set_mark(filled)
        return filled

    def _catch_up(self, view: ReadTransaction, mark: Mark) -> Mark:
        revision, since = view.revision(), mark.revision
        if revision == since:
            return mark
        gone = [view.removed_since(since), view.left_since(since, named=True)]
        self._collection.remove(np.concatenate(gone))
        for batch in view.vectors_since(since):
            self._collection.put(batch)
        self._collection.settle()
        reached = self._counted(view, Mark(revision, people=mark.people, counted=mark.counted))
        self._collection.set_mark(reached)
        return reached

    def _counted(self, view: ReadTransaction, mark: Mark) -> Mark:
        """With its people counted, unless that is long and cannot matter."""
        store = Lookups(view)
        few = mark.people < _COUNT_ALWAYS or not view.remembers(mark.counted)
        if few or store.count_changes(mark.counted) > _COUNT_TOLERANCE * mark.people:
            return replace(mark, people=store.count_people(), counted=mark.revision)
        return mark


class MilvusPeople:
    """What :class:`gallery.people.PeopleIndex` is elsewhere: the k most similar people."""

    def __init__(self, owner: MilvusIndex, collection: MilvusCollection, people: int) -> None:
        self._owner = owner
        self._collection = collection
        self._made_at = time.monotonic()
        self.people = people
        """With at least one template; of many, give or take a thousandth."""

    @property
    def _strong(self) -> bool:
        """Whether the last change, which was seen before this was made, may yet be missed."""
        return time.monotonic() - self._made_at < SETTLED_S

    def best_of(self, identity_id: int, probe: FloatArray) -> Hit | None:
        """The person's template most similar to a (d,) probe; None if they have none."""
        with self._owner.lookups() as store:
            return _best(store.of_identity(identity_id), probe)

    def nearest(self, probes: FloatArray, k: int) -> list[list[Hit]]:
        """As :meth:`gallery.people.PeopleIndex.nearest`: exact where the collection is."""
        try:
            return self._nearest(probes, k)
        except CollectionGone:
            self._owner.reattach()
            return self._nearest(probes, k)

    def _nearest(self, probes: FloatArray, k: int) -> list[list[Hit]]:
        found: list[list[Hit]] = [[] for _ in probes]
        width = min(MAX_WIDTH, max(4 * k, _FIRST_WIDTH))
        pending: NDArray[np.intp] = np.arange(len(probes))
        while len(pending):
            undecided = []
            rows = self._collection.search(probes[pending], width, strong=self._strong)
            stored = self._stored(rows)
            for probe, (ids, similarities) in zip(pending, rows, strict=True):
                whole = len(ids) < width
                floor = -2.0 if whole else float(similarities[-1])
                hits = self._people(stored, ids, probes[probe], floor)
                if len(hits) >= k or whole:
                    found[probe] = hits[:k]
                elif width == MAX_WIDTH:
                    found[probe] = self._one_by_one(probes[probe], k)
                else:
                    undecided.append(probe)
            pending = np.array(undecided, dtype=np.intp)
            width = min(MAX_WIDTH, 4 * width)
        return found

    def _stored(self, rows: list[tuple[IdArray, FloatArray]]) -> VectorBatch:
        wanted = np.unique(np.concatenate([ids for ids, _ in rows]))
        with self._owner.lookups() as store:
            return store.of_templates(wanted.tolist())

    def _people(
        self, stored: VectorBatch, ids: IdArray, probe: FloatArray, floor: float
    ) -> list[Hit]:
        """The people among templates ``ids`` whose rank is certain.

        Whatever the search left out scores at most ``floor``, give or take its tolerance.
        """
        at = np.flatnonzero(np.isin(stored.ids, ids))
        scores = cosine(stored.vectors[at], probe)
        if self._collection.exact:
            certain = scores > floor + self._collection.tolerance
            at, scores = at[certain], scores[certain]
        order = np.lexsort((stored.ids[at], -scores))
        at, scores = at[order], scores[order]
        first = np.sort(np.unique(stored.owners[at], return_index=True)[1])
        return [
            Hit(int(stored.owners[at[i]]), float(scores[i]), int(stored.ids[at[i]])) for i in first
        ]

    def _one_by_one(self, probe: FloatArray, k: int) -> list[Hit]:
        """For people with so many templates that they fill a search: ask for the others' then."""
        best: dict[int, Hit] = {}
        while True:
            [(ids, similarities)] = self._collection.search(
                probe[None], MAX_WIDTH, strong=self._strong, without=list(best)
            )
            with self._owner.lookups() as store:
                owners = np.unique(store.of_templates(ids.tolist()).owners).tolist()
                new = {o: hit for o in owners if (hit := _best(store.of_identity(o), probe))}
            fresh = new.keys() - best.keys()
            best |= new
            ranked = sorted(best.values(), key=lambda hit: (-hit.similarity, hit.template_id))
            floor = float(similarities[-1]) if len(ids) == MAX_WIDTH else -2.0
            enough = len(ranked) >= k and ranked[k - 1].similarity > floor
            if enough or not fresh or floor == -2.0:
                return ranked[:k]


def _best(batch: VectorBatch, probe: FloatArray) -> Hit | None:
    if not len(batch.ids):
        return None
    scores = cosine(batch.vectors, probe)
    best = int(np.argmax(scores))  # the first of equals, and ids ascend
    return Hit(int(batch.owners[best]), float(scores[best]), int(batch.ids[best]))


def _equal(ours: VectorBatch, theirs: VectorBatch) -> bool:
    return (
        np.array_equal(ours.ids, theirs.ids)
        and np.array_equal(ours.owners, theirs.owners)
        and np.array_equal(ours.vectors, theirs.vectors)
    )
