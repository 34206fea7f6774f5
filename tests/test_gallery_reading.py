"""Reading ahead of the look at photos: it ends when it is told to, wherever it is."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from gallery import indexer, reading
from gallery.crew import Chunk
from gallery.indexer import Indexer
from gallery.naming import Naming
from gallery.photo_work import Looked
from gallery.sources import Sources
from tests.gallery_crashes import Readers, open_it

GROUPS = 40


class Slow(Readers):
    """A crew that goes on only after the run is interrupted."""

    def __init__(self) -> None:
        self.first = threading.Event()
        self.waiting: list[tuple[Future[list[Looked]], Chunk]] = []
        self.interrupted = False

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        if not self.first.is_set():
            self.first.set()
            return super().submit(chunk)
        future: Future[list[Looked]] = Future()
        self.waiting.append((future, chunk))
        if self.interrupted:
            future.set_result([self.look(int(photo)) for photo in chunk.photos])
        return future


def test_an_interrupted_run_does_not_wait_for_the_rest_of_a_large_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of one file each, far more of them than there is room for under way."""
    monkeypatch.setattr(reading, "_GROUP_FILES", 1)
    monkeypatch.setattr(indexer, "_COMMIT_PHOTOS", 1)
    (tmp_path / "photos" / "Ada").mkdir(parents=True)
    for i in range(GROUPS):
        (tmp_path / "photos" / "Ada" / f"{i}.jpg").write_text(str(i))
    crew = Slow()

    def interrupt(_: object) -> None:
        while len(crew.waiting) < 3:  # all the room there is
            threading.Event().wait(0.01)
        crew.interrupted = True
        threading.Timer(0.2, finish).start()
        raise KeyboardInterrupt

    def finish() -> None:
        for future, chunk in list(crew.waiting):
            future.set_result([crew.look(int(photo)) for photo in chunk.photos])

    reports = []

    def run() -> None:
        with open_it(tmp_path / "people") as gallery:
            sources = Sources([tmp_path / "photos"], naming=Naming(by_folder=True))
            reports.append(Indexer(gallery, crew).run(sources, progress=interrupt))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "the reader goes on through the collection, or waits for ever"
    [report] = reports
    assert report.interrupted and 1 <= report.photos < GROUPS
