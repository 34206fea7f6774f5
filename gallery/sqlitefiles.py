"""Whole files of SQLite: a copy while others write, and one database in another's place.

Beside :mod:`gallery.sqlite`, which is about connections. Imports the core, SQLAlchemy,
and that module.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from facerec.errors import GalleryError, StoreCorrupt
from gallery import sqlite
from gallery.interruptible import run_with_ticks

Tick = Callable[[int, int], object]
"""Called with how many bytes of how many are done; what it raises stops the work."""

_ALONE_TIMEOUT_S = 5.0
SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite may keep beside a database."""


def copy_into(db: Path, target: Path, tick: Tick) -> None:
    """Write the database as it is at this moment to ``target``, an empty file.

    Others may write meanwhile: the copy is of one moment, without their changes, without
    free space, and without a byte of what was removed before. It is in no WAL mode, so that
    it is one file. Raises GalleryError, naming the target for a disk that is full.
    """
    engine = sqlite.connect(db, sqlite.readable_mode(db))
    try:
        with sqlite.translated(db), engine.connect() as connection:
            pages, free, size = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
            total = max(1, (pages - free) * size)
            run_with_ticks(
                connection,
                lambda raw: _vacuum_into(raw, target),
                lambda: tick(min(target.stat().st_size, total), total),
            )
    finally:
        engine.dispose()


def _vacuum_into(raw: sqlite3.Connection, target: Path) -> None:
    try:
        raw.execute("VACUUM INTO ?", (sqlite.file_uri(target),))
    except sqlite3.Error as exc:
        if any(word in str(exc) for word in ("full", "disk I/O", "unable to open")):
            raise GalleryError(
                f"{target.parent.parent}: there is no room for the copy, or it cannot be written "
                f"({exc}). The gallery is unchanged."
            ) from exc
        raise


@contextmanager
def alone(db: Path) -> Iterator[None]:
    """Keep everybody else out of the database at ``db`` while another takes its place.

    Its log is merged into it and gone by then, so that no later database meets it. Nobody
    who was waiting finds a way back to the old file. A damaged database cannot be locked,
    nor can anybody open it to write: it and its log are left as they are.
    Raises GalleryError where another process has the gallery open.
    """
    try:
        sqlite.check_file(db)
        raw = _exclusive(db)
    except StoreCorrupt:
        yield
        return
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            raw.execute("ROLLBACK")
            raw.execute("PRAGMA journal_mode = WAL")
        raise
    finally:
        raw.close()


def _exclusive(db: Path) -> sqlite3.Connection:
    uri = f"{sqlite.file_uri(db)}?mode=rw"
    raw = sqlite3.connect(uri, uri=True, timeout=_ALONE_TIMEOUT_S, isolation_level=None)
    try:
        # Not in WAL mode: a process that waits at the old file would take up the log of the
        # new one, which is found by name.
        raw.execute("PRAGMA journal_mode = DELETE")
        raw.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as exc:
        raw.close()
        if "locked" in str(exc):
            raise GalleryError(_in_use(db)) from exc
        with sqlite.translated(db):
            raise
    return raw


def _in_use(db: Path) -> str:
    return (
        f"{db}: the gallery is open elsewhere. Close every program that uses it, the web app "
        "too, and try again. The gallery is unchanged."
    )


def remove_side_files(db: Path) -> None:
    """Remove what SQLite kept beside a database that is no more. Raises GalleryError."""
    for ending in SIDE_FILES:
        path = db.with_name(db.name + ending)
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise GalleryError(f"{path}: cannot be removed ({exc.strerror or exc})") from exc


def publish(new: Path, db: Path, *, replace: bool) -> None:
    """Give the closed database ``new`` the name ``db``, at once.

    replace: in the place of the one that is there. Raises OSError; FileExistsError where
    there is one and it was not to be replaced.
    """
    if replace:
        new.replace(db)
        sqlite.sync_folder(db.parent)
    else:
        sqlite.publish(new, db)


def merge_log(db: Path) -> None:
    """Bring all that its log holds into the database; closing it would not say if that failed.

    Raises GalleryError.
    """
    with sqlite.translated(db), closing(sqlite3.connect(db, isolation_level=None)) as raw:
        if raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise GalleryError(_in_use(db))


def leave_wal_mode(db: Path) -> None:
    """Make it one file that can be read where nobody can write. Raises GalleryError."""
    with closing(_exclusive(db)):
        pass
