"""The store: the durable truth of a gallery, whole transactions at a time.

A ``Store`` is one gallery's database. Reads are consistent views; a write is
committed whole or leaves no trace, and several processes take turns. Imports the
core, SQLAlchemy, and this package's schema, records and sqlite.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from sqlalchemy import Connection, Engine, insert, select, update

from facerec.errors import ContractMismatch, GalleryError, StoreCorrupt
from facerec.types import EmbeddingContract, ThresholdTable
from gallery import sqlite
from gallery.records import ReadTransaction, WriteTransaction
from gallery.schema import ACTIVE, SCHEMA_VERSION, GenerationRow, MetaRow

_log = logging.getLogger(__name__)
_POSITION = select(MetaRow.revision, MetaRow.generation)


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


class Store:
    """An open database. Threads may share it; processes open their own (never fork one)."""

    def __init__(self, db: Path, engine: Engine, meta: Meta, *, read_only: bool) -> None:
        self.db = db
        self.read_only = read_only
        self.uuid = meta.uuid
        self.generation = meta.generation
        self.dim = meta.contract.dim
        self._pack_name = meta.pack_name
        self._engine = engine
        self._view = engine.execution_options(begin="BEGIN")
        self._change = engine.execution_options(begin="BEGIN IMMEDIATE")
        self._one_writer = threading.Lock()
        self._file = self._file_id()

    @staticmethod
    def create(
        db: Path, contract: EmbeddingContract, pack_name: str, thresholds: ThresholdTable | None
    ) -> None:
        """Make an empty gallery at ``db``; quietly none where one appeared meanwhile."""

        def fill(connection: Connection) -> None:
            now = datetime.now(timezone.utc)
            connection.execute(
                insert(GenerationRow).values(
                    id=1,
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
                    generation=1,
                    revision=1,
                    vacuum_due=False,
                    created_at=now,
                )
            )

        sqlite.create_database(db, fill)

    @staticmethod
    def open(db: Path) -> Store:
        """The store at ``db``; read-only where this process may not write it.

        Raises StoreCorrupt for a damaged database, having written nothing; GalleryError
        for one of another program or of a later version of facerec.
        """
        sqlite.check_file(db)
        mode = sqlite.readable_mode(db)
        engine = sqlite.connect(db, mode)
        try:
            with sqlite.translated(db), engine.connect() as connection:
                if db.stat().st_size <= sqlite.QUICK_CHECK_BYTES:
                    sqlite.check_structure(connection, db, thorough=False)
                meta = _read_meta(connection, db)
            read_only = mode == "immutable" or not sqlite.is_writable(db)
        except BaseException:
            engine.dispose()
            raise
        if not read_only:
            engine.dispose()
            engine = sqlite.connect(db, "rw")
        store = Store(db, engine, meta, read_only=read_only)
        if meta.vacuum_due and not read_only and (problem := store.compact()):
            _log.warning("%s: removed rows are not compacted yet: %s", db, problem)
        return store

    def revision(self) -> int:
        """The number of the last write, of any process. About 50 microseconds.

        Raises ContractMismatch where the gallery was moved to another model since it was opened.
        """
        self._require_same_file()
        with sqlite.translated(self.db), self._engine.connect() as connection:
            return self._position(connection)

    def meta(self) -> Meta:
        with sqlite.translated(self.db), self._engine.connect() as connection:
            return _read_meta(connection, self.db)

    @contextmanager
    def reading(self) -> Iterator[ReadTransaction]:
        """A view of one revision, whatever others write meanwhile. Raises as :meth:`revision`."""
        self._require_same_file()
        with sqlite.translated(self.db), self._view.begin() as connection:
            self._position(connection)
            yield ReadTransaction(connection, self.dim, self.generation)

    @contextmanager
    def writing(self) -> Iterator[WriteTransaction]:
        """The only write under way, of any thread or process; commits at the end.

        Anything raised inside, Ctrl-C too, undoes it. Do not nest. Raises GalleryError
        for a read-only gallery, a full disk, or a lock held for too long, and as
        :meth:`revision`.
        """
        if self.read_only:
            raise GalleryError(
                f"{self.db}: the gallery is read-only here: this user may not write to its "
                "folder, or the disk is full or mounted read-only. The gallery is unchanged."
            )
        with (
            self._one_writer,
            sqlite.translated(self.db),
            self._change.begin() as connection,
        ):
            self._require_same_file()
            self._position(connection)
            yield WriteTransaction(connection, self.dim, self.generation)

    def _position(self, connection: Connection) -> int:
        """The revision, once it is sure that vectors still mean what they did at the opening."""
        revision, generation = connection.execute(_POSITION).one()
        if generation != self.generation:
            meta = _read_meta(connection, self.db)
            raise ContractMismatch(
                f"{self.db.parent}: the gallery was moved from pack {self._pack_name!r} to pack "
                f"{meta.pack_name!r} (contract {meta.contract.contract_id}) while it was open "
                "here. Open it again, with that pack."
            )
        return int(revision)

    def compact(self) -> str | None:
        """Leave no byte of removed rows in the file. Returns a sentence where it could not."""
        try:
            with self._one_writer:
                sqlite.compact(self._engine, self.db)
                with sqlite.translated(self.db), self._change.begin() as connection:
                    connection.execute(update(MetaRow).values(vacuum_due=False))
        except StoreCorrupt:
            raise
        except GalleryError as exc:
            return str(exc)
        return None

    def check(self) -> None:
        """Walk the whole database. Raises StoreCorrupt for the first thing that is wrong."""
        with sqlite.translated(self.db), self._view.begin() as connection:
            sqlite.check_structure(connection, self.db, thorough=True)
            transaction = ReadTransaction(connection, self.dim, self.generation)
            for named in (True, False):
                for _ in transaction.vectors_since(0, named=named):
                    pass  # decoding checks them

    def close(self) -> None:
        self._engine.dispose()

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


def _read_meta(connection: Connection, db: Path) -> Meta:
    version = connection.execute(select(MetaRow.schema_version)).scalar()
    if version is None:
        raise StoreCorrupt(f"{db}: the database is damaged: it does not say what it is")
    if version < SCHEMA_VERSION:
        raise GalleryError(f"{db}: written by an earlier facerec (schema {version})")
    if version > SCHEMA_VERSION:
        raise GalleryError(
            f"{db}: written by a later facerec (schema {version}; this one knows "
            f"{SCHEMA_VERSION}). Update facerec."
        )
    row = connection.execute(
        select(
            MetaRow.uuid,
            MetaRow.generation,
            GenerationRow.contract,
            GenerationRow.pack_name,
            GenerationRow.thresholds,
            MetaRow.revision,
            MetaRow.vacuum_due,
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
    )
