"""Enrolment from photos: read, find the face, gate, crop, and one write for all.

The one place that the command line and the web page share. Imports the core and
this package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facerec.errors import ImageError
from facerec.image import DEFAULT_MAX_PIXELS, load_image, read_bytes
from facerec.pipeline import Pipeline
from facerec.quality import Gate
from facerec.types import EnrolResult, Face, Failure, Identity, Rejection, RGBImage
from gallery.gallery import Gallery
from gallery.ledger import enrolled_as_another, faces_of
from gallery.photo_work import FoundFace, area, is_full, keep_face, no_face, several_faces
from gallery.values import NewTemplate, check_contract, clean_name


@dataclass(frozen=True, eq=False)
class _Photo:
    """A photo that could be decoded."""

    source: str
    sha256: str
    image: RGBImage


@dataclass
class _Outcome:
    """What has become of the photos so far."""

    accepted: list[tuple[str, NewTemplate]] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    rejected: dict[str, tuple[Rejection, ...]] = field(default_factory=dict)
    failed: list[Failure] = field(default_factory=list)
    overridden: dict[str, tuple[Rejection, ...]] = field(default_factory=dict)


def enrol_photos(
    gallery: Gallery,
    pipeline: Pipeline,
    name: str,
    photos: Iterable[tuple[str, bytes | str | Path]],
    *,
    force: bool = False,
    keep_crops: bool = True,
    gate: Gate | None = None,
    faces: Mapping[str, int] | None = None,
    metadata: Mapping[str, Any] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[str], object] | None = None,
) -> EnrolResult:
    """Enrol under ``name`` the face of each photo that passes the gate.

    photos: (what to call it, its bytes or path). Each has an outcome of its own, and one
    that fails stops no other; those accepted are enrolled in one write. If none is, no
    person is made. faces: source -> which face of that photo, counted as
    ``pipeline.extract`` gives them; for the others:

    - no face, or a photo that cannot be read: failed, with code ``no_face``, ``unreadable``
      or, for a choice that is not there, ``no_such_face``;
    - several faces: rejected with code ``several_faces``;
    - what ``gate`` (None: the default one) has against the face: rejected with its codes;
    - the very face of the very photo that another person has: ``enrolled_as_another``;
    - a photo that this person has: a duplicate.

    force: enrol what would be rejected, of several faces the largest; the reasons are then
    in ``overridden``. progress: called with the source of each photo when it is through.

    Raises GalleryError for a bad name, ContractMismatch where the pipeline is not of the
    gallery's contract, and what the store and the models raise.
    """
    clean_name(name)
    check_contract(
        gallery.contract,
        pipeline.contract,
        gallery.where,
        gallery.pack_name,
        pipeline.pack.name,
    )
    person = _find(gallery, name)
    known = {t.content_sha256 for t in gallery.templates(person.id)} if person else set()
    outcome = _Outcome()
    chooser = _Chooser(gallery, person, gate or Gate(), faces or {}, keep_crops, force=force)
    for batch in _batches(_decoded(photos, known, max_pixels, outcome, progress)):
        found = pipeline.extract([photo.image for photo in batch])
        for photo, photo_faces in zip(batch, found, strict=True):
            face = chooser.choose(photo, photo_faces, outcome)
            if face is not None:
                template = face.template(photo.source, photo.sha256)
                outcome.accepted.append((photo.source, template))
            if progress is not None:
                progress(photo.source)
    enrolled: list[tuple[str, int]] = []
    if outcome.accepted:
        person, ids = gallery.enroll(name, [new for _, new in outcome.accepted], metadata=metadata)
        enrolled = _enrolled(gallery, person, set(ids), outcome)
    return EnrolResult(
        identity=person,
        enrolled=tuple(enrolled),
        duplicates=tuple(outcome.duplicates),
        rejected=outcome.rejected,
        failed=tuple(outcome.failed),
        overridden=outcome.overridden,
    )


class _Chooser:
    """Which face of a photo stands for the person, if any may."""

    def __init__(
        self,
        gallery: Gallery,
        person: Identity | None,
        gate: Gate,
        faces: Mapping[str, int],
        keep_crops: bool,
        *,
        force: bool,
    ) -> None:
        self._gallery = gallery
        self._person_id = person.id if person else None
        self._gate = gate
        self._faces = faces
        self._keep_crops = keep_crops
        self._force = force

    def choose(self, photo: _Photo, faces: Sequence[Face], outcome: _Outcome) -> FoundFace | None:
        """The face to enrol; else None, and the reason is in ``outcome``."""
        if not faces:
            outcome.failed.append(no_face(photo.source))
            return None
        choice = self._faces.get(photo.source)
        if choice is not None and not 0 <= choice < len(faces):
            reason = f"Face {choice} was chosen, but the photo has {len(faces)}, counted from 0."
            outcome.failed.append(Failure(photo.source, "no_such_face", reason))
            return None
        face = max(faces, key=area) if choice is None else faces[choice]
        objections: list[Rejection] = []
        several = choice is None and len(faces) > 1
        if several:
            objections.append(several_faces(len(faces), taken=self._force))
        if not several or self._force:  # else it is open which face is meant
            objections += self._gate.check(photo.image, face)
            objections += self._enrolled_as_another(photo, face)
        if objections:
            noted = outcome.overridden if self._force else outcome.rejected
            noted[photo.source] = (*noted.get(photo.source, ()), *objections)
            if not self._force:
                return None
        found = keep_face(photo.image, face, 0, self._keep_crops)
        if found.objections:  # there is nothing to keep, whatever was asked for
            outcome.rejected[photo.source] = found.objections
            return None
        return found

    def _enrolled_as_another(self, photo: _Photo, face: Face) -> Iterator[Rejection]:
        with self._gallery.reading() as view:
            known = faces_of(view, [photo.sha256]).get(photo.sha256, ())
        return enrolled_as_another(known, face.embedding, self._person_id)


def _find(gallery: Gallery, name: str) -> Identity | None:
    with gallery.reading() as view:
        return view.find(name)


def _decoded(
    photos: Iterable[tuple[str, bytes | str | Path]],
    known: set[str],
    max_pixels: int,
    outcome: _Outcome,
    progress: Callable[[str], object] | None,
) -> Iterator[_Photo]:
    """The photos that can be decoded and are not ``known``; the others go to ``outcome``."""
    for source, where in photos:
        try:
            data = where if isinstance(where, bytes) else read_bytes(where)
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 not in known:
                yield _Photo(source, sha256, load_image(data, max_pixels=max_pixels))
                continue
            outcome.duplicates.append(source)
        except ImageError as exc:
            outcome.failed.append(Failure(source, "unreadable", str(exc)))
        if progress is not None:
            progress(source)


def _batches(photos: Iterable[_Photo]) -> Iterator[list[_Photo]]:
    """Enough photos for the pipeline to share work, and not too many for the memory."""
    batch: list[_Photo] = []
    for photo in photos:
        batch.append(photo)
        if is_full([p.image for p in batch]):
            yield batch
            batch = []
    if batch:
        yield batch


def _enrolled(
    gallery: Gallery, person: Identity, ids: set[int], outcome: _Outcome
) -> list[tuple[str, int]]:
    """(source, template id) of what was new; the rest were duplicates after all."""
    new = {t.content_sha256: t.id for t in gallery.templates(person.id) if t.id in ids}
    enrolled = []
    for source, template in outcome.accepted:
        template_id = new.pop(template.content_sha256, None)
        if template_id is None:
            outcome.duplicates.append(source)
            outcome.overridden.pop(source, None)
        else:
            enrolled.append((source, template_id))
    return enrolled
