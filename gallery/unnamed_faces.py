"""The unnamed faces of a gallery as of one moment, for grouping. Imports the core, numpy,
SQLAlchemy, and this package's records, schema, apart, clustering and joining.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from sqlalchemy import select

from facerec.types import FloatArray
from gallery.apart import all_pairs
from gallery.clustering import NO_PAIRS, Labels, Pairs
from gallery.joining import SAME_FACE
from gallery.records import ReadTransaction
from gallery.schema import DISMISSED, NAMED, IdentityRow, TemplateRow

_AT_ONCE = 1 << 16


@dataclass(eq=False)
class Snapshot:
    """ids: (n,) templates, ascending, with (n,) owners and (n, d)
    vectors. faces: identity -> its templates, those without a vector too. photos: template -> the
    picture that it is of, by number. apart: pairs of identities."""

    ids: Labels
    owners: Labels
    vectors: FloatArray
    faces: dict[int, tuple[int, ...]]
    dismissed: set[int]
    photos: dict[int, tuple[int, ...]]
    apart: list[tuple[int, int]]


def read_unnamed(view: ReadTransaction) -> Snapshot:
    """Everybody without a name, the dismissed too. Raises StoreCorrupt."""
    batches = list(view.vectors_since(0, named=False))
    ids = np.concatenate([np.empty(0, np.int64), *(batch.ids for batch in batches)])
    owners = np.concatenate([np.empty(0, np.int64), *(batch.owners for batch in batches)])
    rows = [np.empty((0, view.dim), np.float32), *(batch.vectors for batch in batches)]
    query = (
        select(
            TemplateRow.id,
            TemplateRow.identity_id,
            TemplateRow.content_sha256,
            TemplateRow.source,
            TemplateRow.face,
        )
        .join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
        .where(IdentityRow.state != NAMED)
        .order_by(TemplateRow.id)
    )
    faces: dict[int, list[int]] = {}
    pictures: dict[tuple[str, str | int], int] = {}
    photos: dict[int, tuple[int, ...]] = {}
    for template_id, owner, content, source, face in view.connection.execute(query):
        faces.setdefault(owner, []).append(template_id)
        keys = ((content, source), (content, face))  # one picture: see gallery.joining.one_photo
        photos[template_id] = tuple(pictures.setdefault(key, len(pictures)) for key in keys)
    dismissed = select(IdentityRow.id).where(IdentityRow.state == DISMISSED)
    return Snapshot(
        ids=ids,
        owners=owners,
        vectors=np.concatenate(rows),
        faces={owner: tuple(theirs) for owner, theirs in faces.items()},
        dismissed=set(view.connection.execute(dismissed).scalars()),
        photos=photos,
        apart=all_pairs(view),
    )


def rows_of_one_photo(snapshot: Snapshot) -> Pairs:
    """Faces of different identities from one picture, but for a face that was found twice."""
    there: dict[int, list[int]] = {}
    for row, template_id in enumerate(snapshot.ids.tolist()):
        for photo in snapshot.photos[template_id]:
            there.setdefault(photo, []).append(row)
    found = [pair for rows in there.values() for pair in combinations(rows, 2)]
    if not found:
        return NO_PAIRS
    a, b = np.array(found, np.int64).T
    vectors = snapshot.vectors
    alike = np.concatenate(
        [
            np.einsum("nd,nd->n", vectors[a[at : at + _AT_ONCE]], vectors[b[at : at + _AT_ONCE]])
            for at in range(0, len(a), _AT_ONCE)
        ]
    )
    two = (snapshot.owners[a] != snapshot.owners[b]) & (alike < SAME_FACE)
    return Pairs.of(a[two], b[two])


def rows_apart(snapshot: Snapshot) -> Pairs:
    """Faces of identities that were said to be two people: one of each with all of the other."""
    wanted = [identity for pair in snapshot.apart for identity in pair]
    rows_of: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.isin(snapshot.owners, wanted)).tolist():
        rows_of.setdefault(int(snapshot.owners[row]), []).append(row)
    pairs: list[tuple[int, int]] = []
    for first, second in snapshot.apart:
        ours, theirs = rows_of.get(first, []), rows_of.get(second, [])
        if ours and theirs:
            pairs += [(ours[0], row) for row in theirs] + [(row, theirs[0]) for row in ours]
    return Pairs.of([a for a, _ in pairs], [b for _, b in pairs])
