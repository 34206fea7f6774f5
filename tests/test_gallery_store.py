"""Damage, full and read-only disks, index files, and removals that leave nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, event

from facerec.errors import GalleryError, StoreCorrupt
from facerec.types import FloatArray
from gallery import Gallery
from gallery.indexfile import INDEX_NAME
from gallery.sqlite import DB_NAME, create_database, sweep_leftovers
from tests.gallery_samples import CONTRACT, DIM, fill, open_gallery, template, unit

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a Python of its own, from the repository, with sys.argv[1:] = args."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def names_found(gallery: Gallery, vectors: FloatArray) -> list[str | None]:
    decisions = gallery.identify(vectors.reshape(-1, DIM), k=1)
    return [decision.match and decision.match.name for decision in decisions]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# A damaged database


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FloatArray]:
    folder = tmp_path_factory.mktemp("model") / "people"
    with open_gallery(folder) as gallery:
        return folder, fill(gallery, 60)


@pytest.fixture
def filled(model: tuple[Path, FloatArray], tmp_path: Path) -> tuple[Path, FloatArray]:
    """A closed gallery of 60 people, and their vectors (60, 1, DIM)."""
    shutil.copytree(model[0], tmp_path / "people")
    return tmp_path / "people", model[1]


def empty(data: bytes) -> bytes:
    return b""


def first_bytes(data: bytes) -> bytes:
    return b"\0" * 50 + data[50:]


def stub(data: bytes) -> bytes:
    return data[:60]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def middle(data: bytes) -> bytes:
    return data[:8192] + os.urandom(len(data) - 16384) + data[-8192:]


def schema(data: bytes) -> bytes:
    return data[:100] + b"\xff" * 2000 + data[2100:]


@pytest.mark.parametrize("damage", [empty, first_bytes, stub, cut, middle, schema])
def test_a_damaged_database_is_refused_and_not_touched(filled, damage) -> None:
    folder, _ = filled
    db = folder / DB_NAME
    db.write_bytes(damage(db.read_bytes()))
    before = contents(folder)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match=r"damaged.*Nothing was written.*Restore"):
            open_gallery(folder)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert all(len(data) == 0 or "-shm" in name for name, data in after.items() - before.items())


@pytest.mark.parametrize("damage", [empty, first_bytes, cut, middle])
def test_a_log_beside_a_damaged_database_is_not_touched(filled, tmp_path, damage) -> None:
    live, copy = filled[0], tmp_path / "copy"
    with open_gallery(live) as gallery:
        fill(gallery, 2, seed=9)
        shutil.copytree(live, copy)  # as a power cut leaves it: writes are in the log only
    db, log = copy / DB_NAME, copy / f"{DB_NAME}-wal"
    assert log.stat().st_size > 0
    db.write_bytes(damage(db.read_bytes()))
    before = db.read_bytes(), log.read_bytes()
    with pytest.raises(StoreCorrupt):
        open_gallery(copy)
    assert (db.read_bytes(), log.read_bytes()) == before


def test_a_log_left_by_a_crash_is_taken_up(tmp_path: Path) -> None:
    live, copy = tmp_path / "live", tmp_path / "copy"
    with open_gallery(live) as gallery:
        vectors = fill(gallery, 5)
        shutil.copytree(live, copy)
    with open_gallery(copy) as gallery:
        assert names_found(gallery, vectors) == [f"person {i}" for i in range(5)]
        gallery.check()


def test_another_program_s_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DB_NAME) as other:
        other.execute("CREATE TABLE photos (id)")
    other.close()
    before = contents(tmp_path)
    with pytest.raises(GalleryError, match="another program"):
        open_gallery(tmp_path)
    assert contents(tmp_path) == before


def edit(folder: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(folder / DB_NAME) as db:
        db.execute(statement, values)
    db.close()


def test_a_later_version_s_gallery_is_refused(filled) -> None:
    folder, _ = filled
    edit(folder, "UPDATE gallery SET schema_version = 99")
    with pytest.raises(GalleryError, match=r"later facerec.*Update"):
        open_gallery(folder)


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE generations SET contract = 'nonsense'", ()),
        ("DELETE FROM gallery", ()),
        ("UPDATE embeddings SET vector = ? WHERE template_id = 7", (b"short",)),
        ("UPDATE embeddings SET vector = ? WHERE template_id = 7", (bytes(4 * DIM),)),
        ("UPDATE embeddings SET vector = ? WHERE template_id = 7", (b"\xff" * 4 * DIM,)),
        ("DELETE FROM embeddings WHERE template_id = 7", ()),
        ("DROP TABLE templates", ()),
    ],
)
def test_rows_that_cannot_be_are_damage(filled, statement: str, values: tuple) -> None:
    folder, _ = filled
    (folder / INDEX_NAME).unlink()
    edit(folder, statement, *values)
    with pytest.raises(StoreCorrupt, match="damaged"):
        open_gallery(folder)


def test_damage_behind_a_good_index_file_is_found_by_check(filled) -> None:
    folder, vectors = filled
    edit(folder, "UPDATE embeddings SET vector = ? WHERE template_id = 7", b"\xff" * 4 * DIM)
    with open_gallery(folder) as gallery:
        assert names_found(gallery, vectors[:1]) == ["person 0"]
        with pytest.raises(StoreCorrupt, match="template #7"):
            gallery.check()


def test_a_database_taken_away_or_replaced_while_open_takes_no_more_writes(tmp_path) -> None:
    with open_gallery(tmp_path / "a") as gallery:
        fill(gallery, 2)
        gallery.compact()
        moved = tmp_path / "a" / "moved"
        (tmp_path / "a" / DB_NAME).rename(moved)
        with pytest.raises(GalleryError, match="gone"):
            gallery.enroll("late", [template(unit(9))])
        shutil.copy(moved, tmp_path / "a" / DB_NAME)
        with pytest.raises(GalleryError, match="replaced"):
            gallery.enroll("late", [template(unit(9))])
        with pytest.raises(GalleryError, match="replaced"):
            gallery.identify(unit(9, 1))


# The index file


def test_to_catch_up_with_a_change_is_not_to_read_the_gallery(filled) -> None:
    folder, _ = filled
    with open_gallery(folder) as gallery:
        revision = gallery.revision
        gallery.enroll("late", [template(unit(99), "l")])
        ticks = []
        with gallery.reading() as view:
            raw = view.connection.connection.dbapi_connection
            raw.set_progress_handler(lambda: ticks.append(0), 1)
            batches = list(view.vectors_since(revision))
            left = view.left_since(revision, named=True)
            raw.set_progress_handler(None, 0)
        assert [len(batch.ids) for batch in batches] == [1] and len(left) == 0
        # SQLite's machine needs some steps a row, and there are sixty people.
        assert 0 < len(ticks) < 120


def test_a_store_that_was_taken_back_is_followed(filled) -> None:
    """As a server's failover can do it, which loses its last commits."""
    folder, vectors = filled
    with open_gallery(folder) as gallery:
        gallery.enroll("lost", [template(unit(98), "l")])
        assert names_found(gallery, unit(98)) == ["lost"]
        with closing(sqlite3.connect(folder / DB_NAME)) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(
                "DELETE FROM templates WHERE identity_id = "
                "(SELECT id FROM identities WHERE name = 'lost')"
            )
            connection.execute("DELETE FROM identities WHERE name = 'lost'")
            connection.execute("UPDATE gallery SET revision = revision - 1")
            connection.commit()
        assert names_found(gallery, unit(98)) == [None]
        assert names_found(gallery, vectors[5, 0]) == ["person 5"]
        gallery.enroll("after", [template(unit(97), "a")])
        assert names_found(gallery, np.stack([unit(97), unit(98)])) == ["after", None]


def test_whoever_reads_it_all_sorts_nothing(filled) -> None:
    """SQLite would sort vectors and crops in a file outside of the gallery's folder."""
    with open_gallery(filled[0]) as gallery, gallery.reading() as view:
        statements = []
        event.listen(
            view.connection, "before_cursor_execute",
            lambda _c, _cursor, statement, parameters, *_: statements.append(
                (statement, parameters)
            ),
        )  # fmt: skip
        everything = (
            view.vectors_since(0), view.vectors_since(0, named=False), view.all_templates(),
            view.all_crops(),
        )  # fmt: skip
        for rows in everything:
            list(rows)
        assert len(statements) == 4
        raw = view.connection.connection.dbapi_connection
        for statement, parameters in statements:
            plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            assert plan and not any("TEMP B-TREE" in step for step in plan), (statement, plan)


@pytest.mark.parametrize("somebody_else", [True, False])
def test_a_gallery_swept_away_in_the_making_is_missed_only_if_there_is_no_other(
    tmp_path, somebody_else: bool
) -> None:
    """Who opens the gallery that was there first, sweeps; SQLite then finds its files gone."""
    db = tmp_path / DB_NAME

    def made_first(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA user_version = 7")

    def swept(connection: Connection) -> None:
        if somebody_else:
            create_database(db, made_first)
        sweep_leftovers(db)
        connection.exec_driver_sql("PRAGMA user_version = 8")
        raise sqlite3.OperationalError("disk I/O error")

    with nullcontext() if somebody_else else pytest.raises(GalleryError, match="disk could not be"):
        create_database(db, swept)
    assert [path.name for path in tmp_path.iterdir()] == ([DB_NAME] if somebody_else else [])
    if somebody_else:
        with closing(sqlite3.connect(db)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (7,)


def test_a_closed_gallery_opens_from_its_index_file(filled, monkeypatch) -> None:
    from gallery.records import ReadTransaction

    folder, vectors = filled
    asked: list[int] = []
    read = ReadTransaction.vectors_since

    def noted(self: ReadTransaction, revision: int) -> Iterator[object]:
        asked.append(revision)
        return read(self, revision)

    monkeypatch.setattr(ReadTransaction, "vectors_since", noted)
    with open_gallery(folder) as gallery:
        assert asked == []
        assert None not in names_found(gallery, vectors)


def flip(position: float):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(position * len(data)), len(data) - 1)] ^= 0x10
        path.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(5000)),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:30]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        *(flip(position) for position in (0, 0.001, 0.01, 0.02, 0.1, 0.5, 1)),
    ],
)
def test_a_lost_or_damaged_index_file_is_rebuilt(filled, damage) -> None:
    folder, vectors = filled
    good = (folder / INDEX_NAME).read_bytes()
    damage(folder / INDEX_NAME)
    with open_gallery(folder) as gallery:
        assert names_found(gallery, vectors) == [f"person {i}" for i in range(60)]
    assert (folder / INDEX_NAME).read_bytes() == good


def test_another_gallery_s_index_file_is_not_used(filled, tmp_path: Path) -> None:
    folder, vectors = filled
    with open_gallery(tmp_path / "other") as other:
        fill(other, 60, seed=5)
    shutil.copy(tmp_path / "other" / INDEX_NAME, folder / INDEX_NAME)
    with open_gallery(folder) as gallery:
        assert names_found(gallery, vectors) == [f"person {i}" for i in range(60)]


def test_an_older_index_file_is_brought_up_to_date(filled, tmp_path: Path) -> None:
    folder, vectors = filled
    older = (folder / INDEX_NAME).read_bytes()
    with open_gallery(folder) as gallery:
        gallery.remove("person 3")
        gallery.merge("person 4", "person 5")
        gallery.enroll("new", [template(unit(777), "new")])
    (folder / INDEX_NAME).write_bytes(older)
    with open_gallery(folder) as gallery:
        found = names_found(gallery, np.concatenate([vectors[3:6, 0], unit(777, 1)]))
        assert found == [None, "person 4", "person 4", "new"]
        assert len(gallery) == 60
        gallery.check()


def test_an_index_file_ahead_of_a_restored_backup_is_not_used(tmp_path: Path) -> None:
    folder, backup = tmp_path / "people", tmp_path / "backup.db"
    with open_gallery(folder) as gallery:
        fill(gallery, 5)
    shutil.copy(folder / DB_NAME, backup)
    with open_gallery(folder) as gallery:
        lost = fill(gallery, 10, seed=3)[:, 0]
    shutil.copy(backup, folder / DB_NAME)
    with open_gallery(folder) as gallery:
        assert len(gallery) == 5
        assert [d.candidates[0].similarity > 0.99 for d in gallery.identify(lost)] == [False] * 10
        # Nor once the revisions have caught up with those of the lost file, closed or not.
        kept = fill(gallery, 10, seed=4)[:, 0]
        shutil.copytree(folder, tmp_path / "crashed")
    with open_gallery(tmp_path / "crashed") as gallery:
        assert None not in names_found(gallery, kept)
        assert [d.candidates[0].similarity > 0.99 for d in gallery.identify(lost)] == [False] * 10
        gallery.check()


def test_check_mends_an_index_that_strayed(filled) -> None:
    folder, vectors = filled
    with open_gallery(folder) as gallery:
        gallery._live._state.people.remove(np.array([1]))
        assert names_found(gallery, vectors[0]) == [None]
        gallery.check()
        assert names_found(gallery, vectors[0]) == ["person 0"]


# Removal


def traces(folder: Path, *secrets: bytes) -> list[str]:
    """The files of ``folder`` that hold any 12 bytes in a row of the secrets."""
    pieces = {s[i : i + 12] for s in secrets for i in range(0, max(1, len(s) - 11), 4)}
    return [
        name for name, data in contents(folder).items() if any(piece in data for piece in pieces)
    ]


def secretive(gallery: Gallery, name: str, seed: int) -> list[bytes]:
    """Enrol a person; returns what must not be found once they are removed."""
    crop = np.random.default_rng(seed).bytes(20_000)
    vectors = unit(seed, 3)
    new = [template(vector, f"{name} photo {i}", crop) for i, vector in enumerate(vectors)]
    gallery.enroll(name, new, metadata={"secret": f"metadata of {name}"})
    return [vectors.tobytes(), crop, name.encode(), f"metadata of {name}".encode()]


def test_a_removed_person_leaves_no_byte_in_the_folder(tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery:
        fill(gallery, 10)
        secrets = secretive(gallery, "Rumpelstiltskin", 500)
        fill(gallery, 10, seed=2)
    with open_gallery(tmp_path) as gallery:
        assert traces(tmp_path, *secrets) == [DB_NAME, INDEX_NAME]
        size = (tmp_path / DB_NAME).stat().st_size
        assert gallery.remove("rumpelstiltskin").vacuumed
        assert traces(tmp_path, *secrets) == []
        assert (tmp_path / DB_NAME).stat().st_size < size - 60_000
        assert gallery.identify(unit(500, 3))[0].match is None
    assert traces(tmp_path, *secrets) == []
    assert (tmp_path / INDEX_NAME).exists()
    with open_gallery(tmp_path) as gallery:
        assert gallery.count() == (10, 20)
        gallery.check()


def test_a_removed_template_and_a_merged_name_leave_no_byte(tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery:
        fill(gallery, 3)
        vector = unit(501)
        _, [template_id] = gallery.enroll("person 0", [template(vector, "x", b"crop" * 999)])
        gallery.enroll("Rumpelstiltskin", [template(unit(502), "y")])
        assert gallery.remove_template(template_id).vacuumed
        gallery.merge("person 1", "Rumpelstiltskin")
        assert traces(tmp_path, vector.tobytes(), b"crop" * 9, b"Rumpelstiltskin") == []
    assert traces(tmp_path, vector.tobytes(), b"crop" * 9, b"Rumpelstiltskin") == []


def test_a_removal_beside_a_reader_says_that_it_has_to_wait(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("gallery.sqlite.COMPACT_TIMEOUT_S", 0.05)
    with open_gallery(tmp_path) as gallery, open_gallery(tmp_path) as other:
        fill(gallery, 3)
        secrets = secretive(gallery, "Rumpelstiltskin", 503)
        with other.reading() as view:
            assert view.count_templates() == 6
            removal = gallery.remove("Rumpelstiltskin")
            assert not removal.vacuumed and "reading" in (removal.problem or "")
            assert gallery.identify(unit(503, 1))[0].match is None
            assert view.count_templates() == 6
        assert other.identify(unit(503, 1))[0].match is None
        assert gallery.compact() is None
        assert traces(tmp_path, *secrets) == []


def test_an_index_file_with_a_removed_person_cannot_come_back(tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery:
        fill(gallery, 3)
        secrets = secretive(gallery, "Rumpelstiltskin", 504)
        late = open_gallery(tmp_path)  # has the vectors in memory, and has not looked since
        gallery.remove("Rumpelstiltskin")
        late.close()
        assert traces(tmp_path, *secrets) == []
    assert traces(tmp_path, *secrets) == []


DIE_BEFORE_COMPACTING = """
import os, signal, sys
from pathlib import Path
from gallery import Gallery
from gallery.store import Store
Store.compact = lambda self: os.kill(os.getpid(), signal.SIGKILL)
Gallery.open(sys.argv[1]).remove("Rumpelstiltskin")
"""


def test_a_removal_cut_short_is_finished_when_the_gallery_is_next_opened(tmp_path) -> None:
    with open_gallery(tmp_path) as gallery:
        fill(gallery, 3)
        secrets = secretive(gallery, "Rumpelstiltskin", 505)
    assert run(DIE_BEFORE_COMPACTING, tmp_path).returncode == -signal.SIGKILL
    assert traces(tmp_path, *secrets) != [] and not (tmp_path / INDEX_NAME).exists()
    with open_gallery(tmp_path) as gallery:
        assert traces(tmp_path, *secrets) == []
        assert gallery.count() == (3, 3)


# Read-only


LOOK_AND_TRY_TO_WRITE = """
import json, os, sys, tempfile
import numpy as np
from pathlib import Path
from facerec.errors import GalleryError
from gallery import Gallery
from tests.gallery_samples import CONTRACT, TABLE, fill, open_gallery, template, unit
if "nobody" in sys.argv:
    # Python itself may be out of nobody's reach: use everything once, so that it is loaded.
    with tempfile.TemporaryDirectory() as folder, open_gallery(Path(folder)) as gallery:
        gallery.identify(fill(gallery, 1)[0])
    os.setgid(65534)
    os.setuid(65534)
with Gallery.open(sys.argv[1], contract=CONTRACT, thresholds=TABLE, pack_name="other") as gallery:
    found = gallery.identify(unit(0, 1))[0].match.name
    said = []
    for write in (
        lambda: gallery.enroll("Eve", [template(unit(9))]),
        lambda: gallery.rename("person 0", "Eve"),
        lambda: gallery.remove("person 0"),
    ):
        try:
            write()
        except GalleryError as exc:
            said.append(str(exc))
    print(json.dumps([gallery.read_only, found, gallery.count(), said]))
"""


@pytest.fixture
def world_readable() -> Iterator[Path]:
    """A folder that another user can enter (pytest's own cannot be)."""
    folder = Path(tempfile.mkdtemp(prefix="facerec-test-"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def assert_read_only_works(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
    read_only, found, count, said = json.loads(result.stdout)
    assert (read_only, found, count) == (True, "person 0", [3, 3])
    assert len(said) == 3
    assert all("read-only" in line and "unchanged" in line for line in said)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_a_user_who_may_not_write_can_still_identify(world_readable, open_elsewhere) -> None:
    folder = world_readable / "people"
    gallery = open_gallery(folder)
    fill(gallery, 3, seed=0)
    if not open_elsewhere:
        gallery.close()
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    # Root may write anywhere, so it becomes nobody.
    who = ["nobody"] if os.geteuid() == 0 else []
    before = contents(folder)
    assert_read_only_works(run(LOOK_AND_TRY_TO_WRITE, folder, *who))
    after = contents(folder)
    assert {k: v for k, v in after.items() if "-shm" not in k} == {
        k: v for k, v in before.items() if "-shm" not in k
    }
    gallery.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "facerec-test", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("needs the mount command")
    if done.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_mounted_read_only_can_be_identified_from(small_disk: Path) -> None:
    with open_gallery(small_disk / "people") as gallery:
        fill(gallery, 3, seed=0)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    assert_read_only_works(run(LOOK_AND_TRY_TO_WRITE, small_disk / "people"))
    with pytest.raises(GalleryError, match="cannot be made"):
        open_gallery(small_disk / "more")


# A full disk


def enrol_until_refused(gallery: Gallery, crop: bytes, limit: int = 500) -> tuple[list[str], str]:
    """Names acknowledged, and what was said of the first that was not."""
    acknowledged: list[str] = []
    for i in range(limit):
        name = f"guest {i}"
        try:
            gallery.enroll(name, [template(unit(5000 + i), name, crop)])
        except GalleryError as exc:
            return acknowledged, str(exc)
        acknowledged.append(name)
    raise AssertionError("the disk did not fill up")


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(200_000))
    folder = small_disk / "people"
    gallery = open_gallery(folder)
    names, said = enrol_until_refused(gallery, os.urandom(8000))
    assert len(names) > 5 and "disk" in said and "unchanged" in said
    vectors = np.stack([unit(5000 + i) for i in range(len(names))])
    assert names_found(gallery, vectors) == names
    assert names_found(gallery, unit(5000 + len(names), 1)) == [None]
    gallery.close()
    with open_gallery(folder) as gallery:
        assert names_found(gallery, vectors) == names
        gallery.check()
        with pytest.raises(GalleryError):
            gallery.export(small_disk / "export.facerec")
        assert [p.name for p in small_disk.iterdir() if "export" in p.name] == []
        with pytest.raises(GalleryError, match="full"):
            gallery.remove(names[0])
        assert names_found(gallery, vectors) == names
    ballast.unlink()
    with open_gallery(folder) as gallery:
        assert names_found(gallery, vectors) == names
        gallery.enroll("late", [template(unit(9), "late")])
        gallery.remove(names[0])
        assert names_found(gallery, vectors) == [None, *names[1:]]


def test_no_gallery_is_made_on_a_full_disk(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with pytest.raises(OSError), ballast.open("wb") as stream:
        while True:
            stream.write(bytes(4096))
    with pytest.raises(GalleryError, match=r"full|cannot be made"):
        open_gallery(small_disk / "people")
    ballast.unlink()
    with open_gallery(small_disk / "people") as gallery:
        fill(gallery, 1)


FILL_UNDER_A_LIMIT = """
import json, resource, sys
from pathlib import Path
from tests.gallery_samples import open_gallery
from tests.test_gallery_store import enrol_until_refused, names_found
gallery = open_gallery(Path(sys.argv[1]))
limit = 1_000_000  # of any one file, the log too
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
names, said = enrol_until_refused(gallery, bytes(8000))
print(json.dumps([names, said, gallery.count()]))
gallery.close()
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_writes_that_fail_midway_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    result = run(FILL_UNDER_A_LIMIT, tmp_path)
    assert result.returncode == 0, result.stderr
    names, said, count = json.loads(result.stdout)
    assert len(names) > 5 and count == [len(names)] * 2
    assert "disk" in said and "unchanged" in said
    with open_gallery(tmp_path) as gallery:
        vectors = np.stack([unit(5000 + i) for i in range(len(names))])
        assert names_found(gallery, vectors) == names
        gallery.check()


def test_a_store_says_what_it_is(filled) -> None:
    folder, _ = filled
    with Gallery.open(folder) as gallery:
        assert gallery.folder == folder and not gallery.read_only
        assert gallery.contract.contract_id == CONTRACT.contract_id
