"""Backup and restore: the whole database of a gallery in a folder, as one file.

A backup is the gallery as it is, to the last row: ids, generations of vectors, the ledger of
indexed photos. (An export, :mod:`gallery.transfer`, is its people, to be added to any
gallery of the same model.) Imports the core and this package.

The file is a SQLite database, as one can open it, and behind that one line of JSON which says
what it is and holds its SHA-256: ``tail -n 1 FILE`` shows it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, func, select

from facerec.errors import GalleryError, StoreCorrupt
from gallery import indexfile, sqlite
from gallery.folder import lies_below, permit_creation
from gallery.interruptible import run_with_ticks
from gallery.location import Location
from gallery.records import ReadTransaction
from gallery.schema import SCHEMA_VERSION, CropRow, IdentityRow, TemplateRow
from gallery.scratch import scratch_folder
from gallery.sqlite import DB_NAME
from gallery.sqlitefiles import (
    alone,
    copy_into,
    leave_wal_mode,
    merge_log,
    publish,
    remove_side_files,
)
from gallery.store import Store

FORMAT = "facerec-backup"
VERSION = 1

Progress = Callable[[int, int], object]
"""Called with how many bytes of how many are through."""

_INDEXES = (indexfile.INDEX_NAME, indexfile.UNNAMED_INDEX_NAME)
_MAX_LINE = 1 << 16
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Backup:
    """What a backup says of itself. identities, templates, crops: how many rows it holds."""

    format: str
    version: int
    schema_version: int
    gallery_uuid: str
    revision: int
    contract_id: str
    pack_name: str
    identities: int
    templates: int
    crops: int
    created_at: str
    database_bytes: int
    database_sha256: str


def back_up(
    place: str | Path | Location,
    path: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Backup:
    """Write the gallery at ``place``, as it is at one moment, to the file ``path``.

    Others may go on writing meanwhile. What is written is read again and checked before the
    file appears, whole, or not at all. Raises GalleryError where the file exists already
    (unless ``overwrite``), lies in the gallery's own folder, or cannot be written; for a
    gallery on a server, which has tools of its own; StoreCorrupt for a damaged gallery.
    """
    location = Location.of(place)
    if location.folder is None:
        raise GalleryError(
            f"{location}: a gallery on a server is backed up with the server's tools, such as "
            "pg_dump; 'facerec people export' writes its people to a file."
        )
    if not Store.exists(location):
        permit_creation(location, None, create=False)  # says so
    store = Store.open(location)
    try:
        with _writing(path):
            _refuse_target(store.db.parent, path, overwrite)
        meter = _Meter(progress, store.db.stat().st_size, passes=3)  # copied, checked, hashed
        with _writing(path), scratch_folder(path) as scratch:
            copy = scratch / DB_NAME
            copy.touch(mode=0o600)
            copy_into(store.db, copy, meter)
            backup = _describe(scratch, meter)
            with copy.open("ab") as stream:
                stream.write(b"\n" + json.dumps(asdict(backup)).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            copy.chmod(store.db.stat().st_mode & 0o777)
            copy.replace(path)
            sqlite.sync_folder(path.absolute().parent)
        return backup
    finally:
        store.close()


def read_backup(path: Path) -> Backup:
    """What the backup says of itself; its bytes are not checked. Raises GalleryError."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _MAX_LINE))
            head, _, line = stream.read().rstrip(b"\n").rpartition(b"\n")
    except OSError as exc:
        raise GalleryError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    try:
        raw = json.loads(line)
        if not head or raw["format"] != FORMAT:
            raise ValueError("it does not end as one does")
        if raw["version"] != VERSION:
            raise GalleryError(
                f"{path}: a backup of version {raw['version']}; this facerec reads version "
                f"{VERSION}. Update facerec."
            )
        backup = Backup(**{field.name: raw[field.name] for field in fields(Backup)})
        if backup.database_bytes + len(line) + 2 != size:
            raise ValueError("it is not as long as it says")
    except (ValueError, KeyError, TypeError) as exc:
        raise GalleryError(
            f"{path}: not a whole backup ({exc}). 'facerec people import' reads exports."
        ) from exc
    return backup


def restore(
    path: Path,
    place: str | Path | Location,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> Backup:
    """Make the gallery at ``place``, a folder, what it was when ``path`` was written.

    Into a folder without a gallery; or, if ``replace``, in the place of the one that is there,
    which stays until the backup has proved whole, and is lost then, with all that was written
    since. The restored gallery has a uuid of its own: no index, on disk or in the memory of
    another process, can be taken for one of its past.

    Raises GalleryError for what is not a whole backup, a gallery that is in the way or open
    elsewhere, or a folder that cannot be written: what was there is then unchanged.
    """
    folder = _folder(place)
    backup = read_backup(path)
    if backup.schema_version > SCHEMA_VERSION:
        raise GalleryError(
            f"{path}: written by a later facerec (schema {backup.schema_version}; this one "
            f"knows {SCHEMA_VERSION}). Update facerec."
        )
    db = folder / DB_NAME
    exists = Store.exists(Location(folder=folder))
    if exists and not replace:
        raise GalleryError(
            f"{folder}: holds a gallery already. Restore into another folder, or say that the "
            "one that is here is to be replaced, and lost, with --replace."
        )
    if not exists:
        _permit(folder)
    meter = _Meter(progress, backup.database_bytes, passes=2)  # copied, checked
    with ExitStack() as stack:
        if exists:
            stack.enter_context(alone(db))
        stack.enter_context(_writing(folder))
        scratch = stack.enter_context(scratch_folder(db))
        _copy_out(path, backup, scratch / DB_NAME, meter)
        _prove(path, backup, scratch, meter)
        merge_log(scratch / DB_NAME)  # only that file is renamed
        for name in _INDEXES:
            indexfile.erase(folder / name)
        remove_side_files(db)  # of a database that was taken away, or is damaged
        publish(scratch / DB_NAME, db, replace=exists)
    return backup


def _folder(place: str | Path | Location) -> Path:
    location = Location.of(place)
    if location.folder is None:
        raise GalleryError(
            f"{location}: a backup is restored into a folder. For a server, restore it into a new "
            "folder, export that with 'facerec people export', and import the file there."
        )
    return location.folder


class _Meter:
    """Counts the bytes of all passes."""

    def __init__(self, progress: Progress | None, size: int, passes: int) -> None:
        self._progress = progress
        self._passes = passes
        self._size = max(1, size)
        self._pass = 0

    def __call__(self, done: int, total: int) -> None:
        if self._progress is not None:
            now = self._pass + done / max(1, total)
            self._progress(round(now * self._size), self._passes * self._size)

    def next_pass(self) -> None:
        self._pass += 1
        self(0, 1)


def _refuse_target(gallery: Path, path: Path, overwrite: bool) -> None:
    if lies_below(path, gallery):
        raise GalleryError(
            f"{path}: lies in the gallery's own folder, and would be lost with it. Write the "
            "backup to another folder, better to another disk."
        )
    if path.is_dir():
        raise GalleryError(f"{path}: is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise GalleryError(f"{path}: exists already; name another file, or say --overwrite")


def _permit(folder: Path) -> None:
    """Raises GalleryError unless there is nothing in ``folder`` but what a gallery left."""
    if folder.exists() and not folder.is_dir():
        raise GalleryError(f"{folder}: a gallery is a folder, and this is a file")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        ours = (".", "lost+found", DB_NAME, *_INDEXES)
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith(ours))
    if others:
        raise GalleryError(f"{folder}: the folder holds {others[0]!r}. Choose an empty folder.")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the file system refuses becomes an error of ours, which names ``path``."""
    try:
        yield
    except OSError as exc:
        raise GalleryError(f"{path}: cannot be written ({exc.strerror or exc})") from exc


def _describe(scratch: Path, meter: _Meter) -> Backup:
    """Check the copy in ``scratch``, and say what it holds."""
    meter.next_pass()
    copy = scratch / DB_NAME
    store = Store.open(Location(folder=scratch))
    try:
        counts, revision = _check(store, meter)
        meta = store.meta()
    finally:
        store.close()
    leave_wal_mode(copy)
    meter.next_pass()
    size = copy.stat().st_size
    with copy.open("rb") as stream:
        sha256 = _pass_on(stream, size, None, meter)
    return Backup(
        format=FORMAT,
        version=VERSION,
        schema_version=SCHEMA_VERSION,
        gallery_uuid=meta.uuid,
        revision=revision,
        contract_id=meta.contract.contract_id,
        pack_name=meta.pack_name,
        identities=counts[0],
        templates=counts[1],
        crops=counts[2],
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        database_bytes=size,
        database_sha256=sha256,
    )


def _check(store: Store, meter: _Meter) -> tuple[tuple[int, int, int], int]:
    """((identities, templates, crops), revision) of a database that is sound to the last vector."""
    with store.database.viewing() as connection:
        run_with_ticks(
            connection,
            lambda _: store.database.check_structure(connection, thorough=True),
            lambda: meter(0, 1),
        )
        view = ReadTransaction(connection, store.dim, store.generation)
        counts = _count(connection)
        done = 0
        for named in (True, False):
            for batch in view.vectors_since(0, named=named):
                done += len(batch.ids)
                meter(done, counts[1])
        return counts, view.revision()


def _count(connection: Connection) -> tuple[int, int, int]:
    identities, templates, crops = (
        connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in (IdentityRow, TemplateRow, CropRow)
    )
    return identities, templates, crops


def _pass_on(stream: IO[bytes], size: int, to: IO[bytes] | None, meter: _Meter) -> str:
    """The SHA-256 of the next ``size`` bytes, which are written ``to``."""
    digest, done = hashlib.sha256(), 0
    while done < size and (block := stream.read(min(_BLOCK, size - done))):
        digest.update(block)
        if to is not None:
            to.write(block)
        done += len(block)
        meter(done, size)
    return digest.hexdigest()


def _copy_out(path: Path, backup: Backup, copy: Path, meter: _Meter) -> None:
    with path.open("rb") as stream, copy.open("xb") as target:
        copy.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IRUSR | stat.S_IWUSR)
        sha256 = _pass_on(stream, backup.database_bytes, target, meter)
    if sha256 != backup.database_sha256:
        raise GalleryError(
            f"{path}: the backup is damaged: it does not match its checksum. Nothing was restored."
        )


def _prove(path: Path, backup: Backup, scratch: Path, meter: _Meter) -> None:
    """Open what was copied, as any gallery is opened, check it, and make it one of its own."""
    meter.next_pass()
    try:
        store = Store.open(Location(folder=scratch))
        try:
            counts, _ = _check(store, meter)
            if counts != (backup.identities, backup.templates, backup.crops):
                raise StoreCorrupt("the rows are not as many as it says")
            with store.writing() as change:
                change.set_meta(uuid=uuid.uuid4().hex, vacuum_due=False)
        finally:
            store.close()
    except StoreCorrupt as exc:
        raise GalleryError(f"{path}: the backup is damaged ({exc}). Nothing was restored.") from exc
