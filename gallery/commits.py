"""What was looked at goes into the gallery: templates and ledger in one transaction.

Whatever was decided before is checked again inside the transaction, so that of two indexers on
one gallery neither does a photo that the other has done. Imports the core, SQLAlchemy, and this
package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from sqlalchemy import bindparam, insert, update

from facerec.types import Failure
from gallery.gallery import Gallery
from gallery.items import ArchiveEnd, ArchiveStart, Item, displayable, path_of_key
from gallery.judging import Plan, judge, keeps_old
from gallery.ledger import (
    DUPLICATE,
    ENROLLED,
    INCOMPLETE,
    PASSED_OVER,
    REMOVED,
    FileEntry,
    KnownFace,
    PhotoEntry,
    faces_of,
    files_at,
    files_of,
    label_of,
    members_of,
    naming_label,
    people_named,
    photos_of,
    remove_faces,
    remove_files,
    remove_photos,
    settled_by,
    unheld,
)
from gallery.leftovers import remove_left_over
from gallery.outcomes import MOVED, UNCHANGED, Committed, Event, Outcome, RunEnd, Seen
from gallery.photo_work import Looked
from gallery.records import WriteTransaction
from gallery.schema import FileRow, PhotoRow, TemplateRow
from gallery.values import metadata_json, name_key

_NEW_PHOTO = insert(PhotoRow).returning(PhotoRow.id)
_CHANGE_FILE = (
    update(FileRow)
    .where(FileRow.id == bindparam("which"))
    .values(
        {name: bindparam(f"new_{name}") for name in ("size", "mtime_ns", "photo_id", "archive_id")}
    )
)


def commit(gallery: Gallery, events: Sequence[Event], *, force: bool, retry: bool) -> Committed:
    """Put ``events`` into the gallery, all or nothing, in their order.

    force: take faces that are enrolled as another. retry: photos that were not kept before are
    judged by the new look. Raises GalleryError.
    """
    outcomes: list[Outcome] = []
    removed = people = 0
    for some in _once_each([event for event in events if not isinstance(event, RunEnd)]):
        with gallery.writing() as change:
            one = _Transaction(gallery, change, force=force, retry=retry)
            outcomes += one.run(some)
        removed += one.removed
        people += one.people
    if any(isinstance(event, RunEnd) for event in events):
        removed += remove_left_over(gallery)
    return Committed(tuple(outcomes), removed, people)


def _once_each(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Runs of events in which no photo's path comes twice."""
    some: list[Event] = []
    keys: set[str] = set()
    for event in events:
        key = event.item.key if isinstance(event, Seen) else None
        if key is not None and key in keys:
            yield some
            some, keys = [], set()
        some.append(event)
        if key is not None:
            keys.add(key)
    if some:
        yield some


class _Transaction:
    """One write under way."""

    def __init__(
        self, gallery: Gallery, change: WriteTransaction, *, force: bool, retry: bool
    ) -> None:
        self._gallery = gallery
        self._change = change
        self._force = force
        self._retry = retry
        self._files: dict[str, FileEntry] = {}
        self._photos: dict[str, list[PhotoEntry]] = {}
        self._holders: dict[int, list[FileEntry]] = {}
        self._faces: dict[str, list[KnownFace]] = {}
        self._people: dict[str, int] = {}  # name key -> id
        self._archives: dict[str, int] = {}  # key -> id
        self._claimed: set[int] = set()  # photos that files hold from now on
        self.removed = 0
        self.people = 0

    def run(self, events: Sequence[Event]) -> list[Outcome]:
        seen = [event for event in events if isinstance(event, Seen)]
        self._look_up(seen, events)
        self._change.touch()
        for event in events:
            if isinstance(event, ArchiveStart):
                self._start_archive(event)
        plans = []
        for one in seen:
            plans.append(self._plan(one))
            self._note_holder(plans[-1])
        self._write_templates(plans)
        self._write_files(plans)
        displaced = self._forget_files(plans)
        for event in events:
            if isinstance(event, ArchiveEnd):
                self._end_archive(event)
        self._remove_displaced(displaced)
        return [self._outcome(plan) for plan in plans]

    def _look_up(self, seen: Sequence[Seen], events: Sequence[Event]) -> None:
        contents = sorted({one.sha256 for one in seen})
        keys = {one.item.key for one in seen}
        keys |= {one.item.archive for one in seen if one.item.archive}
        keys |= {e.key for e in events if isinstance(e, (ArchiveStart, ArchiveEnd))}
        self._files = files_at(self._change, sorted(keys))
        self._archives = {e.key: e.id for e in self._files.values() if e.photo_id is None}
        self._photos = photos_of(self._change, contents)
        known = [photo.id for photos in self._photos.values() for photo in photos]
        self._holders = files_of(self._change, known)
        self._faces = faces_of(self._change, contents)
        names = {one.item.name for one in seen if one.item.name is not None}
        self._people = people_named(self._change, names)

    # Decide

    def _plan(self, seen: Seen) -> Plan:
        """Decide, and note it for the photos that come after."""
        plan = Plan(seen, label_of(seen.item.name))
        photos = self._photos.setdefault(seen.sha256, [])
        settled = settled_by(photos, plan.label, retry=self._retry and seen.looked is not None)
        if settled is not None:
            plan.photo_id, plan.what = settled.id, self._what_of_known(seen, settled)
            plan.outcome = settled.outcome
            return plan
        if seen.looked is None:  # who was to look at it did not; the next run does
            reason = f"{plan.seen.source}: not indexed; run the command again"
            plan.failure = Failure(plan.seen.source, "not_indexed", reason)
            self._pass_over(seen.item)
            return plan
        same = next((p for p in photos if p.label == plan.label), None)
        plan.displaced = [p for p in photos if self._is_displaced(p, plan)]
        away = {photo.id for photo in plan.displaced}
        known = self._faces.setdefault(seen.sha256, [])
        stay = [f for f in known if f.photo_id not in away or label_of(f.name) == plan.label]
        judge(plan, stay, force=self._force)
        known += [
            KnownFace(None, None, None, seen.item.name, face.face.embedding) for face in plan.faces
        ]
        plan.photo_id = self._write_photo(plan, seen.looked, same)
        entry = PhotoEntry(plan.photo_id, seen.sha256, plan.label, plan.what)
        self._photos[seen.sha256] = [p for p in photos if p is not same] + [entry]
        return plan

    def _what_of_known(self, seen: Seen, photo: PhotoEntry) -> str:
        if photo.outcome == REMOVED:
            return REMOVED
        holders = self._holders.get(photo.id, [])
        if any(entry.key == seen.item.key for entry in holders):
            return UNCHANGED
        entry = self._files.get(seen.item.key)
        if entry is not None and keeps_old(photo.outcome, seen, entry):
            return UNCHANGED
        return MOVED if holders and all(entry.is_gone() for entry in holders) else DUPLICATE

    def _note_holder(self, plan: Plan) -> None:
        """What the file holds now, and what no more: for those that come after."""
        entry = self._files.get(plan.seen.item.key)
        if entry and keeps_old(plan.outcome, plan.seen, entry):
            plan.stays_with = entry.photo_id
        else:
            plan.stays_with = next(
                (p.id for p in self._photos[plan.seen.sha256] if self._moved_here(p, plan)), None
            )
        holds = plan.stays_with or plan.photo_id
        if holds is None:
            return
        self._claimed.add(holds)
        if entry and entry.photo_id != holds and entry.photo_id in self._holders:
            others = [one for one in self._holders[entry.photo_id] if one.id != entry.id]
            self._holders[entry.photo_id] = others

    def _moved_here(self, photo: PhotoEntry, plan: Plan) -> bool:
        """Whether a file that is refused as it is called here was kept where it lay before."""
        if plan.photo_id is None or not keeps_old(plan.outcome, plan.seen, photo):
            return False
        holders = self._holders.get(photo.id, [])
        return photo.id not in self._claimed and all(entry.is_gone() for entry in holders)

    def _is_displaced(self, photo: PhotoEntry, plan: Plan) -> bool:
        """Whether the same content under another name makes way: the list, or the folders, now
        say otherwise. Names that people gave in the gallery do not make way."""
        if photo.label in ("", plan.label) or photo.outcome == REMOVED or plan.label == "":
            return False
        holders = self._holders.get(photo.id, [])
        return photo.id not in self._claimed and all(
            entry.key == plan.seen.item.key or entry.is_gone() for entry in holders
        )

    # Write

    def _write_photo(self, plan: Plan, looked: Looked, same: PhotoEntry | None) -> int:
        codes = {reason.code for reason in plan.reasons}
        if plan.failure is not None:
            codes.add(plan.failure.code)
        values = {
            "outcome": plan.what,
            "details": json.dumps({"faces": looked.seen, "codes": sorted(codes)}),
        }
        if same is not None:
            this = PhotoRow.id == same.id
            self._change.connection.execute(update(PhotoRow).where(this).values(**values))
            return same.id
        new = {
            "content_sha256": plan.seen.sha256,
            "label": plan.label,
            "created_at": datetime.now(timezone.utc),
            **values,
        }
        return self._change.connection.execute(_NEW_PHOTO, new).scalar_one()

    def _write_templates(self, plans: Sequence[Plan]) -> None:
        unnamed = sum(len(plan.faces) for plan in plans if plan.seen.item.name is None)
        new_ids = iter(self._change.add_unnamed(unnamed) if unnamed else ())
        pairs, owners_plans = [], []
        for plan in plans:
            name = plan.seen.item.name
            for face in plan.faces:
                owner = next(new_ids) if name is None else self._person(name, plan.seen.item)
                template = face.template(plan.seen.source, plan.seen.sha256, plan.photo_id)
                pairs.append((owner, template))
                owners_plans.append(plan)
        superseded = [i for plan in plans for i in plan.superseded]
        if superseded:
            self._mark_removal()
            remove_faces(self._change, superseded)
            self.removed += len(superseded)
        ids = self._change.add_templates(pairs)
        for plan, template_id in zip(owners_plans, ids, strict=True):
            plan.templates += template_id is not None
        for plan in plans:
            if plan.faces and not plan.templates:  # the person has that face of that photo
                plan.what = DUPLICATE

    def _person(self, name: str, item: Item) -> int:
        """The id of the person of that name, who is made if there is none."""
        key = name_key(name)
        if key not in self._people:
            details = metadata_json(item.metadata)
            self._people[key] = self._change.add_identity(name, details)
            self.people += 1
        elif item.metadata:
            person = self._change.identity(self._people[key])
            merged = {**person.metadata, **item.metadata}
            if merged != person.metadata:
                self._change.set_details(person.id, metadata_json(merged))
        return self._people[key]

    def _write_files(self, plans: Sequence[Plan]) -> None:
        new, changed = [], []
        for plan in plans:
            if plan.photo_id is None or plan.what == REMOVED:
                continue
            item, entry = plan.seen.item, self._files.get(plan.seen.item.key)
            row = {
                "size": item.size,
                "mtime_ns": item.mtime_ns,
                "photo_id": plan.stays_with or plan.photo_id,
                "archive_id": self._archives.get(item.archive) if item.archive else None,
            }
            if entry is None:
                new.append({"path": item.key, "label": "", **row})
            else:
                changed.append({"which": entry.id, **{f"new_{k}": v for k, v in row.items()}})
        if new:
            self._change.connection.execute(insert(FileRow), new)
        if changed:
            self._change.connection.execute(_CHANGE_FILE, changed)

    def _forget_files(self, plans: Sequence[Plan]) -> set[int]:
        """Files that are no more, or not written down again; the photos that made way."""
        displaced: set[int] = set()
        gone: list[int] = []
        for plan in plans:
            entry = self._files.get(plan.seen.item.key)
            if entry and plan.what == REMOVED:  # and the path is not written down again
                gone.append(entry.id)
            if plan.what == MOVED and plan.photo_id is not None:
                gone += self._follow_move(plan, plan.photo_id)
            elif plan.stays_with is not None and (
                entry is None or entry.photo_id != plan.stays_with
            ):
                gone += self._follow_move(plan, plan.stays_with)
            if plan.what in (ENROLLED, DUPLICATE):
                for photo in plan.displaced:
                    displaced.add(photo.id)
                    gone += [e.id for e in self._holders.get(photo.id, []) if e.is_gone()]
        remove_files(self._change, gone)
        return displaced

    def _follow_move(self, plan: Plan, photo_id: int) -> list[int]:
        """Templates say where their photo lies now; the ids of files that are no more."""
        holders = self._holders.get(photo_id, [])
        if plan.seen.item.kind == "photo":
            sources = [displayable(path_of_key(entry.key)) for entry in holders]
            of_photo = (TemplateRow.photo_id == photo_id) & TemplateRow.source.in_(sources)
            self._change.connection.execute(
                update(TemplateRow).where(of_photo).values(source=plan.seen.source)
            )
        return [entry.id for entry in holders]

    def _start_archive(self, event: ArchiveStart) -> None:
        values = {"size": INCOMPLETE, "mtime_ns": 0, "label": naming_label(event.naming)}
        if event.key in self._archives:
            this = FileRow.id == self._archives[event.key]
            self._change.connection.execute(update(FileRow).where(this).values(**values))
            return
        new = insert(FileRow).values(path=event.key, photo_id=None, **values)
        self._archives[event.key] = self._change.connection.execute(
            new.returning(FileRow.id)
        ).scalar_one()

    def _pass_over(self, item: Item) -> None:
        """An archive of which a member was not indexed has to be read again."""
        if (archive_id := self._archives.get(item.archive or "")) is not None:
            this = FileRow.id == archive_id
            self._change.connection.execute(update(FileRow).where(this).values(size=PASSED_OVER))

    def _end_archive(self, event: ArchiveEnd) -> None:
        """Now it is complete, but for members passed over; it holds no others any more."""
        archive_id = self._archives[event.key]
        this = (FileRow.id == archive_id) & (FileRow.size != PASSED_OVER)
        self._change.connection.execute(
            update(FileRow).where(this).values(size=event.size, mtime_ns=event.mtime_ns)
        )
        members = members_of(self._change, archive_id).values()
        remove_files(self._change, [e.id for e in members if e.key not in event.seen])

    def _remove_displaced(self, photo_ids: set[int]) -> None:
        gone = unheld(self._change, photo_ids)
        if gone:
            self._mark_removal()
            self.removed += remove_photos(self._change, gone, displaced=True)

    def _mark_removal(self) -> None:
        self._gallery.mark_removal(self._change)

    def _outcome(self, plan: Plan) -> Outcome:
        entry = self._files.get(plan.seen.item.key)
        replaced = entry is not None and entry.photo_id not in (plan.photo_id, plan.stays_with)
        looked = plan.seen.looked
        return Outcome(
            source=plan.seen.source,
            what=plan.what,
            faces=looked.seen if looked else 0,
            templates=plan.templates,
            reasons=plan.reasons,
            failure=plan.failure,
            looked=looked is not None,
            again=replaced and plan.what not in (UNCHANGED, MOVED, REMOVED),
        )
