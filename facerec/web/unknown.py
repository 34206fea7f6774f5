"""What the page of the unknown can do, in plain values, without Gradio.

Every method may raise FacerecError. Methods are safe to call from several threads.
"""

from __future__ import annotations

import math

from facerec.errors import GalleryError
from facerec.types import Identity, Template
from facerec.web.views import GroupRow, GroupsPage, GroupView, TemplateView
from gallery import Gallery
from gallery.grouping import group_unknown
from gallery.joining import Joined
from gallery.unknown import Suggestion, Unknown

PAGE_SIZE = 12
_SAMPLES = 3
_SHOWN = 60
"""Faces of a group on its page: each is a picture within the page."""
_CHOICES = 100


class UnknownService:
    """Those of a gallery whom nobody has named."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._unknown = Unknown(gallery)

    def run(self) -> str:
        """Group the faces; a sentence on what came of it."""
        report = group_unknown(self._gallery)
        faces, groups = _count(report.faces, "unknown face"), _count(report.groups, "group")
        said = f"{faces} compared, {groups}"
        if report.overtaken:
            said += f"; {report.overtaken:,} were changed meanwhile, so group once more"
        return said + "."

    def page(self, offset: int = 0) -> GroupsPage:
        """The groups, largest first; an offset beyond the last is brought back."""
        counts = self._unknown.count()
        last = max(0, (counts.groups - 1) // PAGE_SIZE * PAGE_SIZE)
        offset = min(max(0, offset), last)
        groups = self._unknown.groups(offset=offset, limit=PAGE_SIZE)
        hints = self._unknown.suggestions([group.id for group in groups])
        rows = tuple(self._row(group, hints[group.id]) for group in groups)
        return GroupsPage(rows, counts.groups, counts.single, offset, PAGE_SIZE)

    def group(self, group_id: int) -> GroupView:
        group, hint = self._unknown.group(group_id), self._unknown.suggestion(group_id)
        return GroupView(
            group.id,
            group.name,
            group.template_count,
            None if hint is None else hint.name,
            None if hint is None else hint.person_id,
            "" if hint is None else _reason(hint),
            tuple(map(self._view, self._gallery.templates(group.id, limit=_SHOWN))),
        )

    def others(self, group_id: int) -> tuple[tuple[str, int], ...]:
        """(what it is called, id) of the largest other groups."""
        groups = self._unknown.groups(limit=_CHOICES)
        return tuple((_called(group), group.id) for group in groups if group.id != group_id)

    def name(self, group_id: int, name: str) -> str:
        """Say who it is; a sentence on what came of it."""
        person, joined = self._unknown.name(group_id, name)
        photos = _count(person.template_count, "photo")
        return f"This is {person.name}, with {photos} now." + _left(joined, person)

    def merge(self, group_id: int, other: int | None) -> str:
        """Say that another group is the same person."""
        if other is None:
            raise GalleryError("choose the group that is the same person")
        group, joined = self._unknown.merge(group_id, [other])
        return f"Now {_called(group)}." + _left(joined, group)

    def split(self, group_id: int, template_id: int) -> str:
        """Say that one face is somebody else."""
        new = self._unknown.split(group_id, [template_id])
        return f"That face is {new.name} now, and stays apart."

    def refuse(self, group_id: int, person_id: int | None) -> str:
        """Say that it is not that person, who was suggested when the group was shown."""
        if person_id is None:
            raise GalleryError("nobody is suggested for this group")
        _, person = self._unknown.keep_apart(group_id, person_id)
        return f"{person.name} is not suggested for this group again."

    def dismiss(self, group_id: int) -> str:
        """Say that nobody wants to see it."""
        [group] = self._unknown.dismiss([group_id])
        return (
            f"{group.name} is not shown any more; nothing was removed. "
            f"'facerec cluster dismiss {group.id} --undo' brings it back."
        )

    def _row(self, group: Identity, hint: Suggestion | None) -> GroupRow:
        some = self._gallery.templates(group.id, limit=_SAMPLES)
        crops = tuple(self._gallery.crop(template.id) for template in some)
        name = None if hint is None else hint.name
        return GroupRow(group.id, group.name, group.template_count, crops, name)

    def _view(self, template: Template) -> TemplateView:
        crop = self._gallery.crop(template.id)
        return TemplateView(template.id, template.source, template.created_at, crop)


def _called(group: Identity) -> str:
    return f"{group.name}, {_count(group.template_count, 'face')}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun if n == 1 else noun + 's'}"


def _left(joined: Joined, who: Identity) -> str:
    if not joined.left:
        return ""
    return f" {joined.left:,} were left out: their photos show {who.name} elsewhere already."


def _reason(hint: Suggestion) -> str:
    rate = "" if math.isnan(hint.fmr) else f" at a false-match rate of {hint.fmr:.2g}"
    return f"{hint.votes} of {hint.asked} faces are found to be theirs{rate}."
