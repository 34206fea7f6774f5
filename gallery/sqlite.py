"""SQLite: files, connections, compaction, and its errors in our words.

All that is particular to SQLite lives here: what :mod:`gallery.database` asks for, and
files. Imports the core, SQLAlchemy, and this package's schema.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from facerec.errors import GalleryError, StoreCorrupt
from gallery.database import COMPACT_BYTES
from gallery.interruptible import run_with_ticks
from gallery.schema import Base
from gallery.scratch import sweep

DB_NAME = "gallery.db"
BUSY_TIMEOUT_S = 30.0
"""How long a write waits for another process to finish its own."""
COMPACT_TIMEOUT_S = 5.0
"""How long a compaction waits for readers; it can always be done later."""
QUICK_CHECK_BYTES = 32 * 1024 * 1024
"""Databases up to this size have their structure checked whenever they are opened."""

_MAGIC = b"SQLite format 3\0"
_APPLICATION_ID = 0x46524543  # "FREC", at byte 68 of the file
_PAGE_BYTES = 8192  # three vectors of 512 numbers; the usual 4096 holds one and a gap
_CREATING = ".creating-"
_RESTORE = (
    "Nothing was written. Restore the folder from a backup, or import an export into a new folder."
)

Mode = Literal["rw", "ro", "immutable"]


class SqliteDatabase:
    """A gallery's file: a :class:`gallery.database.Database`.

    Raises StoreCorrupt for a damaged file, having written nothing; GalleryError for one of
    another program.
    """

    def __init__(self, db: Path) -> None:
        check_file(db)
        self.db = db
        self.read_only = True
        self._mode = readable_mode(db)
        self._connect(self._mode)
        self._file = self._file_id()

    @property
    def name(self) -> str:
        return str(self.db)

    @property
    def gallery(self) -> str:
        return str(self.db.parent)

    def allow_writing(self) -> None:
        if self._mode != "immutable" and is_writable(self.db):
            self._engine.dispose()
            self._connect("rw")
            self.read_only = False
            self._mend()

    def _mend(self) -> None:
        """Undo what a restore left that was killed: another mode, and files of its own."""
        sweep_leftovers(self.db)
        with translated(self.db), self._engine.connect() as connection:
            if connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() != "wal":
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")

    @contextmanager
    def glancing(self) -> Iterator[Connection]:
        self._require_same_file()
        with translated(self.db), self._engine.connect() as connection:
            yield connection

    def glance(self, query: str) -> Sequence[tuple[Any, ...]]:
        """Past SQLAlchemy, which takes ten times as long as SQLite does."""
        self._require_same_file()
        with translated(self.db), closing(self._engine.raw_connection()) as connection:
            rows: list[tuple[Any, ...]] = connection.cursor().execute(query).fetchall()
            return rows

    @contextmanager
    def viewing(self) -> Iterator[Connection]:
        self._require_same_file()
        with translated(self.db), self._view.begin() as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        if self.read_only:
            raise GalleryError(
                f"{self.db}: the gallery is read-only here: this user may not write to its "
                "folder, or the disk is full or mounted read-only. The gallery is unchanged."
            )
        with translated(self.db), self._change.begin() as connection:
            self._require_same_file()
            yield connection

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        engine = connect(self.db, "rw")
        try:
            with translated(self.db), engine.connect() as connection:
                # Else a table that is dropped, to be made anew, takes along what refers to it.
                connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                self._require_same_file()
                yield connection
                check_references(connection, self.db)
                connection.exec_driver_sql("COMMIT")
        finally:
            engine.dispose()

    def check_structure(self, connection: Connection, *, thorough: bool) -> None:
        if thorough or self.db.stat().st_size <= QUICK_CHECK_BYTES:
            check_structure(connection, self.db, thorough=thorough)

    @property
    def large(self) -> bool:
        with suppress(OSError):
            return self.db.stat().st_size > COMPACT_BYTES
        return False

    def compact(self, *, now: bool) -> None:
        rewrite = now or not self.large
        compact(self._engine, self.db, rewrite=rewrite)
        if not rewrite:
            raise GalleryError(
                f"{self.db}: what was removed is overwritten with zeros, but fragments of it may "
                f"be left. A database of {self.db.stat().st_size / 1e6:,.0f} MB is not rewritten "
                "at every removal; in a quiet hour run 'facerec compact'"
            )

    def close(self) -> None:
        self._engine.dispose()

    def _connect(self, mode: Mode) -> None:
        self._engine = connect(self.db, mode)
        self._view = self._engine.execution_options(begin="BEGIN")
        self._change = self._engine.execution_options(begin="BEGIN IMMEDIATE")

    def _file_id(self) -> tuple[int, int]:
        try:
            status = self.db.stat()
        except OSError as exc:
            raise GalleryError(f"{self.db}: the gallery is gone ({exc.strerror or exc})") from exc
        return status.st_dev, status.st_ino

    def _require_same_file(self) -> None:
        """A database that was moved or replaced would take writes that nobody sees again."""
        if self._file_id() != self._file:
            raise GalleryError(f"{self.db}: the file was replaced while it was open; open it anew")


def file_uri(path: Path) -> str:
    """What SQLite opens it by, whatever bytes its name is made of."""
    return f"file:{quote(os.fsencode(path.absolute()))}"


def connect(db: Path, mode: Mode, *, create: bool = False) -> Engine:
    """An engine on ``db``; connections open transactions as their option ``begin`` says.

    ``rw`` never creates a file unless ``create``. ``ro`` leaves the database alone, even
    when it closes. ``immutable`` reads a file that nobody can change, without any lock.
    """
    access = "rwc" if create else {"rw": "rw", "ro": "ro", "immutable": "ro&immutable=1"}[mode]
    uri = f"{file_uri(db)}?mode={access}"

    def open_connection() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cell_size_check = ON")
        if mode == "rw":
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA synchronous = FULL")
        return connection

    engine = create_engine(
        "sqlite://", creator=open_connection, poolclass=QueuePool, pool_size=8, max_overflow=-1
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if statement := connection.get_execution_options().get("begin"):
            connection.exec_driver_sql(statement)

    return engine


def create_database(db: Path, fill: Callable[[Connection], None]) -> None:
    """Make ``db`` with all tables, filled by ``fill``; it appears whole or not at all.

    Returns quietly where another process made it first. Raises GalleryError.
    """
    temporary = db.with_name(f"{_CREATING}{uuid.uuid4().hex}.db")
    engine = connect(temporary, "rw", create=True)
    try:
        with translated(db):
            with engine.connect() as connection:
                connection.exec_driver_sql(f"PRAGMA page_size = {_PAGE_BYTES}")
                connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            with engine.execution_options(begin="BEGIN IMMEDIATE").begin() as connection:
                Base.metadata.create_all(connection)
                fill(connection)
            engine.dispose()
    except GalleryError:
        # Whoever published first, and opened, swept this one away while it was being made.
        if db.exists():
            return
        raise
    else:
        try:
            publish(temporary, db)
        except FileExistsError:
            return
        except OSError as exc:
            raise GalleryError(f"{db}: cannot be created ({exc.strerror or exc})") from exc
    finally:
        engine.dispose()
        for leftover in temporary.parent.glob(temporary.name + "*"):
            leftover.unlink(missing_ok=True)


def check_file(db: Path) -> None:
    """Look at the file's first bytes, before SQLite may touch it.

    SQLite takes an empty file for a new database, and drops the log beside it. Raises
    StoreCorrupt for what is no database, GalleryError for another program's.
    """
    try:
        with db.open("rb") as stream:
            head = stream.read(100)
    except OSError as exc:
        raise GalleryError(f"{db}: cannot be read ({exc.strerror or exc})") from exc
    if not head:
        raise StoreCorrupt(f"{db}: the database is damaged: the file is empty. {_RESTORE}")
    if len(head) < 100 or not head.startswith(_MAGIC):
        raise StoreCorrupt(
            f"{db}: the database is damaged: it does not begin as one does. {_RESTORE}"
        )
    if int.from_bytes(head[68:72], "big") != _APPLICATION_ID:
        raise GalleryError(f"{db}: this database belongs to another program, not to facerec")


def readable_mode(db: Path) -> Mode:
    """How ``db`` can be opened without changing it, for a first look or a read-only disk.

    Where a process was killed while it changed the mode, the change is undone first.
    """
    journal = db.with_name(db.name + "-journal")
    if _holds_bytes(journal) and is_writable(db):
        _roll_back(db)
    engine = connect(db, "ro")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
        return "ro"
    except DBAPIError as exc:
        log = db.with_name(db.name + "-wal")
        cannot_lock = any(word in str(exc.orig) for word in ("unable to open", "readonly"))
        if cannot_lock and not _holds_bytes(log) and not _holds_bytes(journal):
            return "immutable"
        raise _explained(db, exc) from exc
    finally:
        engine.dispose()


def _holds_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _roll_back(db: Path) -> None:
    """As SQLite does by itself for whoever may write."""
    engine = connect(db, "rw")
    try:
        with translated(db), engine.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    finally:
        engine.dispose()


def is_writable(db: Path) -> bool:
    """Whether this process may write the database; SQLite needs the folder for its log."""
    return os.access(db, os.W_OK) and os.access(db.parent, os.W_OK)


def check_structure(connection: Connection, db: Path, *, thorough: bool) -> None:
    """Walk the database's pages, and if ``thorough`` its indexes and references too.

    Raises StoreCorrupt with what SQLite found first.
    """
    pragma = "integrity_check" if thorough else "quick_check"
    found = connection.exec_driver_sql(f"PRAGMA {pragma}(1)").scalar_one()
    if found != "ok":
        said = " ".join(str(found).replace("*** in database main ***", "").split())
        raise StoreCorrupt(f"{db}: the database is damaged: {said}. {_RESTORE}")
    if thorough:
        check_references(connection, db)


def check_references(connection: Connection, db: Path) -> None:
    """Raises StoreCorrupt for a row that refers to one that is not there."""
    if row := connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise StoreCorrupt(f"{db}: a row of {row[0]} refers to nothing in {row[2]}. {_RESTORE}")


def compact(engine: Engine, db: Path, *, rewrite: bool) -> None:
    """Rewrite the file without its free space, if ``rewrite``, and empty the log beside it.

    Without that, bytes of removed rows stay here and there: SQLite overwrites a row that is
    removed (secure_delete), but not the copies of it that moving rows between pages left.
    Raises GalleryError where another process is in the way, or the disk too full: the
    database then holds the same rows as before.
    """
    with translated(db), engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(COMPACT_TIMEOUT_S * 1e3)}")
        try:
            if rewrite:
                run_with_ticks(connection, lambda raw: raw.execute("VACUUM"), lambda: None)
            emptied = _empty_log(connection)
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_S * 1e3)}")
    if not emptied:
        raise GalleryError(f"{db}: another process or thread is reading the gallery")


def _empty_log(connection: Connection) -> bool:
    """Whether the log could be emptied. SQLite waits for readers, but not for a checkpoint."""
    deadline = time.monotonic() + COMPACT_TIMEOUT_S
    while connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def translated(db: Path) -> Iterator[None]:
    """Raise what SQLAlchemy and SQLite raise as an error of our tree, in a sentence."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as exc:
        raise _explained(db, exc) from exc


def _explained(db: Path, exc: SQLAlchemyError | sqlite3.Error) -> GalleryError:
    said = str(exc.orig if isinstance(exc, DBAPIError) else exc).splitlines()[0]
    text = said.lower()
    if any(word in text for word in ("malformed", "not a database", "decode to utf-8")):
        return StoreCorrupt(f"{db}: the database is damaged ({said}). {_RESTORE}")
    if "no such table" in text or "no such column" in text:
        return StoreCorrupt(f"{db}: the database is damaged ({said}). {_RESTORE}")
    unchanged = "The gallery is unchanged."
    if "locked" in text or "busy" in text:
        return GalleryError(f"{db}: another process has been using it for too long. {unchanged}")
    if "readonly" in text:
        return GalleryError(f"{db}: the gallery is read-only here. {unchanged}")
    if "full" in text:
        return GalleryError(f"{db}: the disk is full ({said}). {unchanged} Make room and retry.")
    if "disk i/o" in text:
        return GalleryError(
            f"{db}: the disk could not be read or written ({said}). {unchanged} "
            "Is it full, or over a quota?"
        )
    return GalleryError(f"{db}: the database refused: {said}. {unchanged}")


def sweep_leftovers(db: Path) -> None:
    """Remove what processes left beside ``db`` that were killed while they made or restored it."""
    sweep(db.parent)
    with suppress(OSError):
        # Whoever is making a database now, where there is one already, makes it in vain.
        for leftover in db.parent.glob(f"{_CREATING}*"):
            leftover.unlink(missing_ok=True)


def publish(temporary: Path, db: Path) -> None:
    """Give the finished file its name, unless that is taken (FileExistsError)."""
    try:
        os.link(temporary, db)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, or swept away
        if db.exists():
            raise FileExistsError(db) from None
        temporary.rename(db)
    sync_folder(db.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename within ``folder`` survive a loss of power, where the system can."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
