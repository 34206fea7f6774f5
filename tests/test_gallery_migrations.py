"""Galleries of earlier versions: upgraded whole, or left as they are and refused."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from facerec.errors import GalleryError, StoreCorrupt
from gallery import Gallery, migrations, sqlite
from gallery.location import Location
from gallery.schema import SCHEMA_VERSION, Base
from gallery.sqlite import DB_NAME
from gallery.store import Store
from tests.gallery_engines import PostgresServer
from tests.gallery_samples import CONTRACT, JPEG, TABLE, open_gallery, template, unit

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "gallery_v1.sql"
"""A dump of what the last facerec of schema 1 wrote: person 0 and 1 (merged with person 2) with
vectors of unit(0, 6), Zoë with two crops, and somebody who had the highest ids and was removed."""


def make_v1(folder: Path) -> Path:
    """A gallery folder as the facerec of schema 1 left it; returns the database."""
    folder.mkdir(parents=True)
    db = folder / DB_NAME
    with sqlite3.connect(db) as opened:
        opened.execute("PRAGMA page_size = 8192")
        opened.execute("PRAGMA application_id = 0x46524543")
        opened.execute("PRAGMA journal_mode = WAL")
        opened.executescript(GOLDEN.read_text("utf-8"))
    opened.close()
    return db


def query(db: Path, statement: str) -> list[tuple]:
    with sqlite3.connect(f"file:{db}?mode=ro", uri=True) as opened:
        found = opened.execute(statement).fetchall()
    opened.close()
    return found


def dump(db: Path) -> list[str]:
    with sqlite3.connect(f"file:{db}?mode=ro", uri=True) as opened:
        lines = list(opened.iterdump())
    opened.close()
    return lines


def test_a_gallery_of_version_1_is_upgraded_and_keeps_everything(tmp_path: Path) -> None:
    db = make_v1(tmp_path / "people")
    before = {
        table: query(db, f"SELECT {columns} FROM {table} ORDER BY 1")
        for table, columns in (
            ("identities", "id, name, name_key, details, created_at"),
            ("templates", "id, identity_id, source, content_sha256, det_score, created_at"),
            ("embeddings", "template_id, vector"),
            ("crops", "template_id, jpeg, landmarks"),
            ("removals", "template_id, revision"),
            ("sqlite_sequence", "name, seq"),
        )
    }
    assert len(before["templates"]) == 8 and len(before["crops"]) == 2
    with Gallery.open(tmp_path / "people", contract=CONTRACT, create=False) as gallery:
        assert [person.name for person in gallery.people()] == ["person 0", "person 1", "Zoë"]
        assert (gallery.thresholds, gallery.pack_name) == (TABLE, "sample")
        assert gallery.person("Zoë").metadata == {"badge": 7, "äöü": None}
        assert gallery.crop(gallery.templates("Zoë")[0].id) == JPEG + b"crop" * 5
        found = gallery.identify(np.concatenate([unit(0, 6), unit(90, 1)]), k=1, threshold=0.99)
        names = [decision.match and decision.match.name for decision in found]
        assert names == ["person 0"] * 2 + ["person 1"] * 4 + ["Zoë"]
        gallery.check()
    for table, rows in before.items():
        columns = {"embeddings": "template_id, vector"}.get(table)
        after = query(db, f"SELECT {columns or _columns(table)} FROM {table} ORDER BY 1")
        assert [row for row in after if row[0] not in ("generations",)] == rows, table
    with open_gallery(tmp_path / "people") as gallery:
        person, [template_id] = gallery.enroll("new", [template(unit(7), "n")])
        used = dict(before["sqlite_sequence"])
        assert person.id > used["identities"] and template_id > used["templates"]
        gallery.remove("person 1")
        gallery.check()


def _columns(table: str) -> str:
    return {
        "identities": "id, name, name_key, details, created_at",
        "templates": "id, identity_id, source, content_sha256, det_score, created_at",
        "crops": "template_id, jpeg, landmarks",
        "removals": "template_id, revision",
        "sqlite_sequence": "name, seq",
    }[table]


def differences(connection: Connection) -> list[Any]:
    """What Alembic would change to get from the tables there are to those of the schema."""
    options = {"compare_type": True, "version_table": "none"}
    return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


def test_both_ways_lead_to_the_same_tables(tmp_path: Path) -> None:
    """Made at once, from the dump of version 1, and by every step from nothing."""
    make_v1(tmp_path / "upgraded")
    for name in ("made", "upgraded"):
        open_gallery(tmp_path / name).close()
    engine = sqlite.connect(tmp_path / "steps.db", "rw", create=True)
    with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
        migrations.run(connection, from_version=0, to_version=SCHEMA_VERSION)
    engine.dispose()
    shapes = []
    for db in (tmp_path / "made" / DB_NAME, tmp_path / "upgraded" / DB_NAME, tmp_path / "steps.db"):
        engine = sqlite.connect(db, "ro")
        with engine.connect() as connection:
            assert differences(connection) == []
        engine.dispose()
        shapes.append(shape(db))
        revision = migrations.revision_of(SCHEMA_VERSION)
        assert query(db, "SELECT * FROM alembic_version") == [(revision,)]
    assert shapes[0] == shapes[1] == shapes[2]


def shape(db: Path) -> dict[str, object]:
    """All that SQLite knows of each table, apart from the order of what has none."""
    tables = [row[0] for row in query(db, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    known: dict[str, object] = {}
    for table in tables:
        columns = {row[1:] for row in query(db, f"PRAGMA table_xinfo({table})")}
        references = {row[2:] for row in query(db, f"PRAGMA foreign_key_list({table})")}
        indexes = {
            (unique, tuple(query(db, f"SELECT name FROM pragma_index_info('{name}')")))
            for _, name, unique, *_ in query(db, f"PRAGMA index_list({table})")
        }
        sql = query(db, f"SELECT sql FROM sqlite_master WHERE name = '{table}'")[0][0].upper()
        known[table] = columns, references, indexes, "AUTOINCREMENT" in sql, "CHECK" in sql
    return known


def test_version_1_as_the_steps_make_it_is_the_one_that_was_released(tmp_path: Path) -> None:
    released = make_v1(tmp_path / "released")
    engine = sqlite.connect(tmp_path / "steps.db", "rw", create=True)
    with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
        migrations.run(connection, from_version=0, to_version=1)
    engine.dispose()
    steps = shape(tmp_path / "steps.db")
    del steps["alembic_version"]
    assert steps == shape(released)


DIE_AT = """
import os, signal, sys
from sqlalchemy import event
from gallery import Gallery, sqlite
count, real = 0, sqlite.connect
def connect(*args, **options):
    engine = real(*args, **options)
    @event.listens_for(engine, "before_cursor_execute")
    def count_statements(connection, cursor, statement, *_):
        global count
        if statement.lstrip().startswith(("CREATE", "INSERT", "DROP", "ALTER", "UPDATE", "COMMIT")):
            count += 1
            if count > int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
    return engine
sqlite.connect = connect
Gallery.open(sys.argv[1], create=False).close()
print(count)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_an_upgrade_that_is_killed_leaves_version_1(tmp_path: Path) -> None:
    model = make_v1(tmp_path / "model")
    before = dump(model)

    def upgrade(at: int) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path / f"killed-{at}"
        folder.mkdir()
        shutil.copy(model, folder / DB_NAME)
        done = subprocess.run(
            [sys.executable, "-c", DIE_AT, str(folder), str(at)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return folder, done

    steps = int(upgrade(10_000)[1].stdout)
    assert steps > 30
    for at in (0, 1, steps // 3, 2 * steps // 3, steps - 1):  # the last is the COMMIT
        folder, done = upgrade(at)
        assert done.returncode == -signal.SIGKILL
        assert dump(folder / DB_NAME) == before
        with open_gallery(folder) as gallery:
            assert gallery.count() == (3, 8)
            gallery.check()


def test_two_that_open_it_at_once_upgrade_it_once(tmp_path: Path, caplog) -> None:
    make_v1(tmp_path / "people")
    stores: list[Store] = []
    start = threading.Barrier(4)

    def open_it() -> None:
        start.wait()
        stores.append(Store.open(Location(folder=tmp_path / "people")))

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    assert len([r for r in caplog.records if "upgrading" in r.message]) == 1
    for store in stores:
        store.check()
        store.close()


def test_a_read_only_gallery_of_version_1_is_refused(tmp_path: Path, monkeypatch) -> None:
    db = make_v1(tmp_path / "people")
    before = dump(db)
    monkeypatch.setattr("gallery.sqlite.is_writable", lambda db: False)
    with pytest.raises(GalleryError, match=r"earlier facerec.*read-only.*Open it once"):
        open_gallery(tmp_path / "people")
    assert dump(db) == before


def test_a_damaged_gallery_of_version_1_is_not_upgraded(tmp_path: Path) -> None:
    db = make_v1(tmp_path / "people")
    with sqlite3.connect(db) as opened:
        opened.execute("DELETE FROM identities WHERE name = 'Zoë'")
    opened.close()
    before = dump(db)
    with pytest.raises(StoreCorrupt, match=r"refers to nothing"):
        open_gallery(tmp_path / "people")
    assert dump(db) == before


def test_a_backup_of_version_1_is_restored_and_upgraded(tmp_path: Path) -> None:
    import dataclasses
    import hashlib
    import json

    from gallery.backup import back_up, read_backup, restore

    db = make_v1(tmp_path / "people")
    with sqlite3.connect(db) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    opened.close()
    data = db.read_bytes()
    shutil.copytree(tmp_path / "people", tmp_path / "upgraded")
    back_up(tmp_path / "upgraded", tmp_path / "b")
    about = dataclasses.asdict(read_backup(tmp_path / "b")) | {
        "schema_version": 1,
        "database_bytes": len(data),
        "database_sha256": hashlib.sha256(data).hexdigest(),
    }
    (tmp_path / "b").write_bytes(data + b"\n" + json.dumps(about).encode() + b"\n")
    restore(tmp_path / "b", tmp_path / "restored")
    with open_gallery(tmp_path / "restored") as gallery:
        assert gallery.count() == (3, 8)
        gallery.check()


def test_a_gallery_on_postgresql_is_made_at_the_last_step(postgres_server: PostgresServer) -> None:
    location = Location.of(postgres_server.url("migrations"))
    Store.create(location, CONTRACT, "sample", TABLE)
    store = Store.open(location)
    try:
        with store.database.glancing() as connection:
            found = differences(connection)  # the mark of ours on it is a comment
            assert [change for change in found if change[0] != "remove_table_comment"] == []
            marked = connection.exec_driver_sql("SELECT version_num FROM alembic_version").all()
            assert [tuple(row) for row in marked] == [(migrations.revision_of(SCHEMA_VERSION),)]
        migrations.upgrade(store.database)  # nothing to do
        with pytest.raises(GalleryError), store.database.migrating() as connection:
            connection.exec_driver_sql("CREATE TABLE half_made (id int)")
            connection.exec_driver_sql("nonsense")
        with store.database.glancing() as connection:
            assert connection.exec_driver_sql("SELECT to_regclass('half_made')").scalar() is None
        store.check()
    finally:
        store.close()
