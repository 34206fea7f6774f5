"""The live index: in memory, at the store's revision before every answer.

Sees to it that a search meets no half-made change, that other processes' writes are
caught up, and that a copy on disk is never older than a removal. Imports the core,
numpy, and this package's store, people and indexfile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from facerec.errors import GalleryError
from facerec.types import EmbeddingContract
from gallery import indexfile
from gallery.index import VectorIndex
from gallery.locks import SharedLock
from gallery.people import PeopleIndex
from gallery.records import ReadTransaction
from gallery.store import Store

_log = logging.getLogger(__name__)

IndexFactory = Callable[[int], VectorIndex]
"""Makes an empty index for vectors of a given length."""

_UNKNOWN = -1
_SAVE_AFTER = 4096
"""Changed templates, after which the copy on disk is renewed without waiting for close."""
_CHEAP = 20_000
"""Templates of a gallery whose copy is renewed at every close; a larger one's, if a tenth of
it has changed: reading a few changes from the store is faster than writing gigabytes."""


@dataclass(eq=False)
class State:
    """The index, the revision it stands for, and people's names as of then (filled when asked)."""

    people: PeopleIndex
    revision: int
    names: dict[int, str] = field(default_factory=dict)


class LiveIndex:
    """Keeps a :class:`PeopleIndex` equal to the store."""

    def __init__(self, store: Store, contract: EmbeddingContract, new_index: IndexFactory) -> None:
        self._store = store
        self._contract_id = contract.contract_id
        self._new_index = new_index
        self._path = store.db.with_name(indexfile.INDEX_NAME)
        self._lock = SharedLock()
        self._one_update = threading.Lock()
        self._saved_revision = _UNKNOWN
        self._unsaved = 0  # templates changed since the copy on disk
        self._state = State(PeopleIndex(new_index(store.dim)), 0)
        with self._one_update:
            self._start()

    @contextmanager
    def searching(self) -> Iterator[State]:
        """The state as of a moment after the call; nothing changes it meanwhile."""
        self.refresh()
        with self._lock.shared():
            yield self._state

    def refresh(self) -> None:
        """Catch up with the store."""
        if self._store.revision() != self._state.revision:
            with self._one_update, self._store.reading() as view:
                self._catch_up(view)

    def save_if_due(self) -> None:
        """Renew the copy on disk after many changes. For writers: it waits for the write lock."""
        with self._one_update:
            if self._unsaved >= max(_SAVE_AFTER, len(self._state.people) // 4):
                self._save()

    def erase_copy(self) -> None:
        """Remove the copy on disk. Call within a write: then no other process can renew it."""
        try:
            indexfile.erase(self._path)
        except OSError as exc:
            raise GalleryError(
                f"{self._path}: cannot be removed ({exc.strerror or exc}). "
                "The gallery is unchanged."
            ) from exc
        self._saved_revision = _UNKNOWN

    def check(self) -> None:
        """Rebuild the index unless it holds just the store's templates, owners and vectors."""
        with self._one_update:
            with self._store.reading() as view:
                self._catch_up(view)
                fresh = PeopleIndex(self._new_index(self._store.dim))
                for batch in view.vectors_since(0):
                    fresh.put(batch.ids, batch.owners, batch.vectors)
            for right, ours in zip(fresh.rows, self._state.people.rows, strict=True):
                if not np.array_equal(np.asarray(right), np.asarray(ours)):
                    break
            else:
                return
            _log.warning("%s: the index differed from the store; rebuilt", self._store.db)
            with self._lock.alone():
                self._state = State(fresh, self._state.revision)

    def close(self) -> None:
        """Renew the copy on disk, if it is out of date and that is worth the time."""
        with self._one_update:
            count = len(self._state.people)
            missing = self._saved_revision == _UNKNOWN
            worth_it = missing or count <= _CHEAP or self._unsaved >= count // 10
            if worth_it and self._saved_revision != self._state.revision:
                self._save()

    def _start(self) -> None:
        """From the copy on disk if it can be used, and up to the store's revision."""
        file = indexfile.read(self._path)
        with self._store.reading() as view:
            usable = file is not None and self._is_of_this_past(file.header, view.revision())
            if file is not None and usable:
                self._state.people.put(file.ids, file.owners, file.vectors)
                self._state.revision = self._saved_revision = file.header.revision
            self._catch_up(view)
            if len(self._state.people) != view.count_vectors(named=True):
                usable, self._state.revision = False, _UNKNOWN
                self._catch_up(view)
        if not usable and self._path.exists():
            # It must not come to look right once the store has reached its revision.
            self._saved_revision = _UNKNOWN
            self._save()

    def _is_of_this_past(self, header: indexfile.Header, revision: int) -> bool:
        return (
            header.gallery_uuid == self._store.uuid
            and header.contract_id == self._contract_id
            and header.dim == self._store.dim
            and header.revision <= revision
        )

    def _catch_up(self, view: ReadTransaction) -> None:
        revision, since = view.revision(), self._state.revision
        if revision == since:
            return
        if not 0 < since <= revision:  # nothing yet, or what we have cannot be relied on
            self._rebuild(view, revision)
            return
        removed = np.concatenate([view.removed_since(since), view.left_since(since, named=True)])
        changes = list(view.vectors_since(since))
        with self._lock.alone():
            people = self._state.people
            # Should Ctrl-C cut this short, no revision is right, and the next call rebuilds.
            self._state = State(people, _UNKNOWN)
            people.remove(removed)
            for batch in changes:
                people.put(batch.ids, batch.owners, batch.vectors)
            self._state = State(people, revision)
        self._unsaved += len(removed) + sum(len(batch.ids) for batch in changes)

    def _rebuild(self, view: ReadTransaction, revision: int) -> None:
        people = PeopleIndex(self._new_index(self._store.dim))
        for batch in view.vectors_since(0):
            people.put(batch.ids, batch.owners, batch.vectors)
        with self._lock.alone():
            self._state = State(people, revision)
        self._unsaved += len(people)

    def _save(self) -> None:
        """Write the copy, unless the store has moved on; it is disposable, so only log failures."""
        if self._store.read_only:
            return
        try:
            with self._store.writing() as view:
                # Under the write lock nobody can remove a person between check and rename.
                if view.revision() != self._state.revision:
                    return
                with self._lock.shared():
                    ids, owners, vectors = self._state.people.rows
                header = indexfile.Header(
                    gallery_uuid=self._store.uuid,
                    contract_id=self._contract_id,
                    revision=self._state.revision,
                    count=len(ids),
                    dim=self._store.dim,
                )
                indexfile.write(self._path, header, ids, owners, vectors)
                self._saved_revision, self._unsaved = self._state.revision, 0
        except (OSError, GalleryError) as exc:
            _log.warning("%s: not renewed, opening will take longer: %s", self._path, exc)
