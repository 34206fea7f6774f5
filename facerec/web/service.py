"""What the pages can do: over one gallery and one pipeline, in plain values, without Gradio.

Every method may raise FacerecError, whose text is a sentence for the page; ``sentence``
is the border where any exception becomes one. Methods are safe to call from several
threads: what belongs to one visitor is passed in and returned, never kept here.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from facerec.alignment import loose_crop
from facerec.draw import Mark, draw_decisions, draw_marks, shrink
from facerec.errors import (
    ConfigError,
    ContractMismatch,
    FacerecError,
    GalleryError,
    IdentityNotFound,
    ImageError,
)
from facerec.image import DEFAULT_MAX_PIXELS, load_image, to_jpeg
from facerec.pipeline import Pipeline
from facerec.types import Decision, EnrolResult, Face, FloatArray, Rejection, RGBImage
from facerec.web.unknown import UnknownService
from facerec.web.views import (
    About,
    CandidateView,
    Draft,
    Enrolment,
    FaceView,
    Identification,
    Limit,
    PeoplePage,
    PersonRow,
    PersonView,
    PhotoOutcome,
    TemplateView,
    Upload,
    Verification,
)
from gallery import Gallery, Removal
from gallery.enrolment import enrol_photos
from gallery.verification import verify_photos

_log = logging.getLogger(__name__)

PAGE_SIZE = 25
CANDIDATES = 5
MAX_PHOTOS = 50
"""Of one enrolment; more are for ``facerec index``."""
_THUMB_PX = 128
_PICTURE_PX = 1600


def sentence(exc: Exception) -> str:
    """What a visitor is told: our own errors as they are, others by a reference to the log."""
    if isinstance(exc, ContractMismatch):  # the gallery moved to another model under the app
        return f"{_sentence(str(exc))} Restart the app to do so."
    if isinstance(exc, FacerecError):
        return _sentence(str(exc))
    reference = secrets.token_hex(4)
    _log.error("unexpected error, reference %s", reference, exc_info=exc)
    return (
        "Something went wrong that facerec did not expect; nothing was changed by this step. "
        f"The server's log has the details under reference {reference}."
    )


def _sentence(text: str) -> str:
    """With a capital, unless it begins with a file's name or the like, and a full stop."""
    first = text.split(" ", 1)[0]
    if first.isalpha() and first.islower():
        text = first.capitalize() + text[len(first) :]
    return text if text.endswith((".", "!", "?")) else text + "."


class Service:
    """The pages' work. ``fmr`` is the rate that a page starts with.

    Raises ConfigError where the pack knows no threshold for ``fmr``.
    """

    def __init__(
        self,
        gallery: Gallery,
        pipeline: Pipeline,
        *,
        fmr: float = 1e-3,
        keep_crops: bool = True,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self._gallery = gallery
        self.unknown = UnknownService(gallery)
        self._pipeline = pipeline
        self._keep_crops = keep_crops
        self._max_pixels = max_pixels
        self.fmr = fmr
        table = pipeline.thresholds
        if table is not None:
            try:
                table.cosine_at(fmr)
            except ValueError as exc:
                raise ConfigError(f"fmr: {exc}") from exc

    @property
    def rates(self) -> tuple[float, ...]:
        """False-match rates to choose from, largest first; empty where none was measured."""
        table = self._pipeline.thresholds
        return tuple(sorted({*table.fmr, self.fmr}, reverse=True)) if table else ()

    def about(self) -> About:
        people, templates = self._gallery.count()
        pack, table = self._pipeline.pack, self._pipeline.thresholds
        return About(
            pack=pack.name,
            licence=pack.manifest.licence,
            contract_id=self._pipeline.contract.contract_id,
            device=self._pipeline.device,
            people=people,
            templates=templates,
            folder=self._gallery.where,
            measured_on=table.measured_on if table else None,
        )

    # Enrol

    def draft(self, uploads: Sequence[Upload], before: Sequence[Draft] = ()) -> tuple[Draft, ...]:
        """Find the faces of each photo; drafts of photos that were there ``before`` are kept."""
        if len(uploads) > MAX_PHOTOS:
            raise ImageError(
                f"{len(uploads)} photos are too many for one enrolment in the browser; choose at "
                f"most {MAX_PHOTOS}, or use 'facerec index' for a whole folder."
            )
        known = {draft.upload.path: draft for draft in before}
        return tuple(
            replace(known[upload.path], upload=upload)
            if upload.path in known
            else self._draft(upload)
            for upload in _named(uploads)
        )

    def _draft(self, upload: Upload) -> Draft:
        try:
            image = self._load(upload)
        except ImageError as exc:
            return Draft(upload, problem=_reason(str(exc), upload))
        [found] = self._pipeline.detector.detect([image])
        if not len(found):
            return Draft(upload, problem="No face was found in this photo.")
        order = np.argsort(found.boxes_xyxy[:, 0], kind="stable")
        crops = tuple(_thumb(image, box, points) for box, _, points in found.take(order))
        return Draft(
            upload,
            faces=tuple(int(i) for i in order),
            crops=crops,
            choice=0 if len(crops) == 1 else None,
        )

    def enrol(self, name: str, drafts: Sequence[Draft], *, force: bool = False) -> Enrolment:
        """Enrol the chosen faces under ``name``; every photo gets an outcome.

        force: enrol also what the gate refuses. Raises GalleryError for a bad name, ImageError
        for no photo.
        """
        if not name.strip():
            raise GalleryError("Whom do the photos show? Type a name first")
        if not drafts:
            raise ImageError("There is no photo yet; add at least one")
        result = enrol_photos(
            self._gallery,
            self._pipeline,
            name,
            [(draft.upload.name, Path(draft.upload.path)) for draft in drafts],
            force=force,
            keep_crops=self._keep_crops,
            max_pixels=self._max_pixels,
            faces={
                draft.upload.name: draft.faces[draft.choice]
                for draft in drafts
                if draft.choice is not None
            },
        )
        person = result.identity
        return Enrolment(
            person=person.name if person else None,
            templates=person.template_count if person else 0,
            photos=tuple(_outcome(draft, result) for draft in drafts),
        )

    # Identify and verify

    def identify(self, upload: Upload | None, limit: Limit) -> Identification:
        """Who is in the photo: every face, left to right, with its nearest people."""
        if upload is None:
            raise ImageError("There is no photo yet; choose one, or take one with the camera")
        started = time.perf_counter()
        image = self._load(upload)
        [found] = self._pipeline.extract([image])
        faces = sorted(found, key=lambda face: float(face.box_xyxy[0]))
        if not faces:
            raise ImageError(
                f"{upload.name}: no face was found in this photo. A face needs to be at least "
                "about 20 pixels wide, and not hidden"
            )
        decisions = self._gallery.identify(
            np.stack([face.embedding for face in faces]),
            CANDIDATES,
            fmr=limit.fmr,
            threshold=limit.threshold,
        )
        picture = draw_decisions(image, faces, decisions, max_side=_PICTURE_PX)
        views = tuple(
            self._face_view(image, face, decision)
            for face, decision in zip(faces, decisions, strict=True)
        )
        point = decisions[0]
        return Identification(
            picture=to_jpeg(picture, 88),
            faces=views,
            threshold=point.threshold,
            fmr=point.fmr,
            fpir=point.fpir,
            people=point.people,
            elapsed_s=time.perf_counter() - started,
        )

    def _face_view(self, image: RGBImage, face: Face, decision: Decision) -> FaceView:
        match = decision.match
        return FaceView(
            name=match.name if match else None,
            similarity=decision.candidates[0].similarity if decision.candidates else None,
            crop=_thumb(image, face.box_xyxy, face.landmarks),
            candidates=tuple(
                CandidateView(
                    candidate.name,
                    candidate.similarity,
                    candidate.similarity >= decision.threshold,
                    self._crop(candidate.template_id),
                )
                for candidate in decision.candidates
            ),
        )

    def verify(self, a: Upload | None, b: Upload | None, limit: Limit) -> Verification:
        """Whether the largest faces of two photos are one person's."""
        if a is None or b is None:
            missing = "two photos" if a is b else f"the {'first' if a is None else 'second'} photo"
            raise ImageError(f"Choose {missing} to compare")
        images = [self._load(a), self._load(b)]
        found = verify_photos(
            self._pipeline,
            images[0],
            images[1],
            fmr=limit.fmr,
            threshold=limit.threshold,
            max_pixels=self._max_pixels,
            names=(a.name, b.name),
        )
        assert found.face_b is not None and found.faces_b is not None
        pictures = [
            draw_marks(image, [Mark(face.box_xyxy, text)], max_side=_PICTURE_PX // 2)
            for image, face, text in zip(
                images, (found.face_a, found.face_b), ("A", "B"), strict=True
            )
        ]
        return Verification(
            same=found.same,
            similarity=found.similarity,
            threshold=found.threshold,
            fmr=found.fmr,
            pictures=(to_jpeg(pictures[0], 88), to_jpeg(pictures[1], 88)),
            names=(a.name, b.name),
            faces=(found.faces_a, found.faces_b),
        )

    # People

    def people(self, search: str = "", offset: int = 0) -> PeoplePage:
        """PAGE_SIZE people by name from ``offset``; a page that is gone becomes the last one."""
        total = self._gallery.count_people(search or None)
        last = max(0, (total - 1) // PAGE_SIZE * PAGE_SIZE)
        offset = min(max(0, offset) // PAGE_SIZE * PAGE_SIZE, last)
        rows = []
        for person in self._gallery.people(search or None, offset, PAGE_SIZE):
            first = self._gallery.templates(person.id)[:1] if person.template_count else []
            crop = self._crop(first[0].id) if first else None
            rows.append(PersonRow(person.id, person.name, person.template_count, crop))
        return PeoplePage(tuple(rows), total, offset, search, PAGE_SIZE)

    def names(self, limit: int = 200) -> tuple[str, ...]:
        """The first names of the gallery, to choose from."""
        return tuple(person.name for person in self._gallery.people(limit=limit))

    def person(self, person_id: int) -> PersonView:
        """Raises IdentityNotFound."""
        person = self._gallery.person(person_id)
        return PersonView(
            id=person.id,
            name=person.name,
            created_at=person.created_at,
            metadata=tuple(
                (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
                for key, value in person.metadata.items()
            ),
            templates=tuple(
                TemplateView(t.id, t.source, t.created_at, self._crop(t.id) if t.has_crop else None)
                for t in self._gallery.templates(person_id)
            ),
        )

    def rename(self, person_id: int, new: str) -> str:
        """The name as stored. Raises IdentityExists, IdentityNotFound, GalleryError."""
        return self._gallery.rename(person_id, new).name

    def merge_plan(self, person_id: int, into: str) -> tuple[str, str]:
        """The name that a merge drops and the one that it keeps. Raises as :meth:`merge`."""
        if not into.strip():
            raise GalleryError("Choose the person who shall get these photos")
        gone, kept = self._gallery.person(person_id), self._gallery.person(into)
        if gone.id == kept.id:
            raise GalleryError(f"{gone.name} cannot be merged with themselves; choose another name")
        return gone.name, kept.name

    def merge(self, person_id: int, into: str) -> int:
        """Give the person's photos to the person named ``into``, and return that one's id.

        Raises IdentityNotFound for either, GalleryError for one and the same.
        """
        self.merge_plan(person_id, into)
        return self._gallery.merge(self._gallery.person(into).id, person_id).id

    def remove(self, person_id: int) -> Removal:
        """Remove a person and all that is kept of them. Raises IdentityNotFound."""
        return self._gallery.remove(person_id)

    def remove_template(self, person_id: int, template_id: int) -> Removal:
        """Remove one photo of a person. Raises IdentityNotFound if it is not theirs."""
        if self._gallery.template(template_id).identity_id != person_id:
            raise IdentityNotFound(f"photo {template_id} is not one of this person's")
        return self._gallery.remove_template(template_id)

    # Photos

    def _load(self, upload: Upload) -> RGBImage:
        """Raises ImageError that calls the photo by the visitor's name for it."""
        if not Path(upload.path).is_file():
            raise ImageError(
                f"{upload.name}: the server deletes uploaded photos after a few minutes, and this "
                "one is gone; choose it again"
            )
        try:
            return load_image(upload.path, max_pixels=self._max_pixels)
        except ImageError as exc:
            raise ImageError(str(exc).replace(upload.path, upload.name)) from exc

    def _crop(self, template_id: int) -> bytes | None:
        """The template's crop as a small JPEG; None if none is kept or it was just removed."""
        try:
            data = self._gallery.crop(template_id)
        except IdentityNotFound:
            return None
        return None if data is None else to_jpeg(shrink(load_image(data), _THUMB_PX)[0], 85)


def _thumb(image: RGBImage, box: FloatArray, points: FloatArray) -> bytes:
    """A small JPEG of the face at ``box``."""
    crop, _ = loose_crop(image, box, points, max_side=_THUMB_PX)
    return to_jpeg(crop, 85)


def _outcome(draft: Draft, result: EnrolResult) -> PhotoOutcome:
    name = draft.upload.name
    crop = draft.crops[draft.choice] if draft.choice is not None else None
    if name in result.duplicates:
        return PhotoOutcome(name, "duplicate", crop=crop)
    if reasons := result.rejected.get(name):
        several = tuple(reason for reason in reasons if reason.code == "several_faces")
        # Until a face is chosen, what the gate says of the largest one is beside the point.
        return PhotoOutcome(name, "rejected", several or reasons, crop)
    for failure in result.failed:
        if failure.source == name:
            reason = _reason(failure.reason, draft.upload)
            return PhotoOutcome(name, "failed", (Rejection(failure.code, reason),))
    return PhotoOutcome(name, "enrolled", result.overridden.get(name, ()), crop)


def _reason(text: str, upload: Upload) -> str:
    """What an error says about a photo that the page names anyway, as a sentence."""
    for opening in (f"{upload.path}: ", f"{upload.name}: ", "the image: "):
        text = text.removeprefix(opening)
    return _sentence(text)


def _named(uploads: Sequence[Upload]) -> list[Upload]:
    """The same photos under names of their own: cameras call every picture image.jpg."""
    taken: set[str] = set()
    named = []
    for upload in uploads:
        name, n = upload.name, 2
        while name in taken:
            name, n = f"{upload.name} ({n})", n + 1
        taken.add(name)
        named.append(Upload(name, upload.path))
    return named
