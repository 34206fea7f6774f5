"""Those of a gallery whom nobody has named: who they are, and what people say of them.

Every such identity is a group of faces, of one face to begin with, called "unknown #ID".
:mod:`gallery.grouping` joins groups by itself; what is done here a person has decided, and
nothing undoes it: a name, a merge, a dismissal stay, and who was split stays apart. Imports the
core, SQLAlchemy and this package.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from sqlalchemy import Select, func, select

from facerec.errors import ConfigError, GalleryError, IdentityNotFound
from facerec.types import Decision, FloatArray, Identity
from gallery.apart import keep_apart, let_together, others_than
from gallery.gallery import Gallery
from gallery.joining import Joined, give, join, remove_empty
from gallery.policy import DEFAULT_FMR
from gallery.records import ReadTransaction, WriteTransaction
from gallery.schema import DISMISSED, NAMED, UNNAMED, EmbeddingRow, IdentityRow, TemplateRow
from gallery.values import LARGEST, NameOrId, identity_id, metadata_json

_ASKED = 32
"""Faces of a group that are looked up among the people, evenly chosen."""
_TOGETHER = 64
"""Groups whose faces are looked up in one search."""


@dataclass(frozen=True)
class Counts:
    """groups: of two faces or more. single: identities of one face. faces: of both.
    dismissed: identities that nobody wants to see."""

    groups: int
    single: int
    faces: int
    dismissed: int


@dataclass(frozen=True)
class Suggestion:
    """Whom a group resembles. votes: faces of the group, of ``asked`` that were looked up, for
    which :meth:`Gallery.identify` answers with this person. similarity: the highest of them.
    fmr: of each answer; NaN if unmeasured."""

    person_id: int
    name: str
    votes: int
    asked: int
    similarity: float
    fmr: float


class Unknown:
    """The unnamed of a gallery. Raises GalleryError where the store cannot be read or written."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery

    # Who is there?

    def count(self) -> Counts:
        """How many."""
        size = func.count(TemplateRow.id)
        sizes = (
            select(IdentityRow.state, size.label("size"))
            .join(TemplateRow, TemplateRow.identity_id == IdentityRow.id)
            .where(IdentityRow.state.in_((UNNAMED, DISMISSED)))  # by the index on states
            .group_by(IdentityRow.id, IdentityRow.state)
            .subquery()
        )
        query = select(sizes.c.state, sizes.c.size, func.count()).group_by(*sizes.c)
        with self._gallery.reading() as view:
            rows = view.connection.execute(query).all()
        of = [(size, number) for state, size, number in rows if state == UNNAMED]
        return Counts(
            groups=sum(number for size, number in of if size > 1),
            single=sum(number for size, number in of if size == 1),
            faces=sum(size * number for size, number in of),
            dismissed=sum(number for state, _, number in rows if state == DISMISSED),
        )

    def groups(
        self, *, at_least: int = 2, dismissed: bool = False, offset: int = 0, limit: int = 50
    ) -> list[Identity]:
        """Groups of ``at_least`` faces, the largest first, of equals the oldest."""
        if offset < 0 or limit < 0 or at_least < 0:
            raise GalleryError("offset, limit and at_least are not negative")
        offset, limit, at_least = (min(n, LARGEST) for n in (offset, limit, at_least))
        size = func.count(TemplateRow.id)
        query = (
            select(IdentityRow.id)
            .outerjoin(TemplateRow, TemplateRow.identity_id == IdentityRow.id)
            .where(IdentityRow.state == (DISMISSED if dismissed else UNNAMED))
            .group_by(IdentityRow.id)
            .having(size >= at_least)
            .order_by(size.desc(), IdentityRow.id)
            .offset(offset)
            .limit(limit)
        )
        with self._gallery.reading() as view:
            ids = view.connection.execute(query).scalars().all()
            return [view.identity(one) for one in ids]

    def group(self, group_id: int) -> Identity:
        """Raises IdentityNotFound; GalleryError for somebody who has a name."""
        with self._gallery.reading() as view:
            return unnamed(view, group_id)

    def suggestion(self, group_id: int, *, fmr: float | None = None) -> Suggestion | None:
        """The person that most of a group's faces are identified as; None where there is none.

        fmr: false-match rate of one comparison; by default 1/people, so that a search among
        all of them lets one stranger in, at most 1e-3 and within what was measured. Half of
        the faces asked must agree. Nobody is suggested who was said to be somebody else; and
        nobody without a threshold table, or people.
        """
        return self.suggestions([group_id], fmr=fmr)[group_id]

    def suggestions(
        self, group_ids: Sequence[int], *, fmr: float | None = None
    ) -> dict[int, Suggestion | None]:
        """The :meth:`suggestion` for each of the groups; faces of many go through one search."""
        found: dict[int, Suggestion | None] = {}
        for at in range(0, len(group_ids), _TOGETHER):
            found.update(self._suggest(group_ids[at : at + _TOGETHER], fmr))
        return found

    def _suggest(self, group_ids: Sequence[int], fmr: float | None) -> dict[int, Suggestion | None]:
        with self._gallery.reading() as view:
            asked = {one: _vectors(view, unnamed(view, one).id) for one in group_ids}
            never = {one: others_than(view, one) for one in group_ids}
            people = view.count_identities()
        found: dict[int, Suggestion | None] = dict.fromkeys(asked)
        vectors = np.concatenate(list(asked.values()))
        table = self._gallery.thresholds
        if table is None or not people or not len(vectors):
            return found
        wanted = fmr or min(max(min(DEFAULT_FMR, 1 / people), table.fmr[-1]), table.fmr[0])
        try:
            k = 1 + max(map(len, never.values()))
            answers = iter(self._gallery.identify(vectors, k=k, fmr=wanted))
        except ConfigError as exc:
            raise ConfigError(f"no suggestion: {exc}") from exc
        for one, rows in asked.items():
            found[one] = _most_named(list(islice(answers, len(rows))), never[one], wanted)
        return found

    # What people say

    def name(self, group_id: int, name: str) -> tuple[Identity, Joined]:
        """Say who a group is. Of a name that is there, the group becomes part of that person.

        Faces of photos that show the person already stay unknown (see gallery.joining).
        Raises IdentityNotFound, GalleryError for a bad name or a group that has a name.
        """
        with self._gallery.writing() as change:
            group = unnamed(change, group_id)
            person = change.find(name)
            if person is None:
                change.set_state(group.id, NAMED, name)
                joined = Joined(group.template_count)
            else:
                let_together(change, group.id, person.id)
                joined = self._join(change, group, person)
                change.set_details(person.id, metadata_json({**group.metadata, **person.metadata}))
            person = change.find(name)
            assert person is not None
        self._tidy(joined)
        return person, joined

    def merge(self, into: int, others: Sequence[int]) -> tuple[Identity, Joined]:
        """Say that groups are one person: all become part of ``into``, which keeps its number.

        Raises IdentityNotFound, GalleryError for a group that has a name or is merged with itself.
        """
        moved = same = left = 0
        with self._gallery.writing() as change:
            keep = unnamed(change, into)
            for other in others:
                gone = unnamed(change, other)
                if gone.id == keep.id:
                    raise GalleryError(f"unknown #{keep.id} cannot be merged with itself")
                let_together(change, gone.id, keep.id)
                joined = self._join(change, gone, keep)
                moved, same, left = moved + joined.moved, same + joined.same, left + joined.left
            group = change.identity(keep.id)
        total = Joined(moved, same, left)
        self._tidy(total)
        return group, total

    def split(self, who: NameOrId, template_ids: Sequence[int]) -> Identity:
        """Say that some faces of somebody, known or not, are somebody else: a new group.

        The two are kept apart. Raises IdentityNotFound; GalleryError for faces that are not
        theirs, none, or all.
        """
        wanted = sorted({identity_id(i) for i in template_ids})
        with self._gallery.writing() as change:
            old = change.identity(who)
            theirs = {template.id for template in change.templates(old.id)}
            if strange := sorted(set(wanted) - theirs):
                lists = "people" if old.state == NAMED else "cluster"
                raise GalleryError(
                    f"{old.name} has no view {strange[0]}; 'facerec {lists} show' lists them"
                )
            if not wanted or len(wanted) == len(theirs):
                raise GalleryError(
                    f"name some of {old.name}'s {len(theirs)} views to split off, but not all"
                )
            [new_id] = change.add_unnamed(1)
            give(change, wanted, new_id)
            keep_apart(change, new_id, others_than(change, old.id) | {old.id})
            return change.identity(new_id)

    def dismiss(self, group_ids: Sequence[int], *, undo: bool = False) -> list[Identity]:
        """Say that nobody wants to see groups, or (``undo``) that somebody does again.

        New faces of theirs join them in silence. Raises IdentityNotFound, GalleryError for
        somebody with a name.
        """
        with self._gallery.writing() as change:
            ids = [unnamed(change, group_id).id for group_id in group_ids]
            for one in ids:
                change.set_state(one, UNNAMED if undo else DISMISSED)
            return [change.identity(one) for one in ids]

    def keep_apart(self, group_id: int, other: NameOrId) -> tuple[Identity, Identity]:
        """Say that a group is not somebody, known or not; they are never joined by themselves,
        nor is one suggested for the other. Raises IdentityNotFound, GalleryError."""
        with self._gallery.writing() as change:
            group, them = unnamed(change, group_id), change.identity(other)
            if group.id == them.id:
                raise GalleryError(f"{group.name} cannot be kept apart from itself")
            keep_apart(change, group.id, [them.id])
            return group, them

    def _join(self, change: WriteTransaction, group: Identity, into: Identity) -> Joined:
        if group.template_count:
            return join(self._gallery, change, group.id, into.id)
        remove_empty(change, [group.id])
        return Joined(0)

    def _tidy(self, joined: Joined) -> None:
        if joined.same:
            self._gallery.compact()


def unnamed(view: ReadTransaction, group_id: int) -> Identity:
    """Raises IdentityNotFound; GalleryError for somebody who has a name."""
    try:
        found = view.identity(identity_id(group_id))
    except IdentityNotFound as exc:
        raise IdentityNotFound(
            f"there is no unknown #{group_id}; it may have become part of another. "
            "'facerec cluster list' shows those that are there."
        ) from exc
    if found.state == NAMED:
        raise GalleryError(f"#{group_id} has a name: {found.name}. Use 'facerec people'.")
    return found


def _most_named(
    answers: Sequence[Decision], never: Collection[int], fmr: float
) -> Suggestion | None:
    """Whom at least half of the answers match, leaving out those who are ``never`` it."""
    found = [
        next((c for c in answer.candidates if c.identity_id not in never), None)
        for answer in answers
    ]
    threshold = answers[0].threshold if answers else math.inf
    hits = [c for c in found if c is not None and c.similarity >= threshold]
    if not hits:
        return None
    votes = Counter(c.identity_id for c in hits)
    best, number = max(votes.items(), key=lambda item: (item[1], -item[0]))
    if 2 * number < len(answers):
        return None
    nearest = max((c for c in hits if c.identity_id == best), key=lambda c: c.similarity)
    return Suggestion(best, nearest.name, number, len(answers), nearest.similarity, fmr)


def _vectors(view: ReadTransaction, group_id: int) -> FloatArray:
    """(m, d) vectors of at most ``_ASKED`` faces of a group, evenly chosen."""
    ids = view.connection.execute(_ids_with_vector(view, group_id)).scalars().all()
    chosen = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, _ASKED).astype(int)) if ids]
    query = select(EmbeddingRow.vector).where(
        EmbeddingRow.template_id.in_(chosen),
        EmbeddingRow.generation == view.generation,
    )
    data = b"".join(view.connection.execute(query).scalars())
    return np.frombuffer(data, "<f4").reshape(-1, view.dim).astype(np.float32)


def _ids_with_vector(view: ReadTransaction, group_id: int) -> Select[Any]:
    return (
        select(TemplateRow.id)
        .join(EmbeddingRow, EmbeddingRow.template_id == TemplateRow.id)
        .where(TemplateRow.identity_id == group_id, EmbeddingRow.generation == view.generation)
        .order_by(TemplateRow.id)
    )
