"""The store: the durable truth of a gallery, whole transactions at a time.

A ``Store`` is one gallery's database. Reads are consistent views; a write is
committed whole or leaves no trace, and several processes take turns. Imports the
core, SQLAlchemy, and this package's schema, records and databases.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from facerec.errors import ContractMismatch, GalleryError, StoreCorrupt
from facerec.types import EmbeddingContract, ThresholdTable
from gallery import migrations, sqlite
from gallery.database import Database
from gallery.folder import is_there
from gallery.location import Location
from gallery.records import ReadTransaction, WriteTransaction, display_name
from gallery.schema import ACTIVE, SCHEMA_VERSION, GenerationRow, MetaRow

_log = logging.getLogger(__name__)
_POSITION = "SELECT revision, generation, uuid FROM gallery"
_NAMES_AT_ONCE = 1000


@dataclass(frozen=True)
class Meta:
    """What a gallery is: its own row of the store."""

    uuid: str
    generation: int
    contract: EmbeddingContract
    pack_name: str
    thresholds: ThresholdTable | None
    revision: int
    vacuum_due: bool
    index_kind: str


class Store:
    """An open database. Threads may share it; processes open their own (never fork one)."""

    def __init__(self, location: Location, database: Database, meta: Meta) -> None:
        """Use :meth:`open`."""
        self.location = location
        self.database = database
        self.uuid = meta.uuid
        self.generation = meta.generation
        self.dim = meta.contract.dim
        self._pack_name = meta.pack_name
        self._one_writer = threading.Lock()

    @staticmethod
    def exists(location: Location) -> bool:
        """Whether there is a gallery. Raises GalleryError where one may or can not look."""
        if location.url is None:
            return is_there(_db(location))
        from gallery import postgres

        return postgres.holds_gallery(location)

    @staticmethod
    def create(
        location: Location,
        contract: EmbeddingContract,
        pack_name: str,
        thresholds: ThresholdTable | None,
    ) -> None:
        """Make an empty gallery; quietly none where one appeared meanwhile."""

        def fill(connection: Connection) -> None:
            now = datetime.now(timezone.utc)
            connection.execute(
                insert(GenerationRow).values(
                    contract=contract.to_json(),
                    pack_name=pack_name,
                    thresholds=thresholds_json(thresholds),
                    state=ACTIVE,
                    created_at=now,
                )
            )
            connection.execute(
                insert(MetaRow).values(
                    id=1,
                    schema_version=SCHEMA_VERSION,
                    uuid=uuid.uuid4().hex,
                    generation=select(GenerationRow.id).scalar_subquery(),
                    revision=1,
                    removals_from=0,
                    index_kind="auto",
                    vacuum_due=False,
                    created_at=now,
                )
            )
            migrations.mark_as_new(connection)

        if location.url is None:
            sqlite.create_database(_db(location), fill)
        else:
            from gallery import postgres

            postgres.create_database(location, fill)

    @staticmethod
    def open(location: Location) -> Store:
        """The store at ``location``; read-only where this process may not write it.

        One of an earlier version of facerec is upgraded, for good.
        Raises StoreCorrupt for a damaged database, having written nothing; GalleryError
        for one of another program, of a later version of facerec, or of an earlier one
        where it is read-only.
        """
        database = _open_database(location)
        try:
            with database.glancing() as connection:
                database.check_structure(connection, thorough=False)
                version = _schema_version(connection, database.name)
            database.allow_writing()
            if version < SCHEMA_VERSION:
                _upgrade(database, version)
            with database.glancing() as connection:
                meta = _read_meta(connection, database.name)
        except BaseException:
            database.close()
            raise
        store = Store(location, database, meta)
        overdue = meta.vacuum_due and not store.read_only and not database.large
        if overdue and (problem := store.compact()):
            _log.warning("%s: removed rows are not compacted yet: %s", store.name, problem)
        return store

    @property
    def name(self) -> str:
        """What messages call it: a file, or a URL without its password."""
        return self.database.name

    @property
    def gallery(self) -> str:
        """What messages call the gallery: its folder, or its URL without the password."""
        return self.database.gallery

    @property
    def db(self) -> Path:
        """The file. Raises GalleryError for a gallery on a server."""
        if not isinstance(self.database, sqlite.SqliteDatabase):
            raise GalleryError(
                f"{self.name}: this needs a gallery in a folder, and this one is on a server. "
                "Use the server's own tools, or export it to a file."
            )
        return self.database.db

    @property
    def read_only(self) -> bool:
        return self.database.read_only

    def revision(self) -> int:
        """The number of the last write, of any process. About 50 microseconds with SQLite.

        Raises ContractMismatch where the gallery was moved to another model since it was opened.
        """
        return self._position(self.database.glance(_POSITION))

    def meta(self) -> Meta:
        with self.database.glancing() as connection:
            return _read_meta(connection, self.name)

    def names(self, ids: Sequence[int]) -> dict[int, str]:
        """id -> name as of now, of those of the people ``ids`` that still exist."""
        found: dict[int, str] = {}
        for start in range(0, len(ids), _NAMES_AT_ONCE):
            some = ",".join(str(int(person)) for person in ids[start : start + _NAMES_AT_ONCE])
            rows = self.database.glance(f"SELECT id, name FROM identities WHERE id IN ({some})")
            found.update((person, display_name(person, name)) for person, name in rows)
        return found

    @contextmanager
    def reading(self) -> Iterator[ReadTransaction]:
        """A view of one revision, whatever others write meanwhile. Raises as :meth:`revision`."""
        with self.database.viewing() as connection:
            self._position(connection.exec_driver_sql(_POSITION).all())
            yield ReadTransaction(connection, self.dim, self.generation)

    @contextmanager
    def writing(self) -> Iterator[WriteTransaction]:
        """The only write under way, of any thread or process; commits at the end.

        Anything raised inside, Ctrl-C too, undoes it. Do not nest. Raises GalleryError
        for a read-only gallery, a full disk, or a lock held for too long, and as
        :meth:`revision`.
        """
        with self._one_writer, self.database.changing() as connection:
            self._position(connection.exec_driver_sql(_POSITION).all())
            yield WriteTransaction(connection, self.dim, self.generation)

    def _position(self, rows: Sequence[Any]) -> int:
        """The revision, once it is sure that vectors still mean what they did at the opening."""
        if not rows or rows[0][2] != self.uuid:
            raise GalleryError(f"{self.gallery}: another gallery took its place; open it anew")
        revision, generation, _ = rows[0]
        if generation != self.generation:
            meta = self.meta()
            raise ContractMismatch(
                f"{self.gallery}: the gallery was moved from pack {self._pack_name!r} to pack "
                f"{meta.pack_name!r} (contract {meta.contract.contract_id}) while it was open "
                "here. Open it again, with that pack."
            )
        return int(revision)

    def compact(self, *, now: bool = False) -> str | None:
        """Leave no byte of removed rows in the file. Returns a sentence where it could not.

        A large database is only rewritten ``now``: see :class:`gallery.database.Database`.
        """
        try:
            with self._one_writer:
                self.database.compact(now=now)
                with self.database.changing() as connection:
                    connection.execute(update(MetaRow).values(vacuum_due=False))
        except StoreCorrupt:
            raise
        except GalleryError as exc:
            return str(exc)
        return None

    def check(self) -> None:
        """Walk the whole database. Raises StoreCorrupt for the first thing that is wrong."""
        with self.database.viewing() as connection:
            self.database.check_structure(connection, thorough=True)
            transaction = ReadTransaction(connection, self.dim, self.generation)
            for named in (True, False):
                for _ in transaction.vectors_since(0, named=named):
                    pass  # decoding checks them

    def close(self) -> None:
        self.database.close()


def _db(location: Location) -> Path:
    assert location.folder is not None
    return location.folder / sqlite.DB_NAME


def _open_database(location: Location) -> Database:
    if location.url is None:
        return sqlite.SqliteDatabase(_db(location))
    from gallery import postgres

    return postgres.PostgresDatabase(location)


def thresholds_json(table: ThresholdTable | None) -> str | None:
    """The table as JSON; :func:`thresholds_from_json` reads it back to an equal one."""
    return None if table is None else json.dumps(asdict(table), sort_keys=True)


def thresholds_from_json(text: str | None) -> ThresholdTable | None:
    """Raises ValueError, KeyError or TypeError for what :func:`thresholds_json` did not write."""
    if text is None:
        return None
    raw = json.loads(text)
    columns = {name: tuple(map(float, raw[name])) for name in ("fmr", "cosine", "fnmr")}
    return ThresholdTable(**columns, measured_on=str(raw["measured_on"]))


def _schema_version(connection: Connection, db: str) -> int:
    version = connection.execute(select(MetaRow.schema_version)).scalar()
    if version is None:
        raise StoreCorrupt(f"{db}: the database is damaged: it does not say what it is")
    if version > SCHEMA_VERSION:
        raise GalleryError(
            f"{db}: written by a later facerec (schema {version}; this one knows "
            f"{SCHEMA_VERSION}). Update facerec."
        )
    return version


def _upgrade(database: Database, version: int) -> None:
    if database.read_only:
        raise GalleryError(
            f"{database.name}: written by an earlier facerec (schema {version}), and read-only "
            "here, so that it cannot be upgraded. Open it once as a user who may write it."
        )
    migrations.upgrade(database)


def _read_meta(connection: Connection, db: str) -> Meta:
    _schema_version(connection, db)
    row = connection.execute(
        select(
            MetaRow.uuid,
            MetaRow.generation,
            GenerationRow.contract,
            GenerationRow.pack_name,
            GenerationRow.thresholds,
            MetaRow.revision,
            MetaRow.vacuum_due,
            MetaRow.index_kind,
        ).join(GenerationRow, GenerationRow.id == MetaRow.generation)
    ).one()
    try:
        contract = EmbeddingContract.from_json(row.contract)
        thresholds = thresholds_from_json(row.thresholds)
    except (ValueError, KeyError, TypeError) as exc:
        raise StoreCorrupt(f"{db}: the database is damaged: its contract is garbled") from exc
    return Meta(
        row.uuid,
        row.generation,
        contract,
        row.pack_name,
        thresholds,
        row.revision,
        row.vacuum_due,
        row.index_kind,
    )
