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
from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Select,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.orm import aliased

from facerec.errors import IdentityExists, IdentityNotFound, StoreCorrupt
from facerec.types import FloatArray, Identity, Template
from gallery.schema import (
    NAMED,
    UNNAMED,
    CropRow,
    EmbeddingRow,
    GenerationRow,
    IdentityRow,
    MetaRow,
    RemovalRow,
    TemplateRow,
    UnembeddedRow,
)
from gallery.values import (
    LARGEST,
    NameOrId,
    NewTemplate,
    clean_name,
    identity_id,
    name_key,
    search_key,
)

T = TypeVar("T")
IdArray = NDArray[np.int64]

READ_BATCH = 4096
"""Vectors read from the database at a time."""
REMOVALS_KEPT = 100_000
"""Removed templates whose ids are kept, for indexes that have yet to leave them out."""
_SQL_BATCH = 250  # below the oldest limit on variables of a statement, 999


@dataclass(frozen=True, eq=False)
class VectorBatch:
    """Some templates as an index wants them: (n,) ids, (n,) owners, (n, d) float32 vectors."""

    ids: IdArray
    owners: IdArray
    vectors: FloatArray


class ReadTransaction:
    """One consistent view of the store. ``dim``: of the vectors of ``generation``, the active."""

    def __init__(self, connection: Connection, dim: int, generation: int) -> None:
        self.connection = connection
        self.dim = dim
        self.generation = generation

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
        # By the index on names; from that on states, all would have to be sorted for a page.
        query = _IDENTITIES.where(_is_named(True, few=True), IdentityRow.name_key.is_not(None))
        query = _matching(query, search).order_by(IdentityRow.name_key)
        query = query.offset(min(offset, LARGEST)).limit(limit and min(limit, LARGEST))
        return [_identity(row) for row in self.connection.execute(query)]

    def count_identities(self, search: str | None = None) -> int:
        """People; those whose name holds ``search``."""
        query = select(func.count()).select_from(IdentityRow).where(_is_named(True))
        query = _matching(query, search)
        return int(self.connection.execute(query).scalar_one())

    def count_templates(self, *, named: bool = True) -> int:
        """Templates of people, or of those without a name."""
        of_unnamed = select(IdentityRow.id).where(IdentityRow.state != NAMED)
        unnamed = select(func.count()).where(TemplateRow.identity_id.in_(of_unnamed))
        count = self.connection.execute(unnamed.select_from(TemplateRow)).scalar_one()
        if named:  # by way of the difference: the unnamed are few, or the people are
            every = select(func.count()).select_from(TemplateRow)
            count = self.connection.execute(every).scalar_one() - count
        return int(count)

    def count_vectors(self, *, named: bool) -> int:
        """Those of them that have a vector in this generation: what an index holds."""
        unembedded = select(func.count()).select_from(UnembeddedRow).join(
            TemplateRow, TemplateRow.id == UnembeddedRow.template_id
        ).join(IdentityRow, IdentityRow.id == TemplateRow.identity_id).where(
            UnembeddedRow.generation == self.generation, _is_named(named, few=True)
        )  # fmt: skip
        missing = self.connection.execute(unembedded).scalar_one()
        return self.count_templates(named=named) - int(missing)

    def templates(self, person_id: int, limit: int | None = None) -> list[Template]:
        """The templates of one person, or the first of them, oldest first."""
        query = _TEMPLATES.where(TemplateRow.identity_id == person_id).order_by(TemplateRow.id)
        return [_template(row) for row in self.connection.execute(query.limit(limit))]

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

    def remembers(self, revision: int) -> bool:
        """Whether :meth:`removed_since` knows all: the oldest removals are forgotten."""
        return bool(self.connection.execute(select(MetaRow.removals_from)).scalar_one() <= revision)

    def removed_since(self, revision: int) -> IdArray:
        """(n,) int64 ids of the templates removed by writes after ``revision``.

        Not all of them where that is longer ago than it :meth:`remembers`.
        """
        query = select(RemovalRow.template_id).where(RemovalRow.revision > revision)
        return np.array(self.connection.execute(query).scalars().all(), dtype=np.int64)

    def left_since(self, revision: int, *, named: bool) -> IdArray:
        """(n,) int64 ids of templates that writes after ``revision`` gave to, or left with, the
        others: to somebody without a name, or, ``named`` being False, to a person."""
        query = (
            select(TemplateRow.id)
            .join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
            .where(TemplateRow.revision > revision, _is_named(not named, few=True))
        )
        return np.array(self.connection.execute(query).scalars().all(), dtype=np.int64)

    def vectors_since(self, revision: int, *, named: bool = True) -> Iterator[VectorBatch]:
        """Templates that writes after ``revision`` added, or gave to somebody else.

        Of people, or, ``named`` being False, of those without a name; with a vector in this
        generation. In the order of ids within a batch; from the start (0), between them too.
        Raises StoreCorrupt for a vector that is not one of ``dim`` unit-length numbers.
        """
        at = self.generation
        query = (
            select(TemplateRow.id, TemplateRow.identity_id, EmbeddingRow.vector)
            .join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
            .outerjoin(
                EmbeddingRow,
                (EmbeddingRow.template_id == TemplateRow.id) & (EmbeddingRow.generation == at),
            )
            .outerjoin(
                UnembeddedRow,
                (UnembeddedRow.template_id == TemplateRow.id) & (UnembeddedRow.generation == at),
            )
            .where(_is_named(named, few=True), UnembeddedRow.template_id.is_(None))
        )
        if revision > 0:
            # Ordered as the index on revisions is; by id, SQLite would walk the whole table.
            query = query.where(TemplateRow.revision > revision).order_by(TemplateRow.revision)
        else:
            query = query.order_by(TemplateRow.id)
        for rows in self._stream(query, READ_BATCH):
            yield self.batch(rows)

    def batch(self, rows: Sequence[Any]) -> VectorBatch:
        """(template id, identity id, vector) rows, in the order of ids. Raises StoreCorrupt."""
        ordered = sorted(rows, key=itemgetter(0))
        ids, owners, blobs = ([row[column] for row in ordered] for column in range(3))
        vectors = self._decode(ids, blobs)
        return VectorBatch(np.array(ids, np.int64), np.array(owners, np.int64), vectors)

    def all_templates(self) -> Iterator[Template]:
        """Of people, with a vector in this generation; in the order of :meth:`vectors_since`."""
        query = (
            _TEMPLATES.join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
            .join(EmbeddingRow, EmbeddingRow.template_id == TemplateRow.id)
            .where(_is_named(True, few=True), EmbeddingRow.generation == self.generation)
        )
        for some in self._stream(query.order_by(TemplateRow.id), READ_BATCH):
            yield from map(_template, some)

    def all_crops(self) -> Iterator[tuple[int, bytes]]:
        """(template id, JPEG) of those of them that have a crop, in that order too."""
        vector = select(EmbeddingRow.template_id).where(
            EmbeddingRow.template_id == CropRow.template_id,
            EmbeddingRow.generation == self.generation,
        )
        query = (
            select(CropRow.template_id, CropRow.jpeg)
            .join(TemplateRow, TemplateRow.id == CropRow.template_id)
            .join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
            .where(_is_named(True, few=True), vector.exists())
            .order_by(CropRow.template_id)
        )
        for some in self._stream(query, _SQL_BATCH):
            yield from ((row[0], row[1]) for row in some)

    def _stream(self, query: Executable, size: int) -> Iterator[Sequence[Any]]:
        """The rows of a query, ``size`` at a time, and never all of them in memory."""
        return self.connection.execute(query, execution_options={"yield_per": size}).partitions()

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

    def __init__(self, connection: Connection, dim: int, generation: int) -> None:
        super().__init__(connection, dim, generation)
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

    def set_generation(self, **columns: Any) -> None:
        """Change columns of the active generation."""
        self.touch()
        self.connection.execute(
            update(GenerationRow).where(GenerationRow.id == self.generation).values(**columns)
        )

    def add_unnamed(self, count: int) -> list[int]:
        """Make ``count`` identities without a name; their ids, ascending."""
        self.touch()
        ids: list[int] = []
        now = _now()
        statement = insert(IdentityRow).returning(IdentityRow.id, sort_by_parameter_order=True)
        for some in _batches(range(count), _SQL_BATCH):
            rows = [{"state": UNNAMED, "details": "{}", "created_at": now} for _ in some]
            ids += self.connection.execute(statement, rows).scalars().all()
        return ids

    def set_state(self, identity_id: int, state: str, name: str | None = None) -> None:
        """Name an identity (NAMED, with its name), or leave or dismiss it without one.

        Raises IdentityExists, GalleryError for a bad name.
        """
        if name is not None:
            self._require_free(name, identity_id)
        revision = self.touch()
        self.connection.execute(
            update(IdentityRow)
            .where(IdentityRow.id == identity_id)
            .values(
                state=state,
                name=None if name is None else clean_name(name),
                name_key=None if name is None else name_key(name),
            )
        )
        self.connection.execute(  # so that every index learns where the templates belong now
            update(TemplateRow)
            .where(TemplateRow.identity_id == identity_id)
            .values(revision=revision)
        )

    def add_identity(
        self, name: str, details: str = "{}", created_at: datetime | None = None
    ) -> int:
        """The new person's id. Raises IdentityExists, GalleryError for a bad name."""
        self._require_free(name)
        self.touch()
        new = insert(IdentityRow).values(
            state=NAMED,
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
        """Add (person id, template) pairs; their ids, None where the person has that face."""
        ids: list[int | None] = []
        for some in _batches(new, _SQL_BATCH):
            ids += self._add_some(some)
        return ids

    def move_templates(self, from_id: int, to_id: int) -> int:
        """Give templates to another person; returns how many both had, which are removed.

        Both have one that is of the same face of the same photo.
        """
        theirs = aliased(TemplateRow)
        query = select(TemplateRow.id).join(
            theirs,
            (theirs.content_sha256 == TemplateRow.content_sha256)
            & (theirs.face == TemplateRow.face),
        ).where(TemplateRow.identity_id == from_id, theirs.identity_id == to_id)  # fmt: skip
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
        self._forget_old_removals()

    def _forget_old_removals(self) -> None:
        """Keep the newer half of too many. An index that was older than the rest is read anew."""
        count = self.connection.execute(select(func.count()).select_from(RemovalRow)).scalar_one()
        if count <= REMOVALS_KEPT:
            return
        newest = select(RemovalRow.revision).order_by(RemovalRow.revision.desc())
        last = self.connection.execute(newest.offset(REMOVALS_KEPT // 2).limit(1)).scalar_one()
        self.connection.execute(delete(RemovalRow).where(RemovalRow.revision <= last))
        self.connection.execute(update(MetaRow).values(removals_from=last))

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
        keys = [(person_id, t.content_sha256, t.face) for person_id, t in new]
        known = select(TemplateRow.identity_id, TemplateRow.content_sha256, TemplateRow.face).where(
            TemplateRow.identity_id.in_({key[0] for key in keys}),
            TemplateRow.content_sha256.in_({key[1] for key in keys}),
        )
        existing = {tuple(row) for row in self.connection.execute(known)}
        fresh: dict[_Key, NewTemplate] = {}
        for key, (_, template) in zip(keys, new, strict=True):
            if key not in existing:
                fresh.setdefault(key, template)
        ids = self._insert_templates(fresh) if fresh else {}
        # Of a face given twice, the first is the one that was added.
        return [ids.pop(key, None) for key in keys]

    def _insert_templates(self, fresh: Mapping[_Key, NewTemplate]) -> dict[_Key, int]:
        revision, now = self.touch(), _now()
        statement = insert(TemplateRow).returning(TemplateRow.id, sort_by_parameter_order=True)
        rows = [
            {
                "identity_id": person_id,
                "source": new.source,
                "content_sha256": content_sha256,
                "face": face,
                "box": None if new.box_xyxy is None else new.box_xyxy.astype("<f4").tobytes(),
                "photo_id": new.photo_id,
                "det_score": float(new.det_score),
                "created_at": new.created_at or now,
                "revision": revision,
            }
            for (person_id, content_sha256, face), new in fresh.items()
        ]
        new_ids = self.connection.execute(statement, rows).scalars().all()
        ids = dict(zip(fresh, new_ids, strict=True))
        self.connection.execute(
            insert(EmbeddingRow),
            [
                {
                    "template_id": ids[key],
                    "generation": self.generation,
                    "vector": new.embedding.astype("<f4").tobytes(),
                }
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


_Key = tuple[int, str, int]
"""(identity, content_sha256, face): what a template is known by."""

_IDENTITIES = select(
    IdentityRow.id,
    IdentityRow.state,
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
    TemplateRow.face,
    TemplateRow.box,
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
    name = display_name(row.id, row.name)
    return Identity(row.id, name, metadata, row.created_at, row.template_count, row.state)


def display_name(identity_id: int, name: str | None) -> str:
    """What an identity is called where it has no name."""
    return f"unknown #{identity_id}" if name is None else name


def _template(row: Any) -> Template:
    landmarks = _floats(row.landmarks, (5, 2), "landmarks", row.id)
    return Template(
        id=row.id,
        identity_id=row.identity_id,
        source=row.source,
        content_sha256=row.content_sha256,
        det_score=row.det_score,
        created_at=row.created_at,
        has_crop=row.landmarks is not None,
        landmarks=landmarks,
        face=row.face,
        box_xyxy=_floats(row.box, (4,), "box", row.id),
    )


def _floats(
    data: bytes | None, shape: tuple[int, ...], what: str, template_id: int
) -> FloatArray | None:
    if data is None:
        return None
    if len(data) != 4 * int(np.prod(shape)):
        raise StoreCorrupt(
            f"the database is damaged: the {what} of template #{template_id} has not the shape "
            f"{shape}. Restore the gallery from a backup or an export."
        )
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)


def _is_named(named: bool, *, few: bool = False) -> ColumnElement[bool]:
    """few: of few rows that something else has chosen, or of all in another order.

    SQLite knows nothing of how many there are of what: it would go through all that are named,
    and look for those few among them, or sort them, vectors and all.
    """
    state = IdentityRow.state.concat("") if few else IdentityRow.state
    return state == NAMED if named else state != NAMED


def _matching(query: Select[Any], search: str | None) -> Select[Any]:
    key = search_key(search) if search else ""
    return query.where(IdentityRow.name_key.contains(key, autoescape=True)) if key else query


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _in_range(number: int, what: str) -> int:
    if not 0 < number <= LARGEST:
        raise IdentityNotFound(f"this gallery has no {what} #{number}")
    return number


def _now() -> datetime:
    return datetime.now(timezone.utc)
