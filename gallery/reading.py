"""Ahead of the look at photos: compare with the ledger, read, hash, and hand out the work.

Runs in a thread of its own, a bounded distance ahead. Imports the core and this package.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any, TypeVar

from facerec.errors import ImageError
from facerec.image import read_bytes
from facerec.types import Failure
from gallery.crew import Chunk, Crew
from gallery.gallery import Gallery
from gallery.items import (
    ArchiveEnd,
    ArchiveStart,
    Found,
    Item,
    Unchanged,
    displayable,
    path_of_key,
)
from gallery.ledger import (
    FAILED,
    FileEntry,
    PhotoEntry,
    count_members,
    files_at,
    is_settled,
    label_of,
    members_of,
    naming_label,
    photos_of,
    settled_by,
)
from gallery.outcomes import RunEnd, Seen
from gallery.photo_work import BATCH_PHOTOS, Looked

T = TypeVar("T")

_GROUP_FILES = 256
_GROUP_BYTES = 64 << 20
"""Files that are looked up in the ledger, and read, together."""
_CHUNK_BYTES = 32 << 20
_READERS = 4
"""Threads that read files: disks and servers answer several questions at once."""
_SPARE_CHUNKS = 2
_STEPS_AHEAD = 64
_HASH_BLOCK = 1 << 20

_label_of = lru_cache(maxsize=1024)(label_of)


@dataclass(frozen=True, eq=False)
class Looking:
    """Photos that are being looked at. looked: what will be found, one for each of ``seen``."""

    seen: tuple[Seen, ...]
    looked: Future[list[Looked]]


Step = Looking | Seen | ArchiveStart | ArchiveEnd | Unchanged | Failure | RunEnd


class Ledger:
    """What the gallery knows, as :class:`gallery.sources.Known` asks for it."""

    def __init__(self, gallery: Gallery, *, retry: bool) -> None:
        self._gallery = gallery
        self._retry = retry
        self._members: dict[str, FileEntry] = {}

    def archive(self, key: str, size: int, mtime_ns: int, naming: str) -> Unchanged | None:
        """See :class:`gallery.sources.Known`."""
        self._members = {}
        with self._gallery.reading() as view:
            entry = files_at(view, [key]).get(key)
            if entry is None:
                return None
            is_unchanged = (entry.size, entry.mtime_ns) == (size, mtime_ns)
            if is_unchanged and not self._retry and entry.naming == naming_label(naming):
                return Unchanged(key, *count_members(view, entry.id))
            self._members = members_of(view, entry.id)
            return None

    def member(self, key: str, size: int, mtime_ns: int, name: str | None) -> Unchanged | None:
        """See :class:`gallery.sources.Known`."""
        entry = self._members.get(key)
        if entry is None or not self.is_unchanged(entry, size, mtime_ns, _label_of(name)):
            return None
        return Unchanged(key, failed=int(entry.outcome == FAILED))

    def is_unchanged(self, entry: FileEntry | None, size: int, mtime_ns: int, label: str) -> bool:
        """Whether a file needs no look, by its size and time."""
        return (
            entry is not None
            and (entry.size, entry.mtime_ns) == (size, mtime_ns)
            and is_settled(entry.outcome, entry.label, label, retry=self._retry)
        )


class Reader:
    """Iterate over it for the steps of indexing ``found``, in order.

    crew: is given the photos that have to be looked at. In memory are at most as many chunks
    as keep it busy and a few more, whatever the collection.
    """

    def __init__(
        self, gallery: Gallery, found: Iterable[Found], crew: Crew, ledger: Ledger, *, retry: bool
    ) -> None:
        self._gallery = gallery
        self._found = found
        self._crew = crew
        self._ledger = ledger
        self._retry = retry
        self._stopped = False
        self._room = threading.Semaphore(crew.width + _SPARE_CHUNKS)
        self._under_way: set[tuple[str, str]] = set()  # (content, label), not yet committed

    def committed(self, seen: Iterable[Seen]) -> None:
        """Say that these are in the store, where they can be found from now on."""
        self._under_way.difference_update((one.sha256, _label_of(one.item.name)) for one in seen)

    def __iter__(self) -> Iterator[Step]:
        with ThreadPoolExecutor(_READERS, thread_name_prefix="facerec-read") as readers:
            group: list[Item] = []
            size = 0
            for one in self._found:
                if self._stopped:
                    return
                if isinstance(one, Item):
                    group.append(one)
                    size += one.size if one.kind == "photo" else 0
                if group and (
                    not isinstance(one, Item) or len(group) >= _GROUP_FILES or size >= _GROUP_BYTES
                ):
                    yield from self._group(group, readers)
                    group, size = [], 0
                if not isinstance(one, Item):
                    yield one
            yield from self._group(group, readers)
        if not self._stopped:
            yield RunEnd()

    def _group(self, items: Sequence[Item], readers: ThreadPoolExecutor) -> Iterator[Step]:
        with self._gallery.reading() as view:
            entries = files_at(view, [item.key for item in items])
        to_read = [item for item in items if not self._is_unchanged(item, entries.get(item.key))]
        if len(to_read) < len(items):
            read = {item.key for item in to_read}
            failed = sum(e.outcome == FAILED for key, e in entries.items() if key not in read)
            yield Unchanged("", len(items) - len(to_read), failed)
        for some in _apart(to_read):
            yield from self._read_some(some, readers)

    def _read_some(self, to_read: Sequence[Item], readers: ThreadPoolExecutor) -> Iterator[Step]:
        contents = []
        for item, content in zip(to_read, readers.map(self._read, to_read), strict=True):
            if content is None:
                return
            if isinstance(content, Failure):
                yield content
            else:
                contents.append((Seen(replace(item, data=None), content[0]), content[1]))
        with self._gallery.reading() as view:
            photos = photos_of(view, {seen.sha256 for seen, _ in contents})
        jobs, known = [], []
        for seen, data in contents:
            if self._is_known(seen, photos.get(seen.sha256, ())):
                known.append(seen)
            else:
                jobs.append((seen, data))
        del contents
        yield from self._hand_out(jobs)
        yield from known  # after those with the same content, which the store knows by then

    def _read(self, item: Item) -> tuple[str, bytes | None] | Failure | None:
        """(sha256, bytes); of a video, whose bytes nobody keeps, None. None once stopped."""
        try:
            if self._stopped:
                return None
            if item.kind == "video":
                digest = self._hash_file(item)
                return None if digest is None else (digest, None)
            data = item.data if item.data is not None else read_bytes(item.path)
            return hashlib.sha256(data).hexdigest(), data
        except ImageError as exc:
            return Failure(displayable(path_of_key(item.key)), "unreadable", displayable(exc))

    def _hash_file(self, item: Item) -> str | None:
        digest = hashlib.sha256()
        try:
            with item.path.open("rb") as stream:
                while block := stream.read(_HASH_BLOCK):
                    if self._stopped:
                        return None
                    digest.update(block)
        except OSError as exc:
            raise ImageError(f"{item.path}: cannot be read: {exc.strerror or exc}") from exc
        return digest.hexdigest()

    def _is_unchanged(self, item: Item, entry: FileEntry | None) -> bool:
        return self._ledger.is_unchanged(entry, item.size, item.mtime_ns, _label_of(item.name))

    def _is_known(self, seen: Seen, photos: Sequence[PhotoEntry]) -> bool:
        label = _label_of(seen.item.name)
        if settled_by(photos, label, retry=self._retry) is not None:
            return True
        if (seen.sha256, label) in self._under_way:
            return True
        self._under_way.add((seen.sha256, label))
        return False

    def _hand_out(self, jobs: list[tuple[Seen, bytes | None]]) -> Iterator[Looking]:
        """To the crew, in chunks; those that were handed out are forgotten here."""
        jobs.reverse()
        while jobs:
            seen: list[Seen] = []
            photos: list[bytes] = []
            video = None
            while jobs and video is None and len(seen) < BATCH_PHOTOS:
                if jobs[-1][1] is None and seen:
                    break
                one, data = jobs.pop()
                seen.append(one)
                if data is None:
                    video = one.item.path
                else:
                    photos.append(data)
                    if sum(map(len, photos)) >= _CHUNK_BYTES:
                        break
            self._room.acquire()
            if self._stopped:
                self._room.release()  # for the next group, should there be one
                return
            looked = self._crew.submit(Chunk(tuple(photos), video))
            looked.add_done_callback(lambda _: self._room.release())
            yield Looking(tuple(seen), looked)

    def stop(self) -> None:
        """Read and hand out no more; a reader that waits for room goes home."""
        self._stopped = True
        self._room.release()


class Ahead(Iterator[T]):
    """``values``, made in a thread, at most some steps ahead. Errors come where they arose."""

    def __init__(self, values: Iterable[T], steps: int = _STEPS_AHEAD) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(steps)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._make, args=(values,), name="facerec-ahead", daemon=True
        )
        self._thread.start()

    def __next__(self) -> T:
        kind, value = self._queue.get()
        if kind is _VALUE:
            made: T = value
            return made
        self._queue.put((kind, value))  # and so it ends for whoever asks again
        if value is not None:
            raise value
        raise StopIteration

    def stop(self) -> None:
        """No more values are wanted."""
        self._stopped.set()

    def join(self) -> None:
        """Wait for the thread to end, after :meth:`stop`."""
        self._thread.join()

    def _make(self, values: Iterable[T]) -> None:
        end: BaseException | None = None
        try:
            for value in values:
                if not self._put((_VALUE, value)):
                    return
        except BaseException as exc:
            end = exc
        self._put((_END, end))

    def _put(self, entry: tuple[object, object]) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


_VALUE, _END = object(), object()


def _apart(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Photos together; each video by itself, as nothing else should wait until it is read."""
    for kind, some in groupby(items, lambda item: item.kind):
        if kind == "video":
            yield from ([one] for one in some)
        else:
            yield list(some)
