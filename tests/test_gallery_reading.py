"""Reading ahead of the look at photos: in what order, and that it ends when it is told to."""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import Future
from datetime import datetime, timezone
from pathlib import Path

import pytest
from sqlalchemy import insert

from facerec.errors import ConfigError
from gallery import indexer, reading
from gallery.crew import Chunk
from gallery.index_report import IndexReport
from gallery.indexer import Indexer
from gallery.items import Item, Unchanged
from gallery.ledger import FAILED, naming_label
from gallery.naming import Naming
from gallery.photo_work import Looked
from gallery.reading import Ledger, Looking, Reader
from gallery.schema import FileRow, PhotoRow
from gallery.sources import Sources
from tests.gallery_crashes import Readers, open_it
from tests.index_samples import peak_of

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


@pytest.mark.skipif(os.name == "nt", reason="needs pipes")
def test_a_video_is_looked_at_before_the_next_one_is_read(tmp_path: Path) -> None:
    """The next one is a pipe, which is not read to its end before somebody has written to it."""
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_text(name[0])
    (tmp_path / "3.mp4").write_bytes(b"a video")
    os.mkfifo(tmp_path / "4.mp4")
    (tmp_path / "5.jpg").write_text("5")
    found: list[Item] = [
        Item(str(path), "video" if path.suffix == ".mp4" else "photo", 1, 0)
        for path in sorted(tmp_path.iterdir())
    ]
    crew = Videos()
    steps: queue.Queue[tuple[str, ...]] = queue.Queue()

    def read() -> None:
        with open_it(tmp_path / "people") as gallery:
            ledger = Ledger(gallery, retry=False)
            for step in Reader(gallery, found, crew, ledger, retry=False):
                if isinstance(step, Looking):
                    steps.put(tuple(seen.item.path.name for seen in step.seen))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        assert steps.get(timeout=30) == ("1.jpg", "2.jpg")
        assert steps.get(timeout=30) == ("3.mp4",)
        assert thread.is_alive() and steps.empty()
    finally:
        (tmp_path / "4.mp4").write_bytes(b"another")
    assert [steps.get(timeout=30) for _ in range(2)] == [("4.mp4",), ("5.jpg",)]
    thread.join(timeout=30)
    assert not thread.is_alive()


class Videos(Readers):
    """To which videos show nobody."""

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        if chunk.video is None:
            return super().submit(chunk)
        done: Future[list[Looked]] = Future()
        done.set_result([Looked()])
        return done


def test_an_interrupted_run_does_not_wait_until_a_video_is_read(tmp_path: Path) -> None:
    """A file of a terabyte, none of which is on the disk."""
    (tmp_path / "photos" / "Ada").mkdir(parents=True)
    (tmp_path / "photos" / "Ada" / "1.jpg").write_text("1")
    with (tmp_path / "photos" / "Ada" / "2.mp4").open("wb") as stream:
        try:
            stream.truncate(1 << 40)
        except OSError:
            pytest.skip("this file system has no such files")
    reports = []

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        with open_it(tmp_path / "people") as gallery:
            sources = Sources([tmp_path / "photos"], naming=Naming(by_folder=True))
            reports.append(Indexer(gallery, Videos()).run(sources, progress=interrupt))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    reads_on = thread.is_alive()
    os.truncate(tmp_path / "photos" / "Ada" / "2.mp4", 0)  # and so it ends at any rate
    assert not reads_on
    [report] = reports
    assert report.interrupted and report.counts["enrolled"] == 1


def test_what_was_looked_at_is_kept_when_the_rest_of_a_list_cannot_be_read(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text(str(i))
    listed = tmp_path / "people.csv"
    rows = "path,name\n" + "".join(f"{i}.jpg,Ada\n" for i in range(3))
    listed.write_bytes(rows.encode() + b"\n" * 100_000 + b"caf\xe9.jpg,Bo\n")
    (tmp_path / "notes.txt").write_text("one that is no photo ends the group before it")
    with listed.open("r+b") as stream:
        stream.seek(len(rows))
        stream.write(b"notes.txt,Ada\n")
    with open_it(tmp_path / "people") as gallery:
        for _ in range(2):
            report = IndexReport()
            with pytest.raises(ConfigError, match="not UTF-8"):
                Indexer(gallery, Readers()).run(Sources([], manifests=[listed]), report=report)
            assert gallery.count() == (1, 3)
        assert report.counts["enrolled"] == 0 and report.counts["unchanged"] == 3


def test_of_an_archive_that_is_as_it_was_the_members_are_counted_and_not_loaded(
    tmp_path: Path,
) -> None:
    count = 3_000
    with open_it(tmp_path / "people") as gallery:
        with gallery.writing() as change:
            change.touch()
            values = {"content_sha256": "ab" * 32, "label": "", "details": "{}"}
            new = insert(PhotoRow).values(
                outcome=FAILED, created_at=datetime.now(timezone.utc), **values
            )
            photo = change.connection.execute(new.returning(PhotoRow.id)).scalar_one()
            file = {"size": 7, "mtime_ns": 8, "label": naming_label("folders")}
            new = insert(FileRow).values(path="/all.zip", photo_id=None, **file)
            archive = change.connection.execute(new.returning(FileRow.id)).scalar_one()
            member = {"photo_id": photo, "archive_id": archive, **file}
            members = [{"path": f"/all.zip!/{i}.jpg", **member} for i in range(count)]
            change.connection.execute(insert(FileRow), members)
        ledger = Ledger(gallery, retry=False)
        assert ledger.archive("/all.zip", 7, 9, "folders") is None
        found = []
        peak = peak_of(lambda: found.append(ledger.archive("/all.zip", 7, 8, "folders")))
        assert found == 3 * [Unchanged("/all.zip", count, count)]
        assert peak < 100 * count
        assert ledger.archive("/none.zip", 7, 8, "folders") is None
