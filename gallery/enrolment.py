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

import numpy as np

from facerec.alignment import loose_crop
from facerec.errors import ImageError
from facerec.image import DEFAULT_MAX_PIXELS, load_image, read_bytes, to_jpeg
from facerec.pipeline import Pipeline
from facerec.quality import Gate
from facerec.types import EnrolResult, Face, Failure, Identity, Rejection, RGBImage
from gallery.gallery import Gallery
from gallery.values import NewTemplate, check_contract, clean_name

_BATCH_PHOTOS = 16
_BATCH_PIXELS = 64_000_000
_SAME_FACE = 0.9999
"""Cosine of one face of one photo with itself, embedded in another batch."""


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
    chooser = _Chooser(gallery, person, gate or Gate(), faces or {}, force=force)
    for batch in _batches(_decoded(photos, known, max_pixels, outcome, progress)):
        found = pipeline.extract([photo.image for photo in batch])
        for photo, photo_faces in zip(batch, found, strict=True):
            face = chooser.choose(photo, photo_faces, outcome)
            if face is not None:
                outcome.accepted.append((photo.source, _new_template(photo, face, keep_crops)))
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
        *,
        force: bool,
    ) -> None:
        self._gallery = gallery
        self._person_id = person.id if person else None
        self._gate = gate
        self._faces = faces
        self._force = force

    def choose(self, photo: _Photo, faces: Sequence[Face], outcome: _Outcome) -> Face | None:
        """The face to enrol; else None, and the reason is in ``outcome``."""
        if not faces:
            reason = "No face was found in this photo."
            outcome.failed.append(Failure(photo.source, "no_face", reason))
            return None
        choice = self._faces.get(photo.source)
        if choice is not None and not 0 <= choice < len(faces):
            reason = f"Face {choice} was chosen, but the photo has {len(faces)}, counted from 0."
            outcome.failed.append(Failure(photo.source, "no_such_face", reason))
            return None
        face = max(faces, key=_area) if choice is None else faces[choice]
        objections: list[Rejection] = []
        several = choice is None and len(faces) > 1
        if several:
            objections.append(_several_faces(len(faces), taken=self._force))
        if not several or self._force:  # else it is open which face is meant
            objections += self._gate.check(photo.image, face)
            objections += self._enrolled_as_another(photo, face)
        if not objections:
            return face
        noted = outcome.overridden if self._force else outcome.rejected
        noted[photo.source] = (*noted.get(photo.source, ()), *objections)
        return face if self._force else None

    def _enrolled_as_another(self, photo: _Photo, face: Face) -> Iterator[Rejection]:
        """One face cannot be two people; the photo, of a group, can show both."""
        [decision] = self._gallery.identify(face.embedding[None], k=2, threshold=_SAME_FACE)
        for candidate in decision.candidates:
            if candidate.similarity < _SAME_FACE or candidate.identity_id == self._person_id:
                continue
            if self._gallery.template(candidate.template_id).content_sha256 == photo.sha256:
                yield Rejection(
                    "enrolled_as_another",
                    f"This face of this photo is enrolled as {candidate.name!r}. Remove it "
                    "there, or merge the two people.",
                )


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
        pixels = sum(p.image.shape[0] * p.image.shape[1] for p in batch)
        if len(batch) >= _BATCH_PHOTOS or pixels >= _BATCH_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch


def _new_template(photo: _Photo, face: Face, keep_crop: bool) -> NewTemplate:
    crop_jpeg, landmarks = None, None
    if keep_crop:
        crop, landmarks = loose_crop(photo.image, face.box_xyxy, face.landmarks)
        crop_jpeg = to_jpeg(crop)
    return NewTemplate(
        embedding=face.embedding,
        source=photo.source,
        content_sha256=photo.sha256,
        det_score=min(1.0, max(0.0, face.det_score)),
        crop_jpeg=crop_jpeg,
        landmarks=landmarks,
    )


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


def _several_faces(count: int, *, taken: bool) -> Rejection:
    sentence = f"The photo shows {count} faces"
    sentence += "; the largest was taken." if taken else "; choose one, or crop the photo to one."
    return Rejection("several_faces", sentence)


def _area(face: Face) -> float:
    return float(np.prod(face.box_xyxy[2:] - face.box_xyxy[:2]))
