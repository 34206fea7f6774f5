"""Backup and restore: whole or not at all, while others write, and of no other past."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from facerec.errors import GalleryError, StoreCorrupt
from facerec.types import FloatArray
from gallery import Gallery
from gallery.backup import back_up, read_backup, restore
from gallery.indexfile import INDEX_NAME
from gallery.location import Location
from gallery.sqlite import DB_NAME
from gallery.store import Store
from tests.gallery_samples import DIM, fill, open_gallery, sha, template, unit

ROOT = Path(__file__).resolve().parent.parent
posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX paths")


def found(gallery: Gallery, vectors: FloatArray) -> list[str | None]:
    decisions = gallery.identify(vectors.reshape(-1, DIM), k=1, threshold=0.99)
    return [decision.match and decision.match.name for decision in decisions]


def rows(db: Path) -> dict[str, list[tuple]]:
    """Every row of every table, but for what a restore may change."""
    with sqlite3.connect(f"file:{db}?mode=ro", uri=True) as opened:
        tables = [r[0] for r in opened.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        kept = {t: opened.execute(f"SELECT * FROM {t} ORDER BY 1").fetchall() for t in tables}
    opened.close()
    kept.pop("gallery")
    return kept


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FloatArray, Path]:
    folder = tmp_path_factory.mktemp("model")
    with open_gallery(folder / "people") as gallery:
        vectors = fill(gallery, 12, 2)
        gallery.enroll("Zoë", [template(unit(90), "z", b"crop" * 900)], metadata={"badge": 7})
        gallery.remove("person 3")
        gallery.merge("person 4", "person 5")
        back_up(folder / "people", folder / "people.backup")
    return folder / "people", vectors, folder / "people.backup"


@pytest.fixture
def gallery_folder(model, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model[0], tmp_path / "people"))


@pytest.fixture
def backup(model, tmp_path: Path) -> Path:
    return Path(shutil.copy(model[2], tmp_path / "people.backup"))


def test_a_restored_backup_is_the_gallery_to_the_last_row(model, backup, tmp_path) -> None:
    said: list[tuple[int, int]] = []
    made = restore(backup, tmp_path / "new", progress=lambda *now: said.append(now))
    assert made == read_backup(backup)
    assert (made.identities, made.templates, made.crops) == (11, 23, 1)
    assert rows(tmp_path / "new" / DB_NAME) == rows(model[0] / DB_NAME)
    with open_gallery(tmp_path / "new") as new, open_gallery(model[0]) as old:
        assert new.people() == old.people()
        assert new.crop(new.templates("Zoë")[0].id) == old.crop(old.templates("Zoë")[0].id)
        assert found(new, model[1][:6]) == found(old, model[1][:6])
        new.check()
    assert names_in(tmp_path / "new") == [DB_NAME, INDEX_NAME]
    assert said == sorted(said) and said[-1][0] == said[-1][1]


def test_what_is_restored_needs_no_log_beside_it(backup, tmp_path) -> None:
    """Only one file is renamed at the end: whatever a log still held would be lost."""
    restore(backup, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [DB_NAME]
    with closing(sqlite3.connect(tmp_path / "new" / DB_NAME)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_last_line_of_a_backup_says_what_it_is(model, backup: Path) -> None:
    raw = json.loads(backup.read_bytes().splitlines()[-1])
    data = backup.read_bytes()[: raw["database_bytes"]]
    assert hashlib.sha256(data).hexdigest() == raw["database_sha256"]
    with Gallery.open(model[0], create=False) as gallery:
        assert raw["revision"] == gallery.revision
        assert raw["contract_id"] == gallery.contract.contract_id
    assert names_in(backup.parent) == [backup.name]


def test_a_backup_is_readable_by_its_owner_s_rule_only(gallery_folder, tmp_path) -> None:
    (gallery_folder / DB_NAME).chmod(0o600)
    back_up(gallery_folder, tmp_path / "b")
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    restore(tmp_path / "b", tmp_path / "new")
    assert (tmp_path / "new" / DB_NAME).stat().st_mode & 0o777 == 0o600


def test_who_was_removed_is_not_in_a_backup(tmp_path: Path) -> None:
    vector, crop = unit(500), np.random.default_rng(1).bytes(3000)
    with open_gallery(tmp_path / "g") as gallery:
        fill(gallery, 3)
        gallery.enroll("Rumpelstiltskin", [template(vector, "r", crop)])
        gallery._store.compact = lambda now=False: "not now"  # type: ignore[method-assign]
        gallery.remove("Rumpelstiltskin")
        back_up(tmp_path / "g", tmp_path / "b")
    data = (tmp_path / "b").read_bytes()
    for secret in (vector.tobytes(), crop, b"Rumpelstiltskin"):
        assert all(secret[i : i + 12] not in data for i in range(0, len(secret) - 11, 4))


def test_a_backup_under_writes_is_of_one_moment(tmp_path: Path) -> None:
    """A writer enrols p0, p1, ... and gives each a twin: a view of any moment has no gap."""
    with open_gallery(tmp_path / "g") as gallery:
        fill(gallery, 40, 25)
        stop = threading.Event()

        def write() -> None:
            i = 0
            while not stop.is_set():
                gallery.enroll(f"p{i}", [template(unit(7000 + i), f"p{i}", b"x" * 9000)] * 1)
                gallery.rename(f"p{i}", f"q{i}")
                i += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            made = [back_up(tmp_path / "g", tmp_path / f"b{n}") for n in range(5)]
        finally:
            stop.set()
            writer.join()
    assert len({backup.revision for backup in made}) > 1
    for n, backup in enumerate(made):
        restore(tmp_path / f"b{n}", tmp_path / f"r{n}")
        with open_gallery(tmp_path / f"r{n}") as restored:
            names = {person.name for person in restored.people()} - {
                f"person {i}" for i in range(40)
            }
            newest = max((int(name[1:]) for name in names), default=-1)
            expected = {f"q{i}" for i in range(newest)} | {f"{c}{newest}" for c in "pq"}
            assert names <= expected and len(names) == newest + 1
            assert restored.count()[1] == backup.templates == 1000 + len(names)
            restored.check()


def test_an_existing_file_is_replaced_only_where_that_was_said(gallery_folder, tmp_path) -> None:
    target = tmp_path / "b"
    target.write_bytes(b"precious")
    with pytest.raises(GalleryError, match="exists already"):
        back_up(gallery_folder, target)
    assert target.read_bytes() == b"precious"
    back_up(gallery_folder, target, overwrite=True)
    assert read_backup(target).templates == 23
    with pytest.raises(GalleryError, match="own folder"):
        back_up(gallery_folder, gallery_folder / "b")
    with pytest.raises(GalleryError, match="no gallery here"):
        back_up(tmp_path / "nowhere", tmp_path / "c")
    with pytest.raises(GalleryError, match="cannot be written"):
        back_up(gallery_folder, tmp_path / "no" / "folder" / "b")
    with pytest.raises(GalleryError, match="is a folder"):
        back_up(gallery_folder, tmp_path)
    assert names_in(tmp_path) == ["b", "people"]


def test_a_damaged_gallery_is_not_backed_up(gallery_folder: Path, tmp_path: Path) -> None:
    with sqlite3.connect(gallery_folder / DB_NAME) as db:
        db.execute("UPDATE embeddings SET vector = ? WHERE template_id = 20", (bytes(4 * DIM),))
    db.close()
    with pytest.raises(StoreCorrupt, match="template #20"):
        back_up(gallery_folder, tmp_path / "b")
    assert names_in(tmp_path) == ["people"]


class Interrupt(KeyboardInterrupt):
    """Ctrl-C, at a place of the test's choosing."""


@pytest.mark.parametrize("at", [0, 0.3, 0.5, 0.8, 1])
def test_an_interrupted_backup_or_restore_leaves_nothing(gallery_folder, backup, at) -> None:
    folder = backup.parent
    before = names_in(folder)

    def interrupt(done: int, total: int) -> None:
        if done >= at * total:
            raise Interrupt

    for call in (
        lambda: back_up(gallery_folder, folder / "b", progress=interrupt),
        lambda: restore(backup, folder / "new", progress=interrupt),
        lambda: restore(backup, gallery_folder, replace=True, progress=interrupt),
    ):
        with pytest.raises(Interrupt):
            call()
    assert set(names_in(folder)) - {"new"} == set(before)
    assert names_in(folder / "new") == []
    with open_gallery(gallery_folder) as gallery:
        assert gallery.count() == (11, 23)
        gallery.check()
        with sqlite3.connect(gallery_folder / DB_NAME) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        db.close()


# Restoring


def test_a_gallery_in_the_way_is_replaced_only_where_that_was_said(
    gallery_folder, backup, model
) -> None:
    with open_gallery(gallery_folder) as gallery:
        lost = fill(gallery, 10, seed=3)[:, 0]
    with pytest.raises(GalleryError, match=r"holds a gallery already.*--replace"):
        restore(backup, gallery_folder)
    with open_gallery(gallery_folder) as gallery:
        assert None not in found(gallery, lost)
        with pytest.raises(GalleryError, match=r"open elsewhere.*unchanged"):
            restore(backup, gallery_folder, replace=True)
        assert None not in found(gallery, lost)
        gallery.enroll("late", [template(unit(1), "late")])
    restore(backup, gallery_folder, replace=True)
    with open_gallery(gallery_folder) as gallery:
        assert found(gallery, lost) == [None] * 10
        assert rows(gallery_folder / DB_NAME) == rows(model[0] / DB_NAME)
    assert names_in(gallery_folder) == [DB_NAME, INDEX_NAME]


@pytest.mark.parametrize("damage", [b"", b"nonsense" * 99, None])
def test_a_damaged_gallery_is_replaced_too(gallery_folder, backup, damage, model) -> None:
    db = gallery_folder / DB_NAME
    data = db.read_bytes()
    db.write_bytes(data[:100] + os.urandom(len(data) - 100) if damage is None else damage)
    (gallery_folder / f"{DB_NAME}-wal").write_bytes(os.urandom(50_000))
    restore(backup, gallery_folder, replace=True)
    with open_gallery(gallery_folder) as gallery:
        assert rows(db) == rows(model[0] / DB_NAME)
        gallery.check()


def test_a_restore_that_fails_leaves_a_damaged_gallery_its_log(gallery_folder, backup) -> None:
    """The log may be all that is left of it for somebody who can read it."""
    db = gallery_folder / DB_NAME
    db.write_bytes(b"nonsense" * 99)
    log = gallery_folder / f"{DB_NAME}-wal"
    log.write_bytes(b"what was acknowledged")
    damaged = bytearray(backup.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    backup.write_bytes(damaged)
    with pytest.raises(GalleryError, match="Nothing was restored"):
        restore(backup, gallery_folder, replace=True)
    assert log.read_bytes() == b"what was acknowledged"
    assert db.read_bytes() == b"nonsense" * 99


UNFINISHED = """
import os, signal, sqlite3, sys
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("PRAGMA journal_mode = DELETE")
raw.execute("PRAGMA cache_size = 1")
raw.execute("BEGIN")
raw.execute("CREATE TABLE half AS SELECT * FROM crops, crops AS others, crops AS more")
os.kill(os.getpid(), signal.SIGKILL)
"""


@posix_only
def test_a_change_of_mode_that_was_killed_is_undone(gallery_folder, model) -> None:
    """A restore changes it; its journal made the gallery one that can only be read."""
    db = gallery_folder / DB_NAME
    subprocess.run([sys.executable, "-c", UNFINISHED, str(db)], check=False)
    assert (gallery_folder / f"{DB_NAME}-journal").stat().st_size
    with open_gallery(gallery_folder) as gallery:
        assert not (gallery_folder / f"{DB_NAME}-journal").exists()
        assert rows(db) == rows(model[0] / DB_NAME)
        gallery.enroll("late", [template(unit(1), "late")])
        gallery.check()


def test_a_backup_that_may_only_be_read_becomes_a_gallery_that_may_be_written(
    backup, tmp_path
) -> None:
    backup.chmod(0o440)
    restore(backup, tmp_path / "new")
    assert (tmp_path / "new" / DB_NAME).stat().st_mode & 0o777 == 0o640


@posix_only
def test_names_that_are_no_utf_8_are_names(gallery_folder, tmp_path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    gallery_folder.rename(odd)
    with open_gallery(odd) as gallery:
        assert gallery.count() == (11, 23)
        assert gallery.people(search=os.fsdecode(b"Zo\xe9")) == []
    file = tmp_path / os.fsdecode(b"\xe9.backup")
    back_up(odd, file)
    restore(file, tmp_path / os.fsdecode(b"new\xe9"))
    restore(file, odd, replace=True)
    with open_gallery(tmp_path / os.fsdecode(b"new\xe9")) as gallery:
        assert gallery.count() == (11, 23)


@posix_only
def test_a_target_in_a_loop_of_links_is_a_sentence(gallery_folder, tmp_path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for target in (tmp_path / "loop" / "backup", tmp_path / ("x" * 300)):
        with pytest.raises(GalleryError, match="cannot be written"):
            back_up(gallery_folder, target)
        with open_gallery(gallery_folder) as gallery, pytest.raises(GalleryError, match="written"):
            gallery.export(target)


def test_a_folder_that_lost_its_database_takes_one(gallery_folder, backup) -> None:
    (gallery_folder / DB_NAME).unlink()
    (gallery_folder / f"{DB_NAME}-wal").write_bytes(b"of another database")
    restore(backup, gallery_folder)
    with open_gallery(gallery_folder) as gallery:
        assert gallery.count() == (11, 23)
        gallery.check()


def test_nothing_is_restored_among_other_files(backup, tmp_path) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(GalleryError, match=r"photo.jpg.*empty folder"):
        restore(backup, tmp_path / "album")
    with sqlite3.connect(tmp_path / "album" / DB_NAME) as other:
        other.execute("CREATE TABLE photos (id)")
    other.close()
    with pytest.raises(GalleryError, match="another program"):
        restore(backup, tmp_path / "album", replace=True)
    with pytest.raises(GalleryError, match="is a file"):
        restore(backup, backup)


def test_an_index_of_another_past_is_not_used(backup, tmp_path) -> None:
    """The restored gallery reaches the lost one's revision, with other content."""
    folder = tmp_path / "g"
    restore(backup, folder)
    with open_gallery(folder) as gallery:
        lost = fill(gallery, 8, seed=3)[:, 0]
        revision = gallery.revision
    index = (folder / INDEX_NAME).read_bytes()
    restore(backup, folder, replace=True)
    with open_gallery(folder) as gallery:
        kept = fill(gallery, 8, seed=4)[:, 0]
        while gallery.revision < revision:
            gallery.set_metadata("Zoë", {"n": gallery.revision})
    (folder / INDEX_NAME).write_bytes(index)
    with open_gallery(folder) as gallery:
        assert gallery.revision == revision
        assert None not in found(gallery, kept)
        assert found(gallery, lost) == [None] * 8
        gallery.check()


def flip(at: float, size: int) -> int:
    return min(int(at * size), size - 1)


@pytest.mark.parametrize("at", [0, 0.003, 0.1, 0.5, 0.9, 0.99])
def test_one_wrong_bit_is_found_and_nothing_restored(backup, gallery_folder, at, tmp_path) -> None:
    data = bytearray(backup.read_bytes())
    data[flip(at, len(data))] ^= 0x10
    backup.write_bytes(data)
    before = (gallery_folder / DB_NAME).read_bytes()
    for folder, replace in ((tmp_path / "new", False), (gallery_folder, True)):
        with pytest.raises(GalleryError):
            restore(backup, folder, replace=replace)
    assert names_in(tmp_path / "new") == []
    with open_gallery(gallery_folder) as gallery:
        assert gallery.count() == (11, 23)
    assert len((gallery_folder / DB_NAME).read_bytes()) == len(before)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "not a whole backup"),
        (lambda data: data[:-1000], "not a whole backup"),
        (lambda data: data[1000:], "not a whole backup"),
        (lambda data: data + b"\nmore", "not a whole backup"),
        (lambda data: os.urandom(5000), "not a whole backup"),
        (lambda data: b"PK\3\4" + bytes(3000), "not a whole backup"),
    ],
)
def test_what_is_no_backup_is_refused(backup, damage, said, tmp_path) -> None:
    backup.write_bytes(damage(backup.read_bytes()))
    with pytest.raises(GalleryError, match=said):
        restore(backup, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(GalleryError, match="cannot be read"):
        restore(tmp_path / "nothing", tmp_path / "new")


def rewritten(backup: Path, database: bytes | None = None, **changes: object) -> None:
    """The backup with another last line, and a checksum that is right."""
    about = read_backup(backup)
    data = backup.read_bytes()[: about.database_bytes] if database is None else database
    raw = dataclasses.asdict(about) | {
        "database_bytes": len(data), "database_sha256": hashlib.sha256(data).hexdigest(), **changes
    }  # fmt: skip
    backup.write_bytes(data + b"\n" + json.dumps(raw).encode() + b"\n")


def test_a_checksum_that_is_right_does_not_make_a_gallery(backup, tmp_path, model) -> None:
    rewritten(backup, templates=99)
    with pytest.raises(GalleryError, match=r"damaged.*not as many"):
        restore(backup, tmp_path / "new")
    shutil.copy(model[0] / DB_NAME, tmp_path / "x.db")
    with sqlite3.connect(tmp_path / "x.db") as db:
        db.execute("UPDATE embeddings SET vector = ? WHERE template_id = 20", (bytes(4 * DIM),))
    db.close()
    rewritten(backup, (tmp_path / "x.db").read_bytes(), templates=23)
    with pytest.raises(GalleryError, match=r"damaged.*template #20"):
        restore(backup, tmp_path / "new")
    rewritten(backup, b"nonsense" * 5000)
    with pytest.raises(GalleryError, match="damaged"):
        restore(backup, tmp_path / "new")
    assert names_in(tmp_path / "new") == []


def test_a_later_version_s_backup_is_refused(backup, tmp_path) -> None:
    rewritten(backup, schema_version=99)
    with pytest.raises(GalleryError, match=r"later facerec.*Update"):
        restore(backup, tmp_path / "new")
    rewritten(backup, schema_version=1, version=2)
    with pytest.raises(GalleryError, match=r"version 2.*Update"):
        restore(backup, tmp_path / "new")


# Kills, and disks that are full


STOP_AT_THE_LAST_STEP = """
import os, sys, time
from pathlib import Path
from gallery.backup import back_up, restore
what, where, file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def hang(done, total):
    if done > total / 3:
        print("now", flush=True)
        time.sleep(60)
if what == "backup":
    back_up(where, file, progress=hang)
else:
    restore(file, where, replace=True, progress=hang)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_what_a_killed_backup_or_restore_leaves_is_swept_away(
    gallery_folder, backup, tmp_path
) -> None:
    for what, file in (("backup", tmp_path / "b"), ("restore", backup)):
        child = subprocess.Popen(
            [sys.executable, "-c", STOP_AT_THE_LAST_STEP, what, gallery_folder, file],
            stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        assert child.stdout is not None and child.stdout.readline() == b"now\n"
        hidden = [p for p in (*tmp_path.iterdir(), *gallery_folder.iterdir()) if p.name[0] == "."]
        assert len(hidden) == 1
        if what == "backup":  # one that is at work is left alone, by a second one too
            back_up(gallery_folder, tmp_path / "b")
            assert hidden[0].exists()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert hidden[0].exists()
        back_up(gallery_folder, tmp_path / "b", overwrite=True)
        assert not hidden[0].exists()
        with open_gallery(gallery_folder) as gallery:
            assert gallery.count() == (11, 23)
            gallery.check()
    assert names_in(gallery_folder) == [DB_NAME, INDEX_NAME]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "facerec-test", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("needs the mount command")
    if done.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_gets_no_half_backup_and_no_half_gallery(small_disk, tmp_path) -> None:
    with open_gallery(tmp_path / "big") as gallery:
        for i in range(12):
            gallery.enroll(f"p{i}", [template(unit(i), f"p{i}", os.urandom(100_000))])
        back_up(tmp_path / "big", tmp_path / "b")
        for _ in range(2):
            with pytest.raises(GalleryError, match=r"disk.*(room|full)"):
                back_up(tmp_path / "big", small_disk / "b")
            with pytest.raises(GalleryError, match=r"No space|full"):
                restore(tmp_path / "b", small_disk / "new")
        assert names_in(small_disk) == ["new"] and names_in(small_disk / "new") == []
    with open_gallery(small_disk / "new") as small:
        vectors = fill(small, 3)
    with pytest.raises(GalleryError, match=r"No space|full"):
        restore(tmp_path / "b", small_disk / "new", replace=True)
    with open_gallery(small_disk / "new") as small:
        assert found(small, vectors) == ["person 0", "person 1", "person 2"]
        small.check()
        with pytest.raises(GalleryError, match=r"disk.*unchanged"), small.writing() as change:
            from gallery.archive import open_export

            big = Gallery.open(tmp_path / "big").export(tmp_path / "big.facerec")
            with open_export(big) as export:
                for some in export.templates():
                    change.add_templates([(1, new) for _, new in some])
        with pytest.raises(GalleryError, match="unchanged"):
            small.import_(tmp_path / "big.facerec")
        assert small.count() == (3, 3)
        small.check()


def test_a_backup_keeps_the_ids_and_the_sequence(tmp_path) -> None:
    """An id that was removed comes to mean nobody else after a restore, either."""
    with open_gallery(tmp_path / "g") as gallery:
        fill(gallery, 3)
        gone = gallery.person("person 2").id
        gallery.remove("person 2")
        back_up(tmp_path / "g", tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "r")
    with open_gallery(tmp_path / "r") as gallery:
        person, _ = gallery.enroll("new", [template(unit(5), "n")])
        assert person.id > gone
        assert sha("x") == sha("x")


def test_a_process_that_has_the_old_gallery_open_cannot_go_on(gallery_folder, backup) -> None:
    """As where the database was replaced by hand: the uuid tells, whatever the file system."""
    store = Store.open(Location(folder=gallery_folder))
    with sqlite3.connect(gallery_folder / DB_NAME) as db:
        db.execute("UPDATE gallery SET uuid = 'another'")
    db.close()
    with pytest.raises(GalleryError, match="another gallery"):
        store.revision()
    store.close()


def test_a_gallery_on_a_server_is_left_to_the_server_s_tools(backup, tmp_path) -> None:
    url = "postgresql://me:secret@nowhere.invalid/faces"
    for call in (lambda: back_up(url, tmp_path / "b"), lambda: restore(backup, url)):
        with pytest.raises(GalleryError, match=r"pg_dump|people export") as caught:
            call()
        assert "secret" not in str(caught.value)


def test_a_gallery_that_may_only_be_read_is_backed_up(gallery_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("gallery.sqlite.is_writable", lambda db: db.parent != gallery_folder)
    back_up(gallery_folder, tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "new")
    assert rows(tmp_path / "new" / DB_NAME) == rows(gallery_folder / DB_NAME)


def test_a_statement_that_takes_for_ever_can_be_stopped(tmp_path: Path) -> None:
    from sqlalchemy import create_engine

    from gallery.interruptible import run_with_ticks

    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            raise Interrupt

    engine = create_engine("sqlite://", connect_args={"check_same_thread": False})
    with engine.connect() as connection:
        with pytest.raises(Interrupt):
            run_with_ticks(connection, lambda raw: raw.execute(endless).fetchall(), tick)
        assert connection.exec_driver_sql("SELECT 7").scalar_one() == 7


def test_sweeping_takes_no_folder_that_somebody_holds(tmp_path: Path) -> None:
    from gallery.scratch import scratch_folder, sweep

    wrong: list[Exception] = []

    def work() -> None:
        try:
            for i in range(60):
                with scratch_folder(tmp_path / "target") as folder:
                    (folder / "file").write_text(f"{i}")
                    sweep(tmp_path)
                    assert (folder / "file").read_text() == f"{i}"
        except Exception as exc:
            wrong.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and names_in(tmp_path) == []
    (tmp_path / ".target.abc.part").mkdir()
    sweep(tmp_path, "other")
    assert names_in(tmp_path) == [".target.abc.part"]
    sweep(tmp_path, "target")
    assert names_in(tmp_path) == []
