"""What was indexed before: files by path, photos by content, and their faces.

A photo is known by its content and by the name that it was indexed under, its *label*: a
digest, so that nobody's name outlives their removal. Functions work inside one transaction of
the store. Imports the core, numpy, SQLAlchemy, and this package's items, schema, records, values.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import aliased

from facerec.types import FloatArray, Rejection
from gallery.items import displayable, kind_of, path_key, path_of_key
from gallery.records import ReadTransaction, WriteTransaction
from gallery.schema import (
    NAMED,
    EmbeddingRow,
    FileRow,
    IdentityRow,
    PhotoRow,
    TemplateRow,
)
from gallery.values import name_key

T = TypeVar("T")

ENROLLED, DUPLICATE, REJECTED = "enrolled", "duplicate", "rejected"
NO_FACE, FAILED, REMOVED = "no_face", "failed", "removed"
"""What became of a photo: faces of it are kept; were kept before; all were refused; it has none;
it cannot be read; whom it showed was removed from the gallery, and is to stay so."""
INCOMPLETE, PASSED_OVER = -1, -2
"""Sizes of an archive that was not read to its end yet, and of one that was, but for a member
that has to be read again."""

_SAME_FACE = 0.9999
"""Cosine of one face of one photo with itself, embedded in another batch."""
_SQL_BATCH = 250  # below the oldest limit on variables of a statement, 999
_archive = aliased(FileRow)
_FILES = (
    select(
        FileRow.id,
        FileRow.path,
        FileRow.size,
        FileRow.mtime_ns,
        FileRow.photo_id,
        PhotoRow.label,
        PhotoRow.outcome,
        PhotoRow.content_sha256,
        _archive.path.label("archive"),
        FileRow.label.label("naming"),
    )
    .outerjoin(PhotoRow, PhotoRow.id == FileRow.photo_id)
    .outerjoin(_archive, _archive.id == FileRow.archive_id)
)


@dataclass(frozen=True)
class FileEntry:
    """A path and what was there. photo_id, label, outcome, sha256: of the photo; None for an
    archive. archive: key of the archive that it is a member of. naming: of an archive."""

    id: int
    key: str
    size: int
    mtime_ns: int
    photo_id: int | None
    label: str | None
    outcome: str | None
    sha256: str | None
    archive: str | None
    naming: str

    def is_gone(self) -> bool:
        """Whether there certainly is no such file any more; its folder may just be unreadable."""
        try:
            os.lstat(path_of_key(self.archive or self.key))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, ValueError):
            return False
        return False


@dataclass(frozen=True)
class PhotoEntry:
    """A content, the label that it was indexed under, and what became of it."""

    id: int
    sha256: str
    label: str
    outcome: str


@dataclass(frozen=True, eq=False)
class KnownFace:
    """A face of a photo that the gallery has, under whatever name.

    template_id, identity_id, photo_id: None for one that is about to be added. name: None for
    somebody without one. vector: (d,) float32.
    """

    template_id: int | None
    identity_id: int | None
    photo_id: int | None
    name: str | None
    vector: FloatArray

    def is_face(self, embedding: FloatArray) -> bool:
        """Whether a (d,) embedding from the same photo is this very face."""
        return float(self.vector @ embedding) >= _SAME_FACE


def label_of(name: str | None) -> str:
    """The digest by which a name is remembered, 16 hexadecimal digits; empty for no name."""
    return "" if name is None else hashlib.sha256(name_key(name).encode()).hexdigest()[:16]


def naming_label(naming: str) -> str:
    """The same for where the names of an archive's photos came from."""
    return hashlib.sha256(naming.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def is_settled(outcome: str | None, label: str | None, wanted: str, *, retry: bool) -> bool:
    """Whether a photo that was indexed under ``label`` need not be indexed under ``wanted``.

    Without a name wanted, any name that faces were kept under will do: it says more.
    retry: only faces that were kept settle it.
    """
    kept = outcome in (ENROLLED, DUPLICATE)
    if retry and not kept:
        return False
    return label == wanted or (wanted == "" and (kept or outcome == REMOVED))


def settled_by(
    photos: Iterable[PhotoEntry], wanted: str, *, retry: bool = False
) -> PhotoEntry | None:
    """Of the entries of one content, the one that settles it for the label; that label first."""
    fitting = [p for p in photos if is_settled(p.outcome, p.label, wanted, retry=retry)]
    return min(fitting, key=lambda p: (p.label != wanted, p.id), default=None)


def files_at(view: ReadTransaction, keys: Iterable[str]) -> dict[str, FileEntry]:
    """key -> what was last seen at that path."""
    found: dict[str, FileEntry] = {}
    for some in _batches(keys):
        found.update((e.key, e) for e in _files(view, _FILES.where(FileRow.path.in_(some))))
    return found


def files_of(view: ReadTransaction, photo_ids: Iterable[int]) -> dict[int, list[FileEntry]]:
    """photo id -> the files that hold it."""
    found: dict[int, list[FileEntry]] = {}
    for some in _batches(photo_ids):
        for entry in _files(view, _FILES.where(FileRow.photo_id.in_(some))):
            found.setdefault(entry.photo_id or 0, []).append(entry)
    return found


def members_of(view: ReadTransaction, archive_id: int) -> dict[str, FileEntry]:
    """key -> member of that archive."""
    query = _FILES.where(FileRow.archive_id == archive_id)
    return {entry.key: entry for entry in _files(view, query)}


def count_members(view: ReadTransaction, archive_id: int) -> tuple[int, int]:
    """How many members of that archive there are, and how many of them could not be read."""
    query = (
        select(PhotoRow.outcome, func.count())
        .select_from(FileRow)
        .outerjoin(PhotoRow, PhotoRow.id == FileRow.photo_id)
        .where(FileRow.archive_id == archive_id)
        .group_by(PhotoRow.outcome)
    )
    counts: dict[str, int] = dict(view.connection.execute(query).all())
    return sum(counts.values()), counts.get(FAILED, 0)


def files_below(view: ReadTransaction, start: str, after: str, limit: int) -> list[FileEntry]:
    """At most ``limit`` files whose keys begin with ``start``, one of :func:`starts_below`.

    after: the key after which to go on, in the database's own order; "" to begin with. Members of
    archives are left out: they are where their archive is.
    """
    path = FileRow.path
    if view.connection.dialect.name == "sqlite":  # compares bytes, so that its index finds them
        first, end = after or start, start[:-1] + chr(ord(start[-1]) + 1)
        below = (path > first) & (path < end)
    else:
        below = path.startswith(start, autoescape=True) & (path > after)
    # The sum keeps SQLite from going through all files by the index on archives instead.
    query = _FILES.where(below, (FileRow.archive_id + 0).is_(None)).order_by(path).limit(limit)
    return list(_files(view, query))


def starts_below(root: str) -> tuple[str, ...]:
    """What the keys of files below the path ``root`` begin with; odd names are spelt otherwise."""
    folder = root.rstrip(os.sep) + os.sep
    plain, odd = path_key(folder), path_key(folder + "\udcff").removesuffix("%FF")
    return (odd,) if plain.startswith("bytes:") else (plain, odd)


def photos_of(view: ReadTransaction, contents: Iterable[str]) -> dict[str, list[PhotoEntry]]:
    """sha256 -> what became of that content, under whichever labels."""
    found: dict[str, list[PhotoEntry]] = {}
    columns = select(PhotoRow.id, PhotoRow.content_sha256, PhotoRow.label, PhotoRow.outcome)
    for some in _batches(contents):
        for row in view.connection.execute(columns.where(PhotoRow.content_sha256.in_(some))):
            found.setdefault(row[1], []).append(PhotoEntry(*row))
    return found


def faces_of(view: ReadTransaction, contents: Iterable[str]) -> dict[str, list[KnownFace]]:
    """sha256 -> the faces that the gallery has of that photo, indexed or enrolled."""
    found: dict[str, list[KnownFace]] = {}
    columns = (
        select(
            TemplateRow.content_sha256,
            TemplateRow.id,
            TemplateRow.identity_id,
            TemplateRow.photo_id,
            IdentityRow.name,
            EmbeddingRow.vector,
        )
        .join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
        .join(EmbeddingRow, EmbeddingRow.template_id == TemplateRow.id)
        .where(EmbeddingRow.generation == view.generation)
        .order_by(TemplateRow.id)
    )
    for some in _batches(contents):
        for row in view.connection.execute(columns.where(TemplateRow.content_sha256.in_(some))):
            vector = np.frombuffer(row.vector, "<f4")
            face = KnownFace(row.id, row.identity_id, row.photo_id, row.name, vector)
            found.setdefault(row.content_sha256, []).append(face)
    return found


def people_named(view: ReadTransaction, names: Iterable[str]) -> dict[str, int]:
    """Name key -> id of the person, of those names that somebody has."""
    found: dict[str, int] = {}
    columns = select(IdentityRow.name_key, IdentityRow.id)
    for some in _batches(sorted({name_key(name) for name in names})):
        for row in view.connection.execute(columns.where(IdentityRow.name_key.in_(some))):
            found[str(row[0])] = row[1]
    return found


def enrolled_as_another(
    known: Iterable[KnownFace], embedding: FloatArray, person_id: int | None
) -> Iterator[Rejection]:
    """One face cannot be two people; the photo, of a group, can show both.

    known: the faces that the gallery has of the photo. embedding: (d,), of the face that is to
    be the person's.
    """
    for face in known:
        is_theirs = person_id is not None and face.identity_id == person_id
        if face.name is None or is_theirs or not face.is_face(embedding):
            continue
        yield Rejection(
            "enrolled_as_another",
            f"This face of this photo is enrolled as {face.name!r}. Remove it there, or merge "
            "the two people.",
        )


def unheld(view: ReadTransaction, photo_ids: Iterable[int]) -> list[int]:
    """Those of the photos that no file holds."""
    wanted = sorted(set(photo_ids))
    held = files_of(view, wanted)
    return [photo_id for photo_id in wanted if photo_id not in held]


def remove_photos(
    change: WriteTransaction, photo_ids: Sequence[int], *, displaced: bool = False
) -> int:
    """Remove photos that no file holds any more, and their templates; how many templates.

    Templates stay if the photo lies elsewhere and is kept there for the same person, or for
    nobody in particular; so do the people of a photo that was indexed without a name.
    displaced: what it shows goes by another name now, so that only the former stay.
    Somebody without a name who has no face left goes too; a person stays.
    """
    ids: list[int] = []
    for some in _batches(photo_ids):
        _hand_over(change, some, displaced=displaced)
        query = select(TemplateRow.id).where(TemplateRow.photo_id.in_(some))
        ids += change.connection.execute(query).scalars().all()
    remove_faces(change, ids)
    for some in _batches(photo_ids):
        change.connection.execute(delete(PhotoRow).where(PhotoRow.id.in_(some)))
    return len(ids)


def _hand_over(change: WriteTransaction, photo_ids: Sequence[int], *, displaced: bool) -> None:
    """Give templates to other photos of the same content, which are held, as said above."""
    query = select(PhotoRow.content_sha256).where(PhotoRow.id.in_(photo_ids))
    contents = set(change.connection.execute(query).scalars())
    alike = [p for photos in photos_of(change, contents).values() for p in photos]
    kept = [p for p in alike if p.outcome in (ENROLLED, DUPLICATE)]
    holders = files_of(change, [p.id for p in kept])  # those that go have none
    heirs: dict[str, dict[str, int]] = {}  # content -> label -> photo
    for photo in kept:
        if photo.id in holders:
            heirs.setdefault(photo.sha256, {})[photo.label] = photo.id
    if not heirs:
        return
    photo_columns = (PhotoRow.content_sha256, PhotoRow.label)
    theirs = (
        select(TemplateRow.id, TemplateRow.source, *photo_columns, IdentityRow.name)
        .join(PhotoRow, PhotoRow.id == TemplateRow.photo_id)
        .join(IdentityRow, IdentityRow.id == TemplateRow.identity_id)
        .where(PhotoRow.id.in_(photo_ids))
    )
    for row in change.connection.execute(theirs).all():
        labels = heirs.get(row.content_sha256, {})
        heir = labels.get(label_of(row.name))
        if heir is None and not displaced:
            given_here = row.label == "" and row.name is not None
            heir = labels.get("", min(labels.values(), default=None) if given_here else None)
        if heir is not None:
            values = {"photo_id": heir, "source": _source_at(row.source, holders[heir])}
            this = TemplateRow.id == row.id
            change.connection.execute(update(TemplateRow).where(this).values(**values))


def _source_at(source: str, holders: Sequence[FileEntry]) -> str:
    """A template's source, where its photo or video is held by these files now."""
    is_video = kind_of(holders[0].key) == "video"
    path, mark, moment = source.rpartition("#t=") if is_video else (source, "", "")
    if path in [displayable(path_of_key(entry.key)) for entry in holders]:
        return source
    here = next((entry for entry in holders if not entry.is_gone()), holders[0])
    return displayable(path_of_key(here.key)) + mark + moment


def remove_faces(change: WriteTransaction, template_ids: Sequence[int]) -> None:
    """Remove templates, and whoever had no other and no name."""
    owners: set[int] = set()
    for some in _batches(template_ids):
        query = select(TemplateRow.identity_id).where(TemplateRow.id.in_(some))
        owners.update(change.connection.execute(query).scalars())
    change.remove_templates(template_ids)
    left = select(TemplateRow.id).where(TemplateRow.identity_id == IdentityRow.id).exists()
    for some in _batches(sorted(owners)):
        change.connection.execute(
            delete(IdentityRow).where(IdentityRow.id.in_(some), IdentityRow.state != NAMED, ~left)
        )


def remove_files(change: WriteTransaction, file_ids: Sequence[int]) -> None:
    """Forget paths, and the members of those that are archives."""
    for some in _batches(file_ids):
        change.connection.execute(delete(FileRow).where(FileRow.id.in_(some)))


def forget_person(change: WriteTransaction, identity_id: int, name: str | None) -> None:
    """Before a person is removed: forget where their photos lie, as paths may hold the name.

    Of the photos only the content's digest stays, so that the next run over the same folder
    does not bring the person back. A photo that shows others too is left as it is.
    """
    theirs = select(TemplateRow.photo_id).where(TemplateRow.identity_id == identity_id)
    others = (
        select(TemplateRow.id)
        .where(TemplateRow.photo_id == PhotoRow.id, TemplateRow.identity_id != identity_id)
        .exists()
    )
    query = select(PhotoRow.id, PhotoRow.label).where(PhotoRow.id.in_(theirs), ~others)
    rows = change.connection.execute(query).all()
    labels = {row.label for row in rows} | {label_of(name)}
    labels.discard("")
    ids = {row.id for row in rows}
    if labels:
        named = select(PhotoRow.id).where(PhotoRow.label.in_(sorted(labels)), ~others)
        ids |= set(change.connection.execute(named).scalars())
    for some in _batches(sorted(ids)):
        change.connection.execute(delete(FileRow).where(FileRow.photo_id.in_(some)))
        change.connection.execute(
            update(PhotoRow).where(PhotoRow.id.in_(some)).values(outcome=REMOVED, details="{}")
        )


def _files(view: ReadTransaction, query: Any) -> Iterator[FileEntry]:
    for row in view.connection.execute(query):
        yield FileEntry(*row)


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while some := list(islice(rest, _SQL_BATCH)):
        yield some
