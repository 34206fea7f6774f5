"""The sets of vectors that a gallery holds, one a model, inside one transaction of the store.

One generation is active: its vectors answer. Beside it there is at most one other: staging, until
it is complete and takes over, or retired, to go back to. Imports the core, numpy, SQLAlchemy,
and this package's schema, records, items and store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, delete, exists, func, insert, select, update

from facerec.errors import GalleryError, StoreCorrupt
from facerec.types import EmbeddingContract, FloatArray, ThresholdTable
from gallery.items import path_of_key
from gallery.records import ReadTransaction, WriteTransaction, display_name
from gallery.schema import (
    ACTIVE,
    RETIRED,
    STAGING,
    CropRow,
    EmbeddingRow,
    FileRow,
    GenerationRow,
    IdentityRow,
    TemplateRow,
    UnembeddedRow,
)
from gallery.store import thresholds_from_json, thresholds_json

BATCH = 192
"""Templates of one transaction; below the oldest limit on variables of a statement, 999."""
ERASED_AT_ONCE = 5000
"""Vectors that one transaction removes."""


@dataclass(frozen=True)
class Generation:
    """The vectors of one model. state: "active", "staging" or "retired".

    embedded, unembedded: templates that have a vector in it, and that are known to have none.
    """

    id: int
    contract: EmbeddingContract
    pack_name: str
    thresholds: ThresholdTable | None
    state: str
    created_at: datetime
    embedded: int
    unembedded: int


@dataclass(frozen=True)
class Unembedded:
    """A template without a vector, and why. name: of its person, or "unknown #ID"."""

    template_id: int
    identity_id: int
    name: str
    source: str
    reason: str


@dataclass(frozen=True, eq=False)
class StoredFace:
    """What the gallery keeps of a template, to embed it again.

    box_xyxy: (4,) float32, pixels of the photo. crop_jpeg, landmarks: the loose crop and (5, 2)
    float32 in its pixels. All None where they were not kept. paths: where the photo was last
    seen, if it was indexed.
    """

    id: int
    source: str
    content_sha256: str
    box_xyxy: FloatArray | None
    crop_jpeg: bytes | None
    landmarks: FloatArray | None
    paths: tuple[str, ...] = ()


def generations(view: ReadTransaction) -> tuple[Generation, Generation | None]:
    """The active generation, and the other if there is one."""
    rows = view.connection.execute(select(GenerationRow.__table__).order_by(GenerationRow.id)).all()
    embedded = _counts(view, EmbeddingRow)
    unembedded = _counts(view, UnembeddedRow)
    found = {
        row.state: _generation(row, embedded.get(row.id, 0), unembedded.get(row.id, 0))
        for row in rows
    }
    if ACTIVE not in found or len(rows) > 2:
        raise StoreCorrupt(
            "the database is damaged: it does not say which of its vectors are in use. "
            "Restore the gallery from a backup or an export."
        )
    return found[ACTIVE], found.get(STAGING) or found.get(RETIRED)


def _counts(view: ReadTransaction, table: Any) -> dict[int, int]:
    query = select(table.generation, func.count()).group_by(table.generation)
    return {row[0]: row[1] for row in view.connection.execute(query)}


def _generation(row: Any, embedded: int, unembedded: int) -> Generation:
    try:
        contract = EmbeddingContract.from_json(row.contract)
        thresholds = thresholds_from_json(row.thresholds)
    except (ValueError, KeyError, TypeError) as exc:
        raise StoreCorrupt(f"the database is damaged: contract of generation {row.id}") from exc
    return Generation(
        id=row.id,
        contract=contract,
        pack_name=row.pack_name,
        thresholds=thresholds,
        state=row.state,
        created_at=row.created_at,
        embedded=embedded,
        unembedded=unembedded,
    )


def add_staging(
    change: WriteTransaction,
    contract: EmbeddingContract,
    pack_name: str,
    thresholds: ThresholdTable | None,
) -> None:
    """Make an empty generation. Nobody's answers change, so the revision stays."""
    change.connection.execute(
        insert(GenerationRow).values(
            contract=contract.to_json(),
            pack_name=pack_name,
            thresholds=thresholds_json(thresholds),
            state=STAGING,
            created_at=datetime.now(timezone.utc),
        )
    )


def stage_again(
    change: WriteTransaction, generation: int, pack_name: str, thresholds: ThresholdTable | None
) -> None:
    """Make a generation ready to be completed, with its pack's latest thresholds."""
    values: dict[str, Any] = {"state": STAGING, "pack_name": pack_name}
    if thresholds is not None:
        values["thresholds"] = thresholds_json(thresholds)
    change.connection.execute(
        update(GenerationRow).where(GenerationRow.id == generation).values(**values)
    )


def activate(change: WriteTransaction, generation: int) -> None:
    """Let ``generation`` answer from the commit on; the one that did is kept, retired."""
    change.set_meta(generation=generation)
    for which, state in ((change.generation, RETIRED), (generation, ACTIVE)):
        change.connection.execute(
            update(GenerationRow).where(GenerationRow.id == which).values(state=state)
        )


def count_missing(view: ReadTransaction, generation: int) -> int:
    """Templates of which it is not known yet whether they can have a vector there."""
    rows: list[int] = []
    for table, where in (
        (TemplateRow, ()),
        (EmbeddingRow, (EmbeddingRow.generation == generation,)),
        (UnembeddedRow, (UnembeddedRow.generation == generation,)),
    ):
        query = select(func.count()).select_from(table).where(*where)
        rows.append(view.connection.execute(query).scalar_one())
    return rows[0] - rows[1] - rows[2]


def missing(
    view: ReadTransaction,
    generation: int,
    after: int = 0,
    limit: int = BATCH,
    *,
    retry: bool = False,
) -> list[StoredFace]:
    """The first templates behind the id ``after`` that have no vector in ``generation``.

    retry: also those that were found to have none.
    """
    where = (TemplateRow.id > after, *_lacks(generation, retry=retry))
    return _faces(view, *where, limit=limit)


def _lacks(generation: int, *, retry: bool) -> tuple[ColumnElement[bool], ...]:
    tables = (EmbeddingRow,) if retry else (EmbeddingRow, UnembeddedRow)
    return tuple(
        ~exists().where(table.template_id == TemplateRow.id, table.generation == generation)
        for table in tables
    )


def _faces(view: ReadTransaction, *where: ColumnElement[bool], limit: int) -> list[StoredFace]:
    query = (
        select(
            TemplateRow.id,
            TemplateRow.source,
            TemplateRow.content_sha256,
            TemplateRow.box,
            TemplateRow.photo_id,
            CropRow.jpeg,
            CropRow.landmarks,
        )
        .outerjoin(CropRow, CropRow.template_id == TemplateRow.id)
        .where(*where)
        .order_by(TemplateRow.id)
        .limit(limit)
    )
    rows = view.connection.execute(query).all()
    photos = {row.photo_id for row in rows if row.jpeg is None and row.photo_id is not None}
    paths = _paths(view, photos)
    return [
        StoredFace(
            id=row.id,
            source=row.source,
            content_sha256=row.content_sha256,
            box_xyxy=_floats(row.box, (4,)),
            crop_jpeg=row.jpeg,
            landmarks=_floats(row.landmarks, (5, 2)),
            paths=tuple(paths.get(row.photo_id, ())),
        )
        for row in rows
    ]


def _paths(view: ReadTransaction, photo_ids: set[int]) -> dict[int, list[str]]:
    """Photo id -> where its files were last seen."""
    found: dict[int, list[str]] = {}
    if photo_ids:
        query = select(FileRow.photo_id, FileRow.path).where(FileRow.photo_id.in_(photo_ids))
        for row in view.connection.execute(query.order_by(FileRow.id)):
            found.setdefault(int(row.photo_id or 0), []).append(path_of_key(row.path))
    return found


def _floats(data: bytes | None, shape: tuple[int, ...]) -> FloatArray | None:
    """None for numbers that are not there, or garbled: the photo may still do."""
    if data is None or len(data) != 4 * int(np.prod(shape)):
        return None
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)


def put_results(
    change: WriteTransaction,
    generation: int,
    vectors: Sequence[tuple[int, FloatArray]],
    reasons: Sequence[tuple[int, str]],
) -> int:
    """Keep the vectors of templates, and why others have none; returns how many vectors.

    At most ``BATCH`` of both. Templates that were removed meanwhile, or have a vector by now, are
    passed over. Templates that lacked a vector where an index may have been made already count as
    changed, so that it learns of them. Raises GalleryError where the generation was discarded.
    """
    at = change.connection
    if at.execute(select(GenerationRow.id).where(GenerationRow.id == generation)).first() is None:
        raise GalleryError("the vectors that were being made were discarded meanwhile")
    ids = [template_id for template_id, _ in (*vectors, *reasons)]
    there = set(at.execute(select(TemplateRow.id).where(TemplateRow.id.in_(ids))).scalars())
    known = select(EmbeddingRow.template_id).where(
        EmbeddingRow.template_id.in_(ids), EmbeddingRow.generation == generation
    )
    there -= set(at.execute(known).scalars())
    listed = (UnembeddedRow.template_id.in_(ids), UnembeddedRow.generation == generation)
    lacked = set(at.execute(select(UnembeddedRow.template_id).where(*listed)).scalars())
    at.execute(delete(UnembeddedRow).where(*listed))
    new = {i: vector.astype("<f4").tobytes() for i, vector in vectors if i in there}
    without = {i: reason for i, reason in reasons if i in there}
    if new:
        rows = [{"template_id": i, "generation": generation, "vector": v} for i, v in new.items()]
        at.execute(insert(EmbeddingRow), rows)
    if without:
        rows = [
            {"template_id": i, "generation": generation, "reason": r} for i, r in without.items()
        ]
        at.execute(insert(UnembeddedRow), rows)
    if changed := [i for i in new if i in lacked or generation == change.generation]:
        now = {"revision": change.touch()}
        at.execute(update(TemplateRow).where(TemplateRow.id.in_(changed)).values(**now))
    return len(new)


def draw(
    view: ReadTransaction, generation: int, count: int, rng: np.random.Generator
) -> list[tuple[StoredFace, FloatArray]]:
    """At most ``count`` templates that have a vector in ``generation``, at random, with it."""
    query = select(EmbeddingRow.template_id).where(EmbeddingRow.generation == generation)
    ids = np.array(view.connection.execute(query).scalars().all(), np.int64)
    some = rng.choice(ids, min(count, len(ids), BATCH), replace=False).tolist()
    blobs = select(EmbeddingRow.template_id, EmbeddingRow.vector).where(
        EmbeddingRow.generation == generation, EmbeddingRow.template_id.in_(some)
    )
    vectors = {row[0]: np.frombuffer(row[1], "<f4") for row in view.connection.execute(blobs)}
    faces = _faces(view, TemplateRow.id.in_(some), limit=BATCH)
    return [(face, vectors[face.id]) for face in faces]


def unembedded(view: ReadTransaction, generation: int) -> list[Unembedded]:
    """The templates that have no vector in ``generation``, by their person's name."""
    query = (
        select(
            UnembeddedRow.template_id,
            TemplateRow.identity_id,
            IdentityRow.name,
            TemplateRow.source,
            UnembeddedRow.reason,
        )
        .join(TemplateRow, TemplateRow.id == UnembeddedRow.template_id)
        .join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
        .where(UnembeddedRow.generation == generation)
        .order_by(IdentityRow.name_key, UnembeddedRow.template_id)
    )
    return [
        Unembedded(row[0], row[1], display_name(row[1], row[2]), row[3], row[4])
        for row in view.connection.execute(query)
    ]


def erase_some(change: WriteTransaction, generation: int, after: int) -> int | None:
    """Remove the next vectors of ``generation`` behind ``after``; the last id, None at the end."""
    behind = (EmbeddingRow.generation == generation, EmbeddingRow.template_id > after)
    query = select(EmbeddingRow.template_id).where(*behind).order_by(EmbeddingRow.template_id)
    ids = change.connection.execute(query.limit(ERASED_AT_ONCE)).scalars().all()
    if not ids:
        return None
    change.connection.execute(
        delete(EmbeddingRow).where(*behind, EmbeddingRow.template_id <= ids[-1])
    )
    return ids[-1]


def erase_generation(change: WriteTransaction, generation: int) -> None:
    """Remove the row of a generation that has no vectors left, and its list of reasons."""
    for table, column in (
        (UnembeddedRow, UnembeddedRow.generation),
        (GenerationRow, GenerationRow.id),
    ):
        change.connection.execute(delete(table).where(column == generation))
