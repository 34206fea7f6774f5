"""What is to become of a photo that was looked at, given what the gallery has of it.

Imports the core and this package's items, ledger, outcomes, photo_work and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from facerec.types import Failure, Rejection
from gallery.items import displayable
from gallery.ledger import (
    DUPLICATE,
    ENROLLED,
    FAILED,
    NO_FACE,
    REJECTED,
    FileEntry,
    KnownFace,
    PhotoEntry,
    enrolled_as_another,
)
from gallery.outcomes import Seen
from gallery.photo_work import FoundFace, Looked, no_face
from gallery.values import name_key


@dataclass(eq=False)
class Plan:
    """What is to become of one file; filled in as it is decided.

    what: for the report. outcome: for the ledger. photo_id: of its content's entry there.
    displaced: entries of the same content that make way. faces: to be added; templates: how many
    were. superseded: templates of somebody without a name, whom one of the faces shows.
    stays_with: the entry that the file is of all the same, where it is refused under this name.
    """

    seen: Seen
    label: str
    what: str = FAILED
    outcome: str = FAILED
    photo_id: int | None = None
    displaced: list[PhotoEntry] = field(default_factory=list)
    faces: list[FoundFace] = field(default_factory=list)
    reasons: tuple[Rejection, ...] = ()
    failure: Failure | None = None
    superseded: list[int] = field(default_factory=list)
    stays_with: int | None = None
    templates: int = 0


def judge(plan: Plan, known: Sequence[KnownFace], *, force: bool) -> None:
    """Decide what was seen and looked at. known: the faces that the gallery has of that photo.

    force: a face may be somebody's although it is enrolled as another person.
    """
    looked = plan.seen.looked
    assert looked is not None  # who calls has looked
    source, name = plan.seen.source, plan.seen.item.name
    if looked.problem is not None:
        plan.failure = _failure(source, looked)
    if looked.problem is not None and not looked.seen:
        plan.what = FAILED
    elif not looked.seen and name is None:
        plan.what = NO_FACE
    elif not looked.seen:
        plan.what, plan.failure = FAILED, no_face(source)
    elif looked.objections:
        plan.what, plan.reasons = REJECTED, looked.objections
    elif name is None:
        _judge_unnamed(plan, looked.faces, known)
    else:
        _judge_named(plan, looked.faces, known, name, force=force)
    plan.outcome = plan.what


def keeps_old(outcome: str, seen: Seen, entry: FileEntry | PhotoEntry) -> bool:
    """Whether a file stays with the photo that it was: the same content, which was kept under
    another name, or none, and is refused under the new one."""
    return (
        entry.sha256 == seen.sha256
        and entry.outcome in (ENROLLED, DUPLICATE)
        and outcome in (REJECTED, FAILED, NO_FACE)
    )


def _judge_unnamed(plan: Plan, faces: Sequence[FoundFace], known: Sequence[KnownFace]) -> None:
    """Everybody becomes somebody unknown, unless the gallery has that face of that photo."""
    there = 0
    for face in faces:
        plan.reasons += face.objections
        is_there = any(k.is_face(face.face.embedding) for k in known)
        there += is_there
        if not face.objections and not is_there:
            plan.faces.append(face)
    plan.what = ENROLLED if plan.faces else DUPLICATE if there else REJECTED


def _judge_named(
    plan: Plan, faces: Sequence[FoundFace], known: Sequence[KnownFace], name: str, *, force: bool
) -> None:
    """The face, of which there is one, becomes the person's, unless it is somebody else's."""
    there = False
    for face in faces:
        same = [k for k in known if k.is_face(face.face.embedding)]
        if any(k.name is not None and name_key(k.name) == name_key(name) for k in same):
            there = True
            continue
        against = face.objections
        if not force:
            against += tuple(enrolled_as_another(same, face.face.embedding, None))
        plan.reasons += against
        if not against:
            plan.faces.append(face)
            plan.superseded += [k.template_id for k in same if k.name is None and k.template_id]
    plan.what = ENROLLED if plan.faces else DUPLICATE if there else REJECTED


def _failure(source: str, looked: Looked) -> Failure:
    code, reason = looked.problem or ("", "")
    if reason.startswith("the image"):
        reason = source + reason.removeprefix("the image")
    return Failure(source, code, displayable(reason))
