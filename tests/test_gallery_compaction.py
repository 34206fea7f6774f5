"""What is left of removed people in a large database, and for how long; and clocks that go back."""

from __future__ import annotations

import base64
import itertools
import random
import shutil
import sqlite3
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from facerec.errors import GalleryError
from gallery import Gallery, from_export
from gallery.backup import back_up, restore
from gallery.index import ExactIndex
from gallery.indexfile import INDEX_NAME
from gallery.sqlite import DB_NAME
from gallery.values import metadata_json
from tests.gallery_samples import fill, open_gallery, template, unit


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every database counts as a large one."""
    monkeypatch.setattr("gallery.sqlite.COMPACT_BYTES", 0)


def pieces(data: bytes) -> NDArray[np.uint64]:
    """Every 8 bytes in a row, as numbers, ascending."""
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), 8)
    return np.unique(np.ascontiguousarray(windows).view("<u8"))


def left_of(secrets: list[bytes], folder: Path) -> int:
    """How many 8 bytes in a row of the secrets the files of a folder hold."""
    there = pieces(b"".join(path.read_bytes() for path in folder.iterdir()))
    places = [(np.searchsorted(there, one), one) for one in map(pieces, secrets)]
    return sum(int((there[at % len(there)] == one).sum()) for at, one in places)


def test_a_removal_from_a_large_database_does_not_rewrite_it_and_says_so(large, tmp_path) -> None:
    crop = np.random.default_rng(1).bytes(20_000)
    with open_gallery(tmp_path / "g") as gallery:
        fill(gallery, 5)
        gallery.enroll("Rumpelstiltskin", [template(unit(500), "r", crop)])
        removal = gallery.remove("Rumpelstiltskin")
        size = (tmp_path / "g" / DB_NAME).stat().st_size
        assert not removal.vacuumed and "'facerec compact'" in (removal.problem or "")
        assert gallery.identify(unit(500, 1), threshold=0.9)[0].match is None
        assert (tmp_path / "g" / f"{DB_NAME}-wal").stat().st_size == 0
        assert left_of([unit(500).tobytes(), crop, b"Rumpelstiltskin"], tmp_path / "g") == 0
    with open_gallery(tmp_path / "g") as gallery:
        assert gallery.compaction_due
        assert (tmp_path / "g" / DB_NAME).stat().st_size >= size
        assert gallery.compact(now=True) is None
        assert not gallery.compaction_due
        assert (tmp_path / "g" / DB_NAME).stat().st_size < size
        gallery.check()


def word(rng: random.Random, size: int) -> str:
    """Letters and digits, so many that no 8 in a row come twice."""
    return base64.urlsafe_b64encode(rng.randbytes(size)).decode()


def live_a_little(gallery: Gallery, rng: random.Random, steps: int) -> list[bytes]:
    """Many people who come, change and go; all that must be forgotten, in few transactions."""
    alive: dict[int, list[bytes]] = {}
    gone: list[bytes] = []
    while steps > 0:
        with gallery.writing() as change:
            gallery.mark_removal(change)
            for _ in range(80):
                steps -= 1
                if len(alive) > 40 and rng.random() < (0.3 if steps % 1000 > 500 else 0.65):
                    one = rng.choice(list(alive))
                    change.remove_identity(one)
                    gone += alive.pop(one)
                elif alive and rng.random() < 0.2:
                    one, name = rng.choice(list(alive)), word(rng, rng.randrange(8, 90))
                    change.rename(one, name)
                    gone.append(alive[one][0])
                    alive[one][0] = name.encode()
                else:
                    name, note = (word(rng, rng.choice((12, 80))) for _ in range(2))
                    one = change.add_identity(name, metadata_json({"note": note}))
                    vector, crop = unit(rng.getrandbits(40)), rng.randbytes(rng.choice((90, 9000)))
                    source = word(rng, 20)
                    change.add_templates([(one, template(vector, source, crop))])
                    alive[one] = [name.encode(), note.encode(), vector.tobytes(), crop,
                                  source.encode()]  # fmt: skip
    return gone


def test_little_is_left_before_compaction_and_nothing_after(large, tmp_path: Path) -> None:
    with open_gallery(tmp_path / "g") as gallery:
        gone = live_a_little(gallery, random.Random(0), 1600)
        gallery.compact()
        total = sum(len(pieces(secret)) for secret in gone)
        assert left_of(gone, tmp_path / "g") < 1e-3 * total
        assert gallery.compact(now=True) is None
        assert left_of(gone, tmp_path / "g") == 0
        gallery.check()


# The list of removals


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of ten removed templates are kept, not of 100,000."""
    monkeypatch.setattr("gallery.records.REMOVALS_KEPT", 10)


def removals(folder: Path) -> tuple[int, int]:
    """(how many are kept, complete after which revision)."""
    with sqlite3.connect(folder / DB_NAME) as db:
        kept = db.execute("SELECT count(*) FROM removals").fetchone()[0]
        since = db.execute("SELECT removals_from FROM gallery").fetchone()[0]
    db.close()
    return kept, since


def test_the_list_of_removals_does_not_grow_for_ever(forgetful, tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery:
        fill(gallery, 40)
        for i in range(35):
            gallery.remove(f"person {i}")
            assert removals(tmp_path)[0] <= 10
        assert removals(tmp_path)[1] > 40
        gallery.check()


@pytest.mark.parametrize("removed", [3, 10, 11, 30])
def test_an_index_that_missed_forgotten_removals_is_read_anew(
    forgetful, tmp_path: Path, removed: int
) -> None:
    """In the memory of another process, and on disk."""
    folder = tmp_path / "g"
    with open_gallery(folder) as gallery:
        vectors = fill(gallery, 40)[:, 0]
    older = (folder / INDEX_NAME).read_bytes()
    names = [None] * removed + [f"person {i}" for i in range(removed, 40)]
    with open_gallery(folder) as behind, open_gallery(folder) as gallery:
        behind.identify(vectors)
        for i in range(removed):
            gallery.remove(f"person {i}")
        for each in (behind, gallery):
            found = each.identify(vectors, threshold=0.99)
            assert [d.match and d.match.name for d in found] == names
    (folder / INDEX_NAME).write_bytes(older)
    with open_gallery(folder) as gallery:
        found = gallery.identify(vectors, threshold=0.99)
        assert [d.match and d.match.name for d in found] == names
        rows = gallery.live._state.people.rows
        gallery.check()
        assert np.array_equal(rows[0], gallery.live._state.people.rows[0])


def test_a_copy_of_the_index_made_while_removals_were_forgotten_is_left_out(
    forgetful, tmp_path, monkeypatch
) -> None:
    from gallery.indexfile import IndexWriter

    with open_gallery(tmp_path / "g") as gallery, open_gallery(tmp_path / "g") as other:
        fill(gallery, 40)
        real = IndexWriter.write

        def slow_write(self: IndexWriter, *arguments: object) -> None:
            real(self, *arguments)  # type: ignore[arg-type]
            monkeypatch.undo()
            monkeypatch.setattr("gallery.records.REMOVALS_KEPT", 10)
            for i in range(30):
                other.remove(f"person {i}")

        monkeypatch.setattr(IndexWriter, "write", slow_write)
        gallery.live.renew_now()
        assert not (tmp_path / "g" / INDEX_NAME).exists()
        found = gallery.identify(unit(0, 40), threshold=0.99)
        assert sum(d.match is not None for d in found) == 10


def test_a_removal_takes_away_a_copy_in_the_making_and_nobody_is_alarmed(
    tmp_path, monkeypatch, caplog
) -> None:
    from gallery.indexfile import IndexWriter

    with open_gallery(tmp_path / "g") as gallery, open_gallery(tmp_path / "g") as other:
        fill(gallery, 5)
        real = IndexWriter._write

        def slow_write(self: IndexWriter, *arguments: object) -> None:
            monkeypatch.undo()
            other.remove("person 1")
            assert {path.name for path in (tmp_path / "g").iterdir()} <= {
                DB_NAME, f"{DB_NAME}-wal", f"{DB_NAME}-shm"
            }  # fmt: skip
            real(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(IndexWriter, "_write", slow_write)
        gallery.live.renew_now()
        assert not caplog.records
        monkeypatch.setattr(IndexWriter, "_write", slow_write)
        other.enroll("person 1", [template(unit(1), "1")])
        with pytest.raises(GalleryError, match="removal came between"):
            gallery.rebuild_index()
        gallery.rebuild_index()
        assert (tmp_path / "g" / INDEX_NAME).exists()


# Clocks and locks


def test_a_clock_that_goes_back_changes_no_answer_and_no_order(tmp_path, monkeypatch) -> None:
    """Each write is dated a day before the last one, and the system's clock runs backwards."""
    writes = 0

    def yesterday() -> datetime:
        nonlocal writes
        writes += 1
        return datetime(2030, 1, 1, tzinfo=timezone.utc) - timedelta(days=writes)

    real = time.time
    monkeypatch.setattr("gallery.records._now", yesterday)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000 - 100 * (real() - 1_700_000_000))
    with open_gallery(tmp_path / "g") as gallery, open_gallery(tmp_path / "g") as other:
        for i in range(6):
            gallery.enroll("Ann", [template(unit(i), f"photo {i}")])
        gallery.enroll("Bob", [template(unit(3), "photo 3")])  # the same face: the older one wins
        views = gallery.templates("Ann")
        assert [t.source for t in views] == [f"photo {i}.jpg" for i in range(6)]
        assert all(a.created_at > b.created_at for a, b in itertools.pairwise(views))
        for each in (gallery, other):
            [decision] = each.identify(unit(3)[None], threshold=0.9)
            assert decision.match is not None and decision.match.name == "Ann"
        gallery.remove_template(views[3].id)
        [decision] = other.identify(unit(3)[None], threshold=0.9)
        assert decision.match is not None and decision.match.name == "Bob"
        gallery.export(tmp_path / "e")
        back_up(tmp_path / "g", tmp_path / "b")
        gallery.check()
    from_export(tmp_path / "e", tmp_path / "imported").close()
    restore(tmp_path / "b", tmp_path / "g", replace=True)
    for folder in (tmp_path / "g", tmp_path / "imported"):
        with open_gallery(folder) as gallery:
            assert gallery.templates("Ann")[0].source == "photo 0.jpg"
            assert gallery.count() == (2, 6)
            gallery.check()


def test_a_database_that_is_locked_for_too_long_is_a_sentence_and_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gallery.sqlite.BUSY_TIMEOUT_S", 0.2)
    with open_gallery(tmp_path / "g") as gallery:
        fill(gallery, 3)
        gallery.export(tmp_path / "e")
    with open_gallery(tmp_path / "g") as gallery:
        hog = sqlite3.connect(tmp_path / "g" / DB_NAME, isolation_level=None)
        hog.execute("BEGIN IMMEDIATE")
        for write in (
            lambda: gallery.enroll("Eve", [template(unit(9))]),
            lambda: gallery.rename("person 0", "Eve"),
            lambda: gallery.remove("person 0"),
            lambda: gallery.import_(tmp_path / "e", on_conflict="rename"),
        ):
            with pytest.raises(GalleryError, match=r"for too long.*unchanged"):
                write()
        back_up(tmp_path / "g", tmp_path / "b")  # which needs no lock
        assert gallery.identify(unit(0, 1))[0].match is not None
        hog.execute("ROLLBACK")
        hog.close()
        assert gallery.count() == (3, 3)
        gallery.enroll("Eve", [template(unit(9))])
        gallery.check()


def test_a_large_database_is_compacted_while_others_read(large, tmp_path: Path) -> None:
    with open_gallery(tmp_path / "g") as gallery, open_gallery(tmp_path / "g") as other:
        vectors = fill(gallery, 30)[:, 0]
        gallery.remove("person 0")
        stop, wrong = threading.Event(), []

        def look() -> None:
            while not stop.is_set():
                match = other.identify(vectors[7][None], threshold=0.9)[0].match
                if match is None or match.name != "person 7":
                    wrong.append(match)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            assert gallery.compact(now=True) is None
        finally:
            stop.set()
            thread.join()
        assert wrong == []


def test_the_command_compacts_and_doctor_tells_when_that_is_due(large, tmp_path, capsys) -> None:
    from facerec.cli.backup import compact
    from facerec.cli.care import _gallery_findings
    from facerec.config import load_settings

    settings = load_settings(gallery=str(tmp_path / "g"))
    with open_gallery(tmp_path / "g") as gallery:
        fill(gallery, 3)
    assert [finding.status for finding in _gallery_findings(settings)] == ["ok"]
    with open_gallery(tmp_path / "g") as gallery:
        gallery.remove("person 1")
    finding = _gallery_findings(settings)[-1]
    assert finding.status == "warning" and "facerec compact" in finding.remedy
    compact(gallery=str(tmp_path / "g"))
    assert "Compacted" in capsys.readouterr().out
    assert [finding.status for finding in _gallery_findings(settings)] == ["ok"]


def test_the_exact_index_forgets_too(forgetful, tmp_path: Path) -> None:
    """An index of one's own, in memory, follows the same rules."""
    with open_gallery(tmp_path / "g") as gallery:
        vectors = fill(gallery, 20)[:, 0]
        shutil.copytree(tmp_path / "g", tmp_path / "copy")
        with Gallery.open(tmp_path / "g", index_factory=ExactIndex) as exact:
            for i in range(15):
                gallery.remove(f"person {i}")
            found = exact.identify(vectors, threshold=0.99)
            assert sum(d.match is not None for d in found) == 5
