"""Reading and writing identities and templates inside one transaction of the store.

Plain SQL through SQLAlchemy, the same for every database. Imports the core, numpy,
SQLAlchemy, and this package's schema and values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Select, delete, func, insert, select, update

from facerec.errors import IdentityExists, IdentityNotFound, StoreCorrupt
from facerec.types import FloatArray, Identity, Template
from gallery.schema import CropRow, EmbeddingRow, IdentityRow, MetaRow, RemovalRow, TemplateRow
from gallery.values import NameOrId, NewTemplate, clean_name, identity_id, name_key, search_key

T = TypeVar("T")
IdArray = NDArray[np.int64]

READ_BATCH = 4096
"""Vectors read from the database at a time."""
_SQL_BATCH = 250  # below the oldest limit on variables of a statement, 999


@dataclass(frozen=True, eq=False)
class VectorBatch:
    """Some templates as an index wants them: (n,) ids, (n,) owners, (n, d) float32 vectors."""

    ids: IdArray
    owners: IdArray
    vectors: FloatArray


class ReadTransaction:
    """One consistent view of the store. ``dim``: of its vectors."""

    def __init__(self, connection: Connection, dim: int) -> None:
        self.connection = connection
        self.dim = dim

    def revision(self) -> int:
        return int(self.connection.execute(select(MetaRow.revision)).scalar_one())

    def identity(self, name_or_id: NameOrId) -> Identity:
        """Raises IdentityNotFound."""
        if isinstance(name_or_id, str):
            where = IdentityRow.name_key == name_key(name_or_id)
        else:
            where = IdentityRow.id == _in_range(identity_id(name_or_id), "person")
        row = self.connection.execute(_IDENTITIES.where(where)).first()
        if row is None:
            what = f"named {name_or_id!r}" if isinstance(name_or_id, str) else f"#{name_or_id}"
            raise IdentityNotFound(f"this gallery has no person {what}")
        return _identity(row)

    def find(self, name: str) -> Identity | None:
        """The person of that name, if there is one."""
        row = self.connection.execute(
            _IDENTITIES.where(IdentityRow.name_key == name_key(name))
        ).first()
        return None if row is None else _identity(row)

    def identities(self, search: str | None, offset: int, limit: int | None) -> list[Identity]:
        """People whose name holds ``search``, without regard to case, by name."""
        query = _matching(_IDENTITIES, search).order_by(IdentityRow.name_key)
        query = query.offset(offset).limit(limit)
        return [_identity(row) for row in self.connection.execute(query)]

    def count_identities(self, search: str | None = None) -> int:
        query = _matching(select(func.count()).select_from(IdentityRow), search)
        return int(self.connection.execute(query).scalar_one())

    def count_templates(self) -> int:
        return self.connection.execute(select(func.count()).select_from(TemplateRow)).scalar_one()

    def names(self, ids: Iterable[int]) -> dict[int, str]:
        """id -> name, of those ids that still exist."""
        found: dict[int, str] = {}
        for some in _batches(ids, _SQL_BATCH):
            query = select(IdentityRow.id, IdentityRow.name).where(IdentityRow.id.in_(some))
            found.update((row[0], row[1]) for row in self.connection.execute(query))
        return found

    def templates(self, person_id: int) -> list[Template]:
        """The templates of one person, oldest first."""
        query = _TEMPLATES.where(TemplateRow.identity_id == person_id).order_by(TemplateRow.id)
        return [_template(row) for row in self.connection.execute(query)]

    def template(self, template_id: int) -> Template:
        """Raises IdentityNotFound."""
        wanted = _in_range(identity_id(template_id), "template")
        row = self.connection.execute(_TEMPLATES.where(TemplateRow.id == wanted)).first()
        if row is None:
            raise IdentityNotFound(f"this gallery has no template #{template_id}")
        return _template(row)

    def crop(self, template_id: int) -> bytes | None:
        query = select(CropRow.jpeg).where(CropRow.template_id == template_id)
        return self.connection.execute(query).scalar()

    def removed_since(self, revision: int) -> IdArray:
        """(n,) int64 ids of the templates removed by writes after ``revision``."""
        query = select(RemovalRow.template_id).where(RemovalRow.revision > revision)
        return np.array(self.connection.execute(query).scalars().all(), dtype=np.int64)

    def vectors_since(self, revision: int) -> Iterator[VectorBatch]:
        """Templates added, or given to another person, by writes after ``revision``.

        In the order of ids within a batch; from the start (0), between them too.
        Raises StoreCorrupt for a vector that is not one of ``dim`` unit-length numbers.
        """
        query = select(TemplateRow.id, TemplateRow.identity_id, EmbeddingRow.vector).outerjoin(
            EmbeddingRow, EmbeddingRow.template_id == TemplateRow.id
        )
        if revision > 0:
            # Ordered as the index on revisions is; by id, SQLite would walk the whole table.
            query = query.where(TemplateRow.revision > revision).order_by(TemplateRow.revision)
        else:
            query = query.order_by(TemplateRow.id)
        for rows in self.connection.execute(query).partitions(READ_BATCH):
            ids, owners, blobs = zip(*sorted(rows, key=itemgetter(0)), strict=True)
            vectors = self._decode(ids, blobs)
            yield VectorBatch(np.array(ids, np.int64), np.array(owners, np.int64), vectors)

    def all_templates(self) -> Iterator[Template]:
        """In the order of :meth:`vectors_since`."""
        rows = self.connection.execute(_TEMPLATES.order_by(TemplateRow.id))
        for some in rows.partitions(READ_BATCH):
            yield from map(_template, some)

    def all_crops(self) -> Iterator[tuple[int, bytes]]:
        """(template id, JPEG) of those templates that have a crop, in that order too."""
        query = select(CropRow.template_id, CropRow.jpeg).order_by(CropRow.template_id)
        for some in self.connection.execute(query).partitions(_SQL_BATCH):
            yield from ((row[0], row[1]) for row in some)

    def _decode(self, ids: Sequence[int], blobs: Sequence[bytes | None]) -> FloatArray:
        for template_id, blob in zip(ids, blobs, strict=True):
            if blob is None or len(blob) != 4 * self.dim:
                raise StoreCorrupt(
                    f"the database is damaged: template #{template_id} has no vector of "
                    f"{self.dim} numbers. Restore the gallery from a backup or an export."
                )
        joined = b"".join(blob for blob in blobs if blob is not None)
        vectors = np.frombuffer(joined, "<f4").reshape(len(ids), self.dim)
        lengths = np.einsum("nd,nd->n", vectors, vectors)
        off = ~(np.abs(lengths - 1) < 1e-2)  # NaN counts as off
        if off.any():
            raise StoreCorrupt(
                f"the database is damaged: the vector of template #{ids[int(np.argmax(off))]} "
                "is not of unit length. Restore the gallery from a backup or an export."
            )
        return vectors.astype(np.float32, copy=False)


class WriteTransaction(ReadTransaction):
    """Changes that become visible together when the transaction commits, or not at all."""

    def __init__(self, connection: Connection, dim: int) -> None:
        super().__init__(connection, dim)
        self._new_revision: int | None = None

    def touch(self) -> int:
        """The revision of this write; the first call raises the store's by one."""
        if self._new_revision is None:
            self.connection.execute(update(MetaRow).values(revision=MetaRow.revision + 1))
            self._new_revision = self.revision()
        return self._new_revision

    def set_meta(self, **columns: Any) -> None:
        """Change columns of the gallery's own row."""
        self.touch()
        self.connection.execute(update(MetaRow).values(**columns))

    def add_identity(
        self, name: str, details: str = "{}", created_at: datetime | None = None
    ) -> int:
        """The new person's id. Raises IdentityExists, GalleryError for a bad name."""
        self._require_free(name)
        self.touch()
        new = insert(IdentityRow).values(
            name=clean_name(name),
            name_key=name_key(name),
            details=details,
            created_at=created_at or _now(),
        )
        return self.connection.execute(new.returning(IdentityRow.id)).scalar_one()

    def rename(self, person_id: int, name: str) -> None:
        """Raises IdentityExists, GalleryError for a bad name."""
        self._require_free(name, person_id)
        self._set_identity(person_id, name=clean_name(name), name_key=name_key(name))

    def set_details(self, person_id: int, details: str) -> None:
        self._set_identity(person_id, details=details)

    def add_templates(self, new: Sequence[tuple[int, NewTemplate]]) -> list[int | None]:
        """Add (person id, template) pairs; their ids, None where the person has that photo."""
        ids: list[int | None] = []
        for some in _batches(new, _SQL_BATCH):
            ids += self._add_some(some)
        return ids

    def move_templates(self, from_id: int, to_id: int) -> int:
        """Give templates to another person; returns how many both had, which are removed."""
        kept = select(TemplateRow.content_sha256).where(TemplateRow.identity_id == to_id)
        query = select(TemplateRow.id).where(
            TemplateRow.identity_id == from_id, TemplateRow.content_sha256.in_(kept)
        )
        twice = self.connection.execute(query).scalars().all()
        self.remove_templates(twice)
        self.connection.execute(
            update(TemplateRow)
            .where(TemplateRow.identity_id == from_id)
            .values(identity_id=to_id, revision=self.touch())
        )
        return len(twice)

    def remove_templates(self, ids: Sequence[int]) -> None:
        revision = self.touch()
        for some in _batches(ids, _SQL_BATCH):
            rows = [{"template_id": i, "revision": revision} for i in some]
            self.connection.execute(insert(RemovalRow), rows)
            self.connection.execute(delete(TemplateRow).where(TemplateRow.id.in_(some)))

    def remove_identity(self, person_id: int) -> int:
        """Remove a person and their templates; returns how many these were."""
        query = select(TemplateRow.id).where(TemplateRow.identity_id == person_id)
        ids = self.connection.execute(query).scalars().all()
        self.remove_templates(ids)
        self.connection.execute(delete(IdentityRow).where(IdentityRow.id == person_id))
        return len(ids)

    def _require_free(self, name: str, person_id: int | None = None) -> None:
        query = select(IdentityRow.id, IdentityRow.name).where(
            IdentityRow.name_key == name_key(name)
        )
        row = self.connection.execute(query).first()
        if row is not None and row[0] != person_id:
            raise IdentityExists(
                f"the name {row[1]!r} is taken in this gallery. "
                "Choose another, or enrol more photos to that person."
            )

    def _set_identity(self, person_id: int, **columns: str) -> None:
        self.touch()
        self.connection.execute(
            update(IdentityRow).where(IdentityRow.id == person_id).values(**columns)
        )

    def _add_some(self, new: Sequence[tuple[int, NewTemplate]]) -> list[int | None]:
        keys = [(person_id, template.content_sha256) for person_id, template in new]
        known = select(TemplateRow.identity_id, TemplateRow.content_sha256).where(
            TemplateRow.identity_id.in_({key[0] for key in keys}),
            TemplateRow.content_sha256.in_({key[1] for key in keys}),
        )
        existing = {(row[0], row[1]) for row in self.connection.execute(known)}
        fresh: dict[tuple[int, str], NewTemplate] = {}
        for key, (_, template) in zip(keys, new, strict=True):
            if key not in existing:
                fresh.setdefault(key, template)
        ids = self._insert_templates(fresh) if fresh else {}
        # Of a photo given twice, the first is the one that was added.
        return [ids.pop(key, None) for key in keys]

    def _insert_templates(
        self, fresh: Mapping[tuple[int, str], NewTemplate]
    ) -> dict[tuple[int, str], int]:
        revision, now = self.touch(), _now()
        statement = insert(TemplateRow).returning(
            TemplateRow.id, TemplateRow.identity_id, TemplateRow.content_sha256,
            sort_by_parameter_order=True,
        )  # fmt: skip
        rows = [
            {
                "identity_id": person_id,
                "source": new.source,
                "content_sha256": content_sha256,
                "det_score": float(new.det_score),
                "created_at": new.created_at or now,
                "revision": revision,
            }
            for (person_id, content_sha256), new in fresh.items()
        ]
        ids = {(row[1], row[2]): row[0] for row in self.connection.execute(statement, rows)}
        self.connection.execute(
            insert(EmbeddingRow),
            [
                {"template_id": ids[key], "vector": new.embedding.astype("<f4").tobytes()}
                for key, new in fresh.items()
            ],
        )
        crops = [
            {
                "template_id": ids[key],
                "jpeg": new.crop_jpeg,
                "landmarks": new.landmarks.astype("<f4").tobytes(),
            }
            for key, new in fresh.items()
            if new.crop_jpeg is not None and new.landmarks is not None
        ]
        if crops:
            self.connection.execute(insert(CropRow), crops)
        return ids


_IDENTITIES = select(
    IdentityRow.id,
    IdentityRow.name,
    IdentityRow.details,
    IdentityRow.created_at,
    select(func.count())
    .where(TemplateRow.identity_id == IdentityRow.id)
    .correlate(IdentityRow)
    .scalar_subquery()
    .label("template_count"),
)

_TEMPLATES = select(
    TemplateRow.id,
    TemplateRow.identity_id,
    TemplateRow.source,
    TemplateRow.content_sha256,
    TemplateRow.det_score,
    TemplateRow.created_at,
    CropRow.landmarks,
).outerjoin(CropRow, CropRow.template_id == TemplateRow.id)


def _identity(row: Any) -> Identity:
    try:
        metadata = json.loads(row.details)
    except ValueError as exc:
        raise StoreCorrupt(
            f"the database is damaged: the metadata of person #{row.id} is not JSON. "
            "Restore the gallery from a backup or an export."
        ) from exc
    return Identity(row.id, row.name, metadata, row.created_at, row.template_count)


def _template(row: Any) -> Template:
    landmarks: FloatArray | None = None
    if row.landmarks is not None:
        if len(row.landmarks) != 40:
            raise StoreCorrupt(
                f"the database is damaged: the landmarks of template #{row.id} are not (5, 2). "
                "Restore the gallery from a backup or an export."
            )
        landmarks = np.frombuffer(row.landmarks, "<f4").astype(np.float32).reshape(5, 2)
    return Template(
        id=row.id,
        identity_id=row.identity_id,
        source=row.source,
        content_sha256=row.content_sha256,
        det_score=row.det_score,
        created_at=row.created_at,
        has_crop=row.landmarks is not None,
        landmarks=landmarks,
    )


def _matching(query: Select[Any], search: str | None) -> Select[Any]:
    key = search_key(search) if search else ""
    return query.where(IdentityRow.name_key.contains(key, autoescape=True)) if key else query


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _in_range(number: int, what: str) -> int:
    if not 0 < number < 1 << 63:
        raise IdentityNotFound(f"this gallery has no {what} #{number}")
    return number


def _now() -> datetime:
    return datetime.now(timezone.utc)
