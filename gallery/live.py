"""The live index: in memory, at the store's revision before every answer.

Sees to it that a search meets no half-made change, that other processes' writes are
caught up, and that a copy on disk is never older than a removal. Imports the core,
numpy, and this package's store, people, index, engines and indexfile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from facerec.errors import ContractMismatch, FacerecError, GalleryError
from facerec.types import EmbeddingContract, FloatArray
from gallery import indexfile
from gallery.cuda import CudaEngine, require_cuda
from gallery.engines import Engine, FlatEngine, choose_kind, make_engine
from gallery.index import IdArray, TableIndex, VectorIndex
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
it has changed: reading a few changes from the store is faster than writing gigabytes. A larger
one's is renewed by a thread of its own."""
_PIECE = 1 << 15
_SLOW = ("hnsw", "ivf")
"""Types that take minutes to build: by the thread, or by :meth:`LiveIndex.rebuild`."""
_SETTLED_S = 60.0
"""After so long a process is no command that is over soon, and builds such an index if missing."""


@dataclass(frozen=True)
class IndexOptions:
    """kind: "auto", one of gallery.engines.KINDS, or None for what the gallery says.

    device: "cpu" or "cuda".
    """

    kind: str | None = None
    device: str = "cpu"
    factory: IndexFactory | None = None
    """Of another index, in memory only."""

    def check(self) -> None:
        """Raises ConfigError for a kind that is not known, GalleryError for no CUDA."""
        choose_kind(self.kind or "auto", 0)
        if self.device == "cuda":
            require_cuda()


@dataclass(eq=False)
class State:
    """The index, the revision it stands for, and people's names as of then (filled when asked)."""

    people: PeopleIndex
    revision: int
    names: dict[int, str] = field(default_factory=dict)


class LiveIndex:
    """Keeps a :class:`PeopleIndex` equal to the store: of people, or of those without a name."""

    def __init__(
        self, store: Store, contract: EmbeddingContract, options: IndexOptions, *, named: bool
    ) -> None:
        self._store = store
        self._contract_id = contract.contract_id
        self.options = options
        self._named = named
        folder = store.location.folder
        self._path = None if folder is None else folder / indexfile.name_of(named)
        self._where = self._path or store.gallery
        self._lock = SharedLock()
        self._one_update = threading.Lock()
        self._renewal: threading.Thread | None = None
        self._closing = threading.Event()
        self._saved_revision = _UNKNOWN
        self._unsaved = 0  # templates changed since the copy on disk
        self._build_at = time.monotonic() + _SETTLED_S
        self._state = State(self._empty(), 0)
        with self._one_update:
            self._start()

    @property
    def kind(self) -> str:
        """Of the index that answers."""
        index = self._state.people.index
        return index.kind if isinstance(index, TableIndex) else type(index).__name__

    @contextmanager
    def searching(self) -> Iterator[State]:
        """The state as of a moment after the call; nothing changes it meanwhile.

        A removal waits for those that search, an addition makes another state of it.
        """
        self.refresh()
        with self._lock.shared():
            yield self._state

    def refresh(self) -> None:
        """Catch up with the store."""
        self._build_if_missing()
        revision = self._store.revision()
        if revision == self._state.revision:
            return
        with self._one_update:
            ours = self._state.revision
            # Else another thread was here meanwhile. A server's failover can take a store back.
            if ours < revision or ours > self._store.revision():
                with self._store.reading() as view:
                    self._catch_up(view)

    def save_if_due(self) -> None:
        """Renew the copy on disk after many changes; of many templates in the background."""
        count = len(self._state.people)
        if self._unsaved < max(_SAVE_AFTER, count // 4):
            return
        if count <= _CHEAP:
            with self._one_update:
                self._renew()
        else:
            self._renew_in_background()

    def _build_if_missing(self) -> None:
        """An index that takes minutes: what it was made of was removed, or it was never here."""
        if self.options.kind not in _SLOW or self.kind == self.options.kind:
            return
        if time.monotonic() >= self._build_at and len(self._state.people):
            self._build_at = time.monotonic() + _SETTLED_S
            self._renew_in_background()

    def _renew_in_background(self) -> None:
        """By a thread of its own, unless there is one at it already."""
        if self._renewal is None or not self._renewal.is_alive():
            self._renewal = threading.Thread(
                target=self._renew_quietly, name="facerec-index", daemon=True
            )
            self._renewal.start()

    def wait(self) -> None:
        """Until the thread that renews the copy, if there is one, has come to its end."""
        if self._renewal is not None:
            self._renewal.join()

    def renew_now(self) -> None:
        """As the thread does it, in this one."""
        self._renew(locked=False)

    def rebuild(self) -> None:
        """Make the copy on disk anew, with an index of the kind asked for, and use that."""
        self.refresh()
        with self._one_update:
            self._renew(must=True)

    def erase_copy(self) -> None:
        """Remove the copy on disk. Call within a write: then no other process can renew it."""
        if self._path is not None:
            indexfile.erase(self._path)
        self._saved_revision = _UNKNOWN

    def check(self) -> None:
        """Read it anew from the store unless it holds just the same templates, owners, vectors."""
        with self._one_update:
            with self._store.reading() as view:
                self._catch_up(view)
                fresh = self._empty()
                for batch in view.vectors_since(0, named=self._named):
                    fresh.put(batch.ids, batch.owners, batch.vectors)
            for right, ours in zip(fresh.rows, self._state.people.rows, strict=True):
                if not np.array_equal(np.asarray(right), np.asarray(ours)):
                    break
            else:
                return
            _log.warning("%s: the index differed from the store; rebuilt", self._where)
            with self._lock.alone():
                self._state = State(fresh, self._state.revision)

    def close(self) -> None:
        """Renew the copy on disk, if it is out of date and that is worth the time."""
        self._closing.set()
        if self._renewal is not None:
            self._renewal.join()
        if self._path is None:
            return
        with self._one_update:
            count = len(self._state.people)
            missing = self._saved_revision == _UNKNOWN
            worth_it = missing or count <= _CHEAP or self._unsaved >= count // 10
            if worth_it and self._saved_revision != self._state.revision:
                self._closing.clear()
                self._renew(quickly=True)

    def _empty(self) -> PeopleIndex:
        new = self.options.factory or TableIndex
        return PeopleIndex(new(self._store.dim))

    def _start(self) -> None:
        """From the copy on disk if it can be used, and up to the store's revision."""
        file = None if self._path is None else indexfile.read(self._path)
        with self._store.reading() as view:
            usable = file is not None and self._is_of_this_past(file.header, view.revision())
            if file is not None and usable:
                self._state = State(self._of_file(file), file.header.revision)
                if self._engine_is_kept(file):
                    self._saved_revision = file.header.revision
            self._catch_up(view)
            if len(self._state.people) != view.count_vectors(named=self._named):
                usable, self._state.revision = False, _UNKNOWN
                self._catch_up(view)
        if self._path is not None and not usable and self._path.exists():
            # It must not come to look right once the store has reached its revision.
            self._saved_revision = _UNKNOWN
            self._renew(quickly=True)
        if self._path is None and self.options.factory is None:
            kind = choose_kind(self.options.kind or "auto", len(self._state.people))
            # Nothing on disk has the codes, and nothing is on the device.
            if kind not in ("flat", *_SLOW) or self.options.device == "cuda":
                self._renew_in_background()

    def _of_file(self, file: indexfile.IndexFile) -> PeopleIndex:
        if self.options.factory is not None:
            people = self._empty()
            people.put(file.ids, file.owners, file.vectors)
            return people
        engine = self._engine_of(file)
        index = TableIndex(self._store.dim, file.ids, file.vectors, engine)
        return PeopleIndex(index, file.ids, file.owners)

    def _engine_of(self, file: indexfile.IndexFile) -> Engine:
        """The file's engine if it is of the kind wanted; else flat, which needs no building."""
        kind = choose_kind(self.options.kind or "auto", len(file.ids))
        if self.options.device == "cuda":
            return CudaEngine(file.vectors)
        if file.engine is not None and self._suits(file.engine, kind):
            return file.engine
        if kind in ("float16", "int8"):
            return make_engine(kind, file.vectors)
        return FlatEngine(file.vectors)

    def _engine_is_kept(self, file: indexfile.IndexFile) -> bool:
        """Whether the next opening will find the engine that it wants, ready made."""
        kind = choose_kind(self.options.kind or "auto", len(file.ids))
        others = self.options.factory is not None or self.options.device == "cuda"
        if others or kind == "flat" or kind in _SLOW:  # nothing to keep, or not worth the wait
            return True
        return file.engine is not None and self._suits(file.engine, kind)

    def _suits(self, engine: Engine, kind: str) -> bool:
        """Whether it is of the kind wanted; "auto" takes what there is, as long as it is exact."""
        return engine.kind == kind or (self.options.kind == "auto" and engine.exact)

    def _is_of_this_past(self, header: indexfile.Header, revision: int) -> bool:
        return (
            header.gallery_uuid == self._store.uuid
            and header.contract_id == self._contract_id
            and header.generation == self._store.generation
            and header.named == self._named
            and header.dim == self._store.dim
            and header.revision <= revision
        )

    def _catch_up(self, view: ReadTransaction) -> None:
        revision, since = view.revision(), self._state.revision
        if revision == since:
            return
        # Nothing yet, or what we have cannot be relied on, or lacks removals of long ago.
        if not 0 < since <= revision or not view.remembers(since):
            self._read_all(view, revision)
            return
        removed = self._gone(view, since, self._state.people.owners[0])
        changes = list(view.vectors_since(since, named=self._named))
        if len(removed):
            with self._lock.alone():  # nobody may go on with what has to be gone
                people = self._state.people
                # Should Ctrl-C cut this short, no revision is right, and the next call rebuilds.
                self._state = State(people, _UNKNOWN)
                people.remove(removed)
                for batch in changes:
                    people.put(batch.ids, batch.owners, batch.vectors)
                self._state = State(people, revision)
        else:
            people = self._state.people.fork()
            for batch in changes:
                people.put(batch.ids, batch.owners, batch.vectors)
            self._state = State(people, revision)
        self._unsaved += len(removed) + sum(len(batch.ids) for batch in changes)

    def _gone(self, view: ReadTransaction, since: int, ids: IdArray) -> IdArray:
        """Those of the templates ``ids`` that were removed, or are the other index's now."""
        gone = np.concatenate(
            [view.removed_since(since), view.left_since(since, named=self._named)]
        )
        return gone[np.isin(gone, ids)] if len(gone) else gone

    def _read_all(self, view: ReadTransaction, revision: int) -> None:
        people = self._empty()
        for batch in view.vectors_since(0, named=self._named):
            people.put(batch.ids, batch.owners, batch.vectors)
        with self._lock.alone():
            self._state = State(people, revision)
        self._unsaved += len(people)

    def _renew_quietly(self) -> None:
        """In a thread of its own: whatever goes wrong, the store has everything."""
        try:
            self._renew(locked=False)
        except FacerecError as exc:
            _log.warning("%s: not renewed: %s", self._where, exc)

    def _renew(self, *, quickly: bool = False, must: bool = False, locked: bool = True) -> None:
        """Write the copy of what is in memory, and go on with that.

        quickly: with no engine that takes minutes to build. must: raise what goes wrong. locked:
        whether the caller holds ``_one_update``. A removal meanwhile makes it vain: the copy
        is then left out, until the next time.
        """
        try:
            with self._lock.shared():
                state, unsaved = self._state, self._unsaved
                rows = _Rows.of(state.people, self._closing)
            if self._path is None or self._store.read_only:
                self._rebuild_in_memory(state, rows, locked)
                return
            with indexfile.IndexWriter(self._path) as writer:
                self._write(writer, state.revision, rows, quickly)
                with self._store.writing() as view:
                    # Under the write lock nobody can remove a person between check and rename.
                    behind = not view.remembers(state.revision)
                    if behind or len(self._gone(view, state.revision, rows.ids)):
                        return
                    file = writer.publish()
                    self._saved_revision = state.revision
                    self._unsaved = max(0, self._unsaved - unsaved)
            if self.options.factory is None:
                self._go_on_with(self._of_file(file), state.revision, locked)
        except (_Stopped, ContractMismatch):  # closing, or moved to another model meanwhile
            return
        except indexfile.Erased as exc:
            if must:
                raise GalleryError(f"{self._where}: not renewed: {exc}; try again") from exc
        except (OSError, GalleryError) as exc:
            if must:
                raise GalleryError(f"{self._where}: not renewed: {exc}") from exc
            _log.warning("%s: not renewed, opening will take longer: %s", self._where, exc)

    def _rebuild_in_memory(self, state: State, rows: _Rows, locked: bool) -> None:
        """Where no file may be written, the engine is all that there is to make."""
        if self.options.factory is not None:
            return
        vectors = np.concatenate([*self._pieces(rows), np.empty((0, self._store.dim), np.float32)])
        engine: Engine
        if self.options.device == "cuda":
            engine = CudaEngine(vectors)
        else:
            engine = make_engine(choose_kind(self.options.kind or "auto", len(rows)), vectors)
        index = TableIndex(self._store.dim, rows.ids, vectors, engine)
        self._go_on_with(PeopleIndex(index, rows.ids, rows.owners), state.revision, locked)
        self._unsaved = 0

    def _write(
        self, writer: indexfile.IndexWriter, revision: int, rows: _Rows, quickly: bool
    ) -> None:
        header = indexfile.Header(
            gallery_uuid=self._store.uuid,
            contract_id=self._contract_id,
            generation=self._store.generation,
            named=self._named,
            revision=revision,
            count=len(rows),
            dim=self._store.dim,
        )
        engine: Engine | None = None
        kind = choose_kind(self.options.kind or "auto", len(rows))
        wanted = self.options.factory is None and self.options.device == "cpu"
        too_slow = quickly and kind in _SLOW and len(rows) > _CHEAP
        if wanted and kind != "flat" and len(rows) and not too_slow:
            engine = make_engine(kind, rows)  # type: ignore[arg-type]
        writer.write(header, rows.ids, rows.owners, self._pieces(rows), engine)

    def _pieces(self, rows: _Rows) -> Iterator[FloatArray]:
        for start in range(0, len(rows), _PIECE):
            yield rows[start : start + _PIECE]

    def _go_on_with(self, people: PeopleIndex, revision: int, locked: bool) -> None:
        """Use what was just made, instead of what it was made from."""
        with nullcontext() if locked else self._one_update, self._store.reading() as view:
            if not view.remembers(revision):
                return
            people.remove(self._gone(view, revision, people.owners[0]))
            for batch in view.vectors_since(revision, named=self._named):
                people.put(batch.ids, batch.owners, batch.vectors)
            with self._lock.alone():
                self._state = State(people, view.revision())


class _Stopped(Exception):
    """The gallery is being closed, or rows went while they were read."""


class _Rows:
    """What an index holds, as of one moment: sliced like an array, without a copy of it all.

    Slicing raises _Stopped once ``stop`` is set, and for a row that was removed since.
    """

    def __init__(
        self, ids: Any, owners: Any, at: Any, index: VectorIndex, stop: threading.Event
    ) -> None:
        self.ids = ids
        self.owners = owners
        self._at = at
        self._index = index
        self._stop = stop
        self.shape = (len(ids), index.dim)

    @classmethod
    def of(cls, people: PeopleIndex, stop: threading.Event) -> _Rows:
        """Call while nothing changes the index."""
        ids, owners = people.owners
        if isinstance(people.index, TableIndex):
            return cls(ids, owners, people.index.rows()[1], people.index, stop)
        return cls(ids, owners, ids, people.index, stop)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: Any) -> FloatArray:
        if self._stop.is_set():
            raise _Stopped
        if not isinstance(self._index, TableIndex):
            return self._index.vectors(self._at[which])
        vectors = self._index.take(self._at[which])
        if np.isnan(vectors[:, 0]).any():  # as a table erases; an engine of it would find nothing
            raise _Stopped
        return vectors
