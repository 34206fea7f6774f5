"""Who looks at photos: threads of this process, or others behind the same protocol.

Imports the core and this package's photo_work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gallery.photo_work import Looked, PhotoWork


@dataclass(frozen=True, eq=False)
class Chunk:
    """Work for one: the bytes of some photos, or one video's path."""

    photos: tuple[bytes, ...] = ()
    video: Path | None = None


class Crew(Protocol):
    """Looks at chunks, several at once. ``width``: how many keep it busy."""

    @property
    def width(self) -> int: ...

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        """One result for each photo, in their order; one for a video."""

    def close(self) -> None:
        """Finish the photos under way, and drop the rest, videos too."""


def look_at(work: PhotoWork, chunk: Chunk, stop: threading.Event | None = None) -> list[Looked]:
    """Do a chunk, here and now. Raises ModelError; CancelledError for a video that is not
    finished when ``stop`` is set."""
    if chunk.video is not None:
        return [work.watch(chunk.video, stop)]
    return work.look(chunk.photos)


class Threads:
    """A crew of this process's threads, each of which does a chunk from decoding to the crops.

    make_work: called once, when there is work, because models take a second to load. Its
    pipeline should use one thread: then the threads never wait for each other.
    """

    def __init__(self, make_work: Callable[[], PhotoWork], width: int) -> None:
        self._make_work = make_work
        self._width = width
        self._pool = ThreadPoolExecutor(width, thread_name_prefix="facerec-look")
        self._work: PhotoWork | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()

    @property
    def width(self) -> int:
        """Threads."""
        return self._width

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        """See :class:`Crew`. The first call loads the models; raises ModelError."""
        with self._lock:
            if self._work is None:
                self._work = self._make_work()
        return self._pool.submit(look_at, self._work, chunk, self._stop)

    def close(self) -> None:
        """See :class:`Crew`."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
