"""Making one identity part of another, face by face; the rules that every way of it keeps.

One photo shows a person once. Faces of one photo (or one frame of a video) are therefore two
people, unless they are the very same face found twice, of which one stays. Imports the core,
numpy, SQLAlchemy, and this package's records, schema, apart and gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import delete, select, update

from facerec.types import FloatArray
from gallery.apart import inherit, keep_apart
from gallery.gallery import Gallery
from gallery.records import ReadTransaction, WriteTransaction
from gallery.schema import EmbeddingRow, IdentityRow, TemplateRow

SAME_FACE = 0.9999
"""Similarity from which two templates of one photo are one face, found twice."""
_AT_ONCE = 250


@dataclass(frozen=True)
class Joined:
    """What became of the templates of an identity that was to be part of another.

    moved: templates that are the other's now. same: templates that were the very face of a photo
    that the other has already; they are gone. left: templates of photos that show the other
    already, elsewhere in the picture; they stay with whom they belonged to.
    """

    moved: int
    same: int = 0
    left: int = 0


def join(gallery: Gallery, change: WriteTransaction, from_id: int, to_id: int) -> Joined:
    """Give ``from_id``'s templates to ``to_id``; the identity goes if it has none left.

    What is left is kept apart from ``to_id`` from now on. Both ids exist and differ.
    """
    same, left = _clashes(change, from_id, to_id)
    if same:
        gallery.mark_removal(change)
        change.remove_templates(same)
    query = select(TemplateRow.id).where(TemplateRow.identity_id == from_id)
    ids = [i for i in change.connection.execute(query).scalars() if i not in left]
    give(change, ids, to_id)
    if left:
        keep_apart(change, from_id, [to_id])
    else:
        inherit(change, from_id, to_id)
        remove_empty(change, [from_id])
    return Joined(len(ids), len(same), len(left))


def give(change: WriteTransaction, template_ids: Sequence[int], to_id: int) -> None:
    """Make templates ``to_id``'s, whatever they show."""
    revision = change.touch()
    for at in range(0, len(template_ids), _AT_ONCE):
        some = template_ids[at : at + _AT_ONCE]
        change.connection.execute(
            update(TemplateRow)
            .where(TemplateRow.id.in_(some))
            .values(identity_id=to_id, revision=revision)
        )


def remove_empty(change: WriteTransaction, identity_ids: Sequence[int]) -> None:
    """Remove identities that have no template, and what is known of them."""
    change.touch()
    has_any = select(TemplateRow.id).where(TemplateRow.identity_id == IdentityRow.id).exists()
    for at in range(0, len(identity_ids), _AT_ONCE):
        some = identity_ids[at : at + _AT_ONCE]
        change.connection.execute(delete(IdentityRow).where(IdentityRow.id.in_(some), ~has_any))


def one_photo(a: Any, b: Any) -> bool:
    """Whether two templates of one content are of one picture, not of two frames of a video."""
    return bool(a.source == b.source or a.face == b.face)


def _clashes(change: ReadTransaction, from_id: int, to_id: int) -> tuple[list[int], set[int]]:
    """Templates of ``from_id`` from photos that ``to_id`` has: the same faces, and others."""
    theirs = select(TemplateRow.content_sha256).where(TemplateRow.identity_id == to_id)
    contents = select(TemplateRow.content_sha256).where(
        TemplateRow.identity_id == from_id, TemplateRow.content_sha256.in_(theirs)
    )
    query = (
        select(
            TemplateRow.id,
            TemplateRow.identity_id,
            TemplateRow.content_sha256,
            TemplateRow.source,
            TemplateRow.face,
            EmbeddingRow.vector,
        )
        .outerjoin(
            EmbeddingRow,
            (EmbeddingRow.template_id == TemplateRow.id)
            & (EmbeddingRow.generation == change.generation),
        )
        .where(
            TemplateRow.identity_id.in_((from_id, to_id)),
            TemplateRow.content_sha256.in_(contents),
        )
        .order_by(TemplateRow.id)
    )
    rows = change.connection.execute(query).all()
    there: dict[str, list[Any]] = {}
    for row in rows:
        if row.identity_id == to_id:
            there.setdefault(row.content_sha256, []).append(row)
    same, left = [], set()
    for row in rows:
        if row.identity_id != from_id:
            continue
        others = there[row.content_sha256]
        if any(_similarity(row, other) >= SAME_FACE for other in others):
            same.append(row.id)
        elif any(one_photo(row, other) for other in others):
            left.add(row.id)
    return same, left


def _similarity(a: Any, b: Any) -> float:
    if a.vector is None or b.vector is None:
        return -1.0
    return float(_vector(a.vector) @ _vector(b.vector))


def _vector(data: bytes) -> FloatArray:
    return np.frombuffer(data, "<f4").astype(np.float32)
