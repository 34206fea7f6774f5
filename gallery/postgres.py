"""PostgreSQL: connections, creation, compaction.

All that is particular to PostgreSQL lives here: what :mod:`gallery.database` asks for.
Imports the core, SQLAlchemy, and this package's schema, location and errors in words
(:mod:`gallery.postgreserrors`); psycopg as the first connection is opened.

Writers take turns by the lock of the gallery's own row. Nothing here waits for ever: the
server cancels a statement after the location's ``timeout_s``, and where the server itself
has stopped answering, the connection is closed from this side.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, inspect, select, text
from sqlalchemy.engine import URL

from facerec.errors import ConfigError, GalleryError
from gallery.database import COMPACT_BYTES
from gallery.location import Location
from gallery.postgreserrors import UNCHANGED, translated
from gallery.schema import Base, MetaRow

CONNECT_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 30.0
"""How long a write waits for another process to finish its own."""
COMPACT_TIMEOUT_S = 5.0
"""How long a compaction waits for readers; it can always be done later."""

_GRACE_S = 2.0
"""How much longer than the server's own time-out this side waits."""
_MARK = "facerec gallery"
"""Comment on the gallery's table, by which it is told from another program's."""
_CREATING = 0x46524543  # of the advisory lock: "FREC"


class PostgresDatabase:
    """A gallery on a server: a :class:`gallery.database.Database`.

    Raises GalleryError where the server cannot be reached, or holds no gallery there.
    """

    def __init__(self, location: Location) -> None:
        self.name = self.gallery = str(location)
        self.read_only = True
        self._location = location
        self._engine = connect(location)
        self._glances = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._views = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._changes = self._engine.execution_options(isolation_level="READ COMMITTED")

    @contextmanager
    def glancing(self) -> Iterator[Connection]:
        with translated(self._location), self._glances.connect() as connection:
            yield connection

    def glance(self, query: str) -> Sequence[tuple[Any, ...]]:
        with self.glancing() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    @contextmanager
    def viewing(self) -> Iterator[Connection]:
        with translated(self._location), self._views.begin() as connection:
            yield connection

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        if self.read_only:
            raise GalleryError(
                f"{self.name}: the gallery is read-only here: this user may not change it, or "
                f"the server is a standby. {UNCHANGED}"
            )
        with translated(self._location), self._changes.begin() as connection:
            # Should this process stop here, the server is not to wait for it for ever.
            connection.exec_driver_sql(
                f"SET LOCAL idle_in_transaction_session_timeout = {self._timeout_ms}"
            )
            # Not a snapshot of the moment before the wait: the level is READ COMMITTED.
            connection.execute(select(MetaRow.id).with_for_update())
            yield connection

    @contextmanager
    def alone(self, what: str) -> Iterator[bool]:
        """Whether this process has ``what`` to itself meanwhile; False where another has it."""
        with translated(self._location), self._glances.connect() as connection:
            key = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big", signed=True)
            lock, unlock = (
                text(f"SELECT {function}(:key)").bindparams(key=key)
                for function in ("pg_try_advisory_lock", "pg_advisory_unlock")
            )
            mine = bool(connection.execute(lock).scalar_one())
            try:
                yield mine
            finally:
                if mine:
                    connection.execute(unlock)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        with self.changing() as connection, _patient(connection):
            yield connection

    def allow_writing(self) -> None:
        with self.glancing() as connection:
            may = "SELECT NOT pg_is_in_recovery() AND has_table_privilege('gallery', 'UPDATE')"
            self.read_only = not connection.exec_driver_sql(may).scalar_one()

    def check_structure(self, connection: Connection, *, thorough: bool) -> None:
        """The server checks what it reads, so that reading everything is the check."""
        if not _is_ours(connection):
            raise GalleryError(
                f"{self.name}: the table 'gallery' belongs to another program, not to facerec"
            )
        if thorough:
            with _patient(connection):
                for table in Base.metadata.sorted_tables:
                    name = table.name
                    connection.exec_driver_sql(f"SELECT count({name}::text) FROM {name}").one()

    @property
    def large(self) -> bool:
        with self.glancing() as connection:
            return bool(connection.exec_driver_sql(_SIZE_AND_OWNER).one()[0] > COMPACT_BYTES)

    def compact(self, *, now: bool) -> None:
        """Rewrite the tables, where that takes a moment; else only free the rows' space.

        What the server keeps beside its tables (its write-ahead log, standbys, backups) is
        not in our power.
        """
        with translated(self._location), self._glances.connect() as connection:
            size, owned = connection.exec_driver_sql(_SIZE_AND_OWNER).one()
            if not owned:
                raise GalleryError(f"{self.name}: only the owner of the tables may compact them")
            with _patient(connection):
                if now or size <= COMPACT_BYTES:
                    self._rewrite(connection)
                    return
                connection.exec_driver_sql(f"VACUUM {_TABLES}")
        raise GalleryError(
            f"{self.name}: the space of removed rows is free and no query finds them, but their "
            f"bytes stay until it is used again. A gallery of {size / 2**20:,.0f} MB is not "
            "rewritten at every removal; in a quiet hour run 'facerec compact'"
        )

    def _rewrite(self, connection: Connection) -> None:
        """Raises GalleryError where somebody's older view still needs the removed rows."""
        connection.exec_driver_sql(f"SET lock_timeout = {round(COMPACT_TIMEOUT_S * 1e3)}")
        deadline = time.monotonic() + COMPACT_TIMEOUT_S
        try:
            while _kept_by_vacuum(connection):
                if time.monotonic() > deadline:
                    raise GalleryError(
                        f"{self.name}: another process or thread is reading the gallery"
                    )
                time.sleep(0.05)
        finally:
            connection.exec_driver_sql("RESET lock_timeout")

    @property
    def _timeout_ms(self) -> int:
        return round(self._location.timeout_s * 1e3)

    def close(self) -> None:
        self._engine.dispose()


_TABLES = ", ".join(table.name for table in Base.metadata.sorted_tables)
_SIZE_AND_OWNER = (
    "SELECT sum(pg_total_relation_size(oid)), bool_and(pg_has_role(relowner, 'USAGE')) "
    "FROM pg_class WHERE oid = ANY(ARRAY["
    + ", ".join(f"'{table.name}'::regclass" for table in Base.metadata.sorted_tables)
    + "])"
)


def connect(location: Location) -> Engine:
    """An engine on the location's server; nothing is sent before its first use.

    Raises ConfigError where psycopg is not installed.
    """
    assert location.url is not None
    new_connection = _connector(location.url, location.timeout_s)
    return create_engine(
        location.url.set(query={}),
        creator=new_connection,
        pool_size=8,
        max_overflow=24,
        pool_timeout=LOCK_TIMEOUT_S,
        pool_pre_ping=True,  # the server may have been restarted
    )


def _connector(url: URL, timeout_s: float) -> Callable[[], Any]:
    try:
        import psycopg
        from psycopg.pq import Format
    except ImportError as exc:
        raise ConfigError(
            "a gallery on PostgreSQL needs psycopg: pip install 'facerec[scale]'"
        ) from exc

    class BinaryCursor(psycopg.ServerCursor[Any]):
        """What streams is mostly vectors, and as text they are twice as long."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self.format = Format.BINARY

    class Impatient(psycopg.Connection[Any]):
        """Closes itself where the server does not answer: psycopg alone waits for ever."""

        patience_s: float | None = timeout_s + _GRACE_S

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self.server_cursor_factory = BinaryCursor

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            limit = self.patience_s if timeout is None else timeout
            deadline = None if limit is None else time.monotonic() + limit
            try:
                return super().wait(gen, interval, limit)
            except psycopg.OperationalError:
                if deadline is not None and time.monotonic() >= deadline:
                    self.close()
                raise

    milliseconds = round(timeout_s * 1e3)
    ours = {
        "connect_timeout": str(max(2, round(min(timeout_s, CONNECT_TIMEOUT_S)))),
        "keepalives_idle": "30",
        "tcp_user_timeout": str(milliseconds),
        "application_name": "facerec",
    }
    options = (
        f"-c statement_timeout={milliseconds} "
        f"-c lock_timeout={min(milliseconds, round(LOCK_TIMEOUT_S * 1e3))}"
    )
    theirs = {key: value for key, value in url.query.items() if isinstance(value, str)}
    options += " " + theirs.pop("options", "")
    parameters: dict[str, Any] = url.set(query={}).translate_connect_args(
        username="user", database="dbname"
    )
    parameters |= {**ours, **theirs, "options": options}
    return lambda: Impatient.connect(**parameters)


def holds_gallery(location: Location) -> bool:
    """Whether the database holds a gallery. Raises GalleryError where it cannot be reached."""
    engine = connect(location)
    try:
        with translated(location), engine.connect() as connection:
            return _has_table(connection)
    finally:
        engine.dispose()


def create_database(location: Location, fill: Callable[[Connection], None]) -> None:
    """Make all tables, filled by ``fill``, in one transaction.

    Returns quietly where another process made them first. Raises GalleryError for a database
    that holds tables of the same names.
    """
    engine = connect(location)
    try:
        with translated(location), engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATING})
            if _has_table(connection):
                return
            _require_room(connection, Base.metadata, str(location))
            Base.metadata.create_all(connection, checkfirst=False)
            connection.exec_driver_sql(f"COMMENT ON TABLE gallery IS '{_MARK}'")
            # In their rows, not beside them, and no attempt to compress what is noise.
            connection.exec_driver_sql("ALTER TABLE embeddings ALTER vector SET STORAGE MAIN")
            connection.exec_driver_sql("ALTER TABLE crops ALTER jpeg SET STORAGE EXTERNAL")
            fill(connection)
    finally:
        engine.dispose()


def _has_table(connection: Connection) -> bool:
    return connection.exec_driver_sql("SELECT to_regclass('gallery')").scalar() is not None


def _is_ours(connection: Connection) -> bool:
    query = "SELECT obj_description(to_regclass('gallery'))"
    return connection.exec_driver_sql(query).scalar() == _MARK


def _require_room(connection: Connection, tables: MetaData, name: str) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise GalleryError(
            f"{name}: the database's encoding is {encoding}, which not every name fits. Make one "
            "with ENCODING 'UTF8'."
        )
    if others := sorted(set(inspect(connection).get_table_names()) & set(tables.tables)):
        raise GalleryError(
            f"{name}: the database has a table {others[0]!r} that is not facerec's. Choose an "
            "empty database."
        )


def _kept_by_vacuum(connection: Connection) -> int:
    """Rewrite all tables; how many removed rows had to stay, for views that may see them."""
    kept = 0

    def listen(notice: Any) -> None:
        nonlocal kept
        # "3 dead row versions cannot be removed yet", in whatever language.
        if found := re.search(r"\d+", notice.message_detail or ""):
            kept += int(found[0])

    psycopg_connection: Any = connection.connection.driver_connection
    psycopg_connection.add_notice_handler(listen)
    try:
        connection.exec_driver_sql(f"VACUUM (FULL, VERBOSE) {_TABLES}")
    finally:
        psycopg_connection.remove_notice_handler(listen)
    return kept


@contextmanager
def _patient(connection: Connection) -> Iterator[None]:
    """Without the limit on a statement: for work that takes as long as the gallery is large."""
    psycopg_connection: Any = connection.connection.driver_connection
    usual = psycopg_connection.patience_s
    psycopg_connection.patience_s = None
    connection.exec_driver_sql("SET statement_timeout = 0")
    try:
        yield
        connection.exec_driver_sql("RESET statement_timeout")
    except BaseException:
        connection.invalidate()  # else the next user of the connection would have no limit
        raise
    finally:
        psycopg_connection.patience_s = usual
