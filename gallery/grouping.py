"""Groups the unnamed faces of a gallery, and never undoes what a person decided.

Faces are compared in a snapshot, which takes its time; what follows from that is written in many
small transactions, each of which looks again at whom it changes: somebody who was named,
joined, split or removed meanwhile is left alone, and the next run looks anew. Stopped at any
moment, all that was written is right, and the next run goes on. Imports the core, numpy,
SQLAlchemy and this package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from sqlalchemy import bindparam, select, update

from gallery.apart import all_pairs, inherit
from gallery.clustering import (
    Labels,
    Pairs,
    average_linkage,
    find_links,
    linking_point,
)
from gallery.gallery import Gallery
from gallery.joining import join, remove_empty
from gallery.records import ReadTransaction, WriteTransaction
from gallery.schema import DISMISSED, UNNAMED, IdentityRow, TemplateRow
from gallery.unnamed_faces import Snapshot, read_unnamed, rows_apart, rows_of_one_photo

Progress = Callable[[str, int, int], object]
"""Told what is being done, how much of it is done, and how much it is."""

_COMMIT = 500
"""Identities that become part of others in one transaction."""
_IN = 250  # below the oldest limit on variables of a statement


@dataclass(frozen=True)
class GroupReport:
    """What a run did. faces: that were compared, of how many identities; without: faces that have
    no embedding. groups: of two faces or more, afterwards. joined: identities that became part
    of another. overtaken: that were left alone, as somebody changed them meanwhile, or took away
    from what they were to be part of, or put in what cannot be the same person. threshold:
    cosine from which faces are linked, and its FMR (NaN: unmeasured)."""

    faces: int
    without: int
    groups: int
    joined: int
    overtaken: int
    threshold: float
    fmr: float
    seconds: float


@dataclass(frozen=True)
class _Plan:
    """Identities ``parts`` are to be part of ``into``. careful: some share a photo."""

    into: int
    parts: tuple[int, ...]
    careful: bool


@dataclass(eq=False)
class _Outcome:
    joined: int = 0
    overtaken: int = 0
    same: int = 0


def group_unknown(
    gallery: Gallery,
    *,
    fmr: float | None = None,
    threshold: float | None = None,
    progress: Progress | None = None,
) -> GroupReport:
    """Join the unnamed faces that are one person's: see :mod:`gallery.clustering`.

    Groups that are there stay whole and keep their numbers: new faces join them; two that have
    come to resemble each other become one, under the older number. Dismissed ones take
    faces in, and are joined with nobody. Whoever was said to be two people is not joined. fmr:
    rate of false links instead of the rule of ``linking_point``, or threshold: a cosine. Raises
    ConfigError for a rate that was not measured, GalleryError.
    """
    started = time.monotonic()
    tell: Progress = progress or (lambda what, done, total: None)
    with gallery.reading() as view:
        snapshot = read_unnamed(view)
    n = len(snapshot.ids)
    point = linking_point(
        gallery.thresholds, n, pack_name=gallery.pack_name, fmr=fmr, threshold=threshold
    )
    links = find_links(
        snapshot.vectors,
        point.threshold,
        progress=lambda done, total: tell("comparing", done, total),
    )
    plans = _plans(snapshot, _group(snapshot, links, point.threshold))
    outcome = _carry_out(gallery, snapshot, plans, tell)
    from gallery.unknown import Unknown

    return GroupReport(
        faces=n,
        without=sum(map(len, snapshot.faces.values())) - n,
        groups=Unknown(gallery).count().groups,
        joined=outcome.joined,
        overtaken=outcome.overtaken,
        threshold=point.threshold,
        fmr=point.fmr,
        seconds=time.monotonic() - started,
    )


# Decide


def _group(snapshot: Snapshot, links: Pairs, threshold: float) -> Labels:
    """(n,) group of each face, called by one of its rows.

    First new faces go to each other and to what is there, in which a face may be alike to a part
    only: a child's photos to the child's. Then what is there is joined, as a whole.
    """
    n = len(snapshot.ids)
    if not n:
        return np.empty(0, np.int64)
    _, firsts, whose = np.unique(snapshot.owners, return_index=True, return_inverse=True)
    is_there = np.array(
        [
            len(snapshot.faces[int(owner)]) > 1 or int(owner) in snapshot.dismissed
            for owner in snapshot.owners[firsts]
        ]
    )[whose]
    owners = np.where(is_there, whose, -1)
    apart = _union(rows_of_one_photo(snapshot), rows_apart(snapshot))
    labels = average_linkage(snapshot.vectors, links, threshold, owners=owners, apart=apart)
    whole = _whole(labels, owners, firsts)
    hidden = np.isin(whole, whole[np.isin(snapshot.owners, list(snapshot.dismissed))])
    links = links.take(~hidden[links.first] & ~hidden[links.second])
    return average_linkage(snapshot.vectors, links, threshold, start=whole, apart=apart)


def _whole(labels: Labels, owners: Labels, firsts: Labels) -> Labels:
    """Groups, of which those that hold faces of one owner are one."""
    owner_of = np.full(len(labels), -1, np.int64)
    np.maximum.at(owner_of, labels, owners)
    theirs = owner_of[labels]
    whole: Labels = np.where(theirs >= 0, firsts[theirs], labels)
    return whole


def _union(one: Pairs, other: Pairs) -> Pairs:
    return Pairs.of(
        np.concatenate([one.first, other.first]), np.concatenate([one.second, other.second])
    )


def _plans(snapshot: Snapshot, labels: Labels) -> list[_Plan]:
    """Which identities become part of which: of the dismissed one, or the oldest of those that
    are groups already, or else the oldest."""

    def rank(identity: int) -> tuple[bool, bool, int]:
        single = len(snapshot.faces[identity]) == 1
        return identity not in snapshot.dismissed, single, identity

    pairs = np.unique(np.stack([labels, snapshot.owners]), axis=1).T
    plans = []
    for start, end in _runs(pairs[:, 0]):
        if end - start > 1:
            into, *parts = sorted((int(owner) for owner in pairs[start:end, 1]), key=rank)
            photos = [
                key
                for identity in (into, *parts)
                for template_id in snapshot.faces[identity]
                for key in set(snapshot.photos[template_id])
            ]
            plans.append(_Plan(into, tuple(parts), len(photos) != len(set(photos))))
    return plans


def _runs(values: Labels) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of equal values."""
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = [0, *changes.tolist(), len(values)] if len(values) else []
    yield from pairwise(edges)


# Write


def _carry_out(
    gallery: Gallery, snapshot: Snapshot, plans: Sequence[_Plan], tell: Progress
) -> _Outcome:
    outcome = _Outcome()
    total = sum(len(plan.parts) for plan in plans)
    done = 0
    sizes = {plan.into: len(snapshot.faces[plan.into]) for plan in plans}
    for some in _in_portions(plans):
        with gallery.writing() as change:
            portion = _Portion(gallery, change, snapshot, sizes)
            for plan in some:
                portion.carry_out(plan)
            portion.write()
        outcome.joined += portion.joined
        outcome.overtaken += portion.overtaken
        outcome.same += portion.same
        done += sum(len(plan.parts) for plan in some)
        tell("joining", done, total)
    if outcome.same:
        gallery.compact()
    return outcome


def _in_portions(plans: Sequence[_Plan]) -> Iterator[list[_Plan]]:
    """Plans of ``_COMMIT`` parts together; a larger one comes in pieces."""
    some: list[_Plan] = []
    room = _COMMIT
    for plan in plans:
        parts = plan.parts
        while parts:
            some.append(_Plan(plan.into, parts[:room], plan.careful))
            parts, room = parts[room:], room - len(some[-1].parts)
            if not room:
                yield some
                some, room = [], _COMMIT
    if some:
        yield some


class _Portion:
    """One write under way; whoever is not as in the snapshot is left alone."""

    def __init__(
        self,
        gallery: Gallery,
        change: WriteTransaction,
        snapshot: Snapshot,
        sizes: dict[int, int],
    ) -> None:
        """sizes: templates that each group should have by now."""
        self._gallery = gallery
        self._change = change
        self._snapshot = snapshot
        self._sizes = sizes
        self._never: dict[int, set[int]] = {}
        for pair in all_pairs(change):
            for one, other in (pair, pair[::-1]):
                self._never.setdefault(one, set()).add(other)
        self._moves: list[dict[str, int]] = []
        self.joined = self.overtaken = self.same = 0

    def carry_out(self, plan: _Plan) -> None:
        """Note, or do, what has still to be done of it."""
        now = _as_of_now(self._change, (plan.into, *plan.parts))
        state = DISMISSED if plan.into in self._snapshot.dismissed else UNNAMED
        meant = set(self._snapshot.faces[plan.into])
        if plan.into not in now or now[plan.into][0] != state or not meant <= {*now[plan.into][1]}:
            self.overtaken += len(plan.parts)
            return
        grown = len(now[plan.into][1]) != self._sizes[plan.into]
        for part in plan.parts:
            as_it_was = now.get(part) == (UNNAMED, self._snapshot.faces[part])
            if not as_it_was or part in self._never.get(plan.into, ()):
                self.overtaken += 1
                continue
            if plan.careful or grown:
                result = join(self._gallery, self._change, part, plan.into)
                self._sizes[plan.into] += result.moved
                self.same += result.same
                if not result.moved and not result.same:  # all beside what came in meanwhile
                    self.overtaken += 1
                    continue
            else:
                self._moves.append({"part": part, "into": plan.into})
                self._sizes[plan.into] += len(self._snapshot.faces[part])
            self.joined += 1
            self._inherit(part, plan.into)

    def _inherit(self, part: int, into: int) -> None:
        if part in self._never:
            inherit(self._change, part, into)
            for other in self._never[part]:
                self._never.setdefault(into, set()).add(other)
                self._never[other].add(into)

    def write(self) -> None:
        """Give the templates that were noted to their new owners, all in one go."""
        if not self._moves:
            return
        revision = self._change.touch()
        self._change.connection.execute(
            update(TemplateRow)
            .where(TemplateRow.identity_id == bindparam("part"))
            .values(identity_id=bindparam("into"), revision=revision),
            self._moves,
        )
        remove_empty(self._change, [move["part"] for move in self._moves])


def _as_of_now(
    view: ReadTransaction, identity_ids: Sequence[int]
) -> dict[int, tuple[str, tuple[int, ...]]]:
    """(state, templates) of those of the identities that exist."""
    states: dict[int, str] = {}
    faces: dict[int, list[int]] = {}
    for at in range(0, len(identity_ids), _IN):
        some = identity_ids[at : at + _IN]
        states.update(
            (row[0], row[1])
            for row in view.connection.execute(
                select(IdentityRow.id, IdentityRow.state).where(IdentityRow.id.in_(some))
            )
        )
        query = select(TemplateRow.identity_id, TemplateRow.id).where(
            TemplateRow.identity_id.in_(some)
        )
        for owner, template_id in view.connection.execute(query.order_by(TemplateRow.id)):
            faces.setdefault(owner, []).append(template_id)
    return {i: (state, tuple(faces.get(i, ()))) for i, state in states.items()}
