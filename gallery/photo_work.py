"""From the bytes of photos to what a gallery keeps of their faces; no file, no database.

Whoever holds a pipeline can do this, in a thread or on another machine, with the same result:
everything here can be pickled. Enrolment and indexing share it. Imports the core and this
package's values and videos.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from facerec.alignment import loose_crop
from facerec.errors import ImageError
from facerec.image import DEFAULT_MAX_PIXELS, load_image, to_jpeg
from facerec.pipeline import Pipeline
from facerec.quality import Gate, measure
from facerec.types import Face, Failure, FloatArray, Rejection, RGBImage
from gallery.values import NewTemplate
from gallery.videos import (
    DEFAULT_FPS,
    Frame,
    Likeness,
    Shot,
    Tracks,
    Video,
    batches,
    shot_quality,
)

_DEFAULT_GATE = Gate()
BATCH_PHOTOS = 16
BATCH_PIXELS = 64_000_000
"""Enough photos for the pipeline to share work, and not too many for the memory."""
_UNUSABLE = (ValueError, MemoryError, cv2.error)
"""What the look at one image may raise and that at the next may not."""


@dataclass(frozen=True)
class LookOptions:
    """How photos are looked at.

    one_person: a photo is to show one person, so that of several faces none is taken.
    gate: what faces have to pass; None: nothing, and of several faces the largest is taken.
    keep_crops: keep a loose crop of each face. video_fps: frames a second that are looked at.
    """

    one_person: bool = False
    gate: Gate | None = _DEFAULT_GATE
    keep_crops: bool = True
    max_pixels: int = DEFAULT_MAX_PIXELS
    video_fps: float = DEFAULT_FPS


@dataclass(frozen=True, eq=False)
class FoundFace:
    """A face that might be kept.

    number: which of its photo's faces, as they were detected; of a video, which track.
    objections: of the gate; empty where the face may be kept. crop_jpeg, landmarks: the loose
    crop, and (5, 2) float32 in its pixels; None where none is kept. t_s: of a video's frame.
    """

    face: Face
    number: int
    objections: tuple[Rejection, ...] = ()
    crop_jpeg: bytes | None = None
    landmarks: FloatArray | None = None
    t_s: float | None = None

    def template(self, source: str, sha256: str, photo_id: int | None = None) -> NewTemplate:
        """As the gallery takes it. sha256: of the photo's bytes, hexadecimal."""
        return NewTemplate(
            embedding=self.face.embedding,
            source=source if self.t_s is None else f"{source}#t={self.t_s:.2f}",
            content_sha256=sha256,
            det_score=min(1.0, max(0.0, self.face.det_score)),
            crop_jpeg=self.crop_jpeg,
            landmarks=self.landmarks,
            face=self.number,
            box_xyxy=self.face.box_xyxy,
            photo_id=photo_id,
        )


@dataclass(frozen=True, eq=False)
class Looked:
    """What a look at one photo or video found.

    faces: those that might be kept. seen: how many faces there were. objections: against the
    photo as a whole, such as several_faces. problem: (code, sentence) where it could not be
    read, or not all of it.
    """

    faces: tuple[FoundFace, ...] = ()
    seen: int = 0
    objections: tuple[Rejection, ...] = ()
    problem: tuple[str, str] | None = None


class PhotoWork:
    """A pipeline put to one way of looking. Threads may share it."""

    def __init__(self, pipeline: Pipeline, options: LookOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        self._likeness = Likeness.of(pipeline.thresholds)

    def look(self, photos: Sequence[bytes]) -> list[Looked]:
        """What is in each photo, given as a file's bytes. Raises ModelError.

        A photo that cannot be decoded has the problem ``unreadable``; it stops no other.
        """
        results: list[Looked | None] = [None] * len(photos)
        for indices, images in self._decoded(photos, results):
            for index, image, found in zip(indices, images, self._extract(images), strict=True):
                results[index] = found if isinstance(found, Looked) else self.keep(image, found)
        return [looked for looked in results if looked is not None]

    def watch(self, path: Path, stop: threading.Event | None = None) -> Looked:
        """Who is in a video, each person once as far as can be told. Raises ModelError, and
        CancelledError when ``stop`` is set before the end.
        """
        tracks = Tracks(self._likeness)
        best: dict[int, FoundFace] = {}  # id of the track -> its best shot
        try:
            video = Video(path, self.options.video_fps, self.options.max_pixels, stop)
            for frames in batches(video):
                found = self.pipeline.extract([frame.image for frame in frames])
                for frame, faces in zip(frames, found, strict=True):
                    self._follow(tracks, frame, faces, best)
        except ImageError as exc:
            return Looked(problem=("unreadable", str(exc)))
        except _UNUSABLE as exc:
            return Looked(problem=("unusable", f"{path}: faces cannot be read: {exc}"))
        shots = tuple(
            replace(best[id(track)], number=number) for number, track in enumerate(tracks.all)
        )
        problem = ("damaged_video", video.damage) if video.damage else None
        return replace(self._choose_shots(shots), problem=problem)

    def _decoded(
        self, photos: Sequence[bytes], results: list[Looked | None]
    ) -> Iterator[tuple[list[int], list[RGBImage]]]:
        """Batches of (indices, images); what cannot be decoded goes to ``results``."""
        indices: list[int] = []
        images: list[RGBImage] = []
        for i, data in enumerate(photos):
            try:
                images.append(load_image(data, max_pixels=self.options.max_pixels))
                indices.append(i)
            except ImageError as exc:
                results[i] = Looked(problem=("unreadable", str(exc)))
            if is_full(images):
                yield indices, images
                indices, images = [], []
        if images:
            yield indices, images

    def _extract(self, images: Sequence[RGBImage]) -> list[tuple[Face, ...] | Looked]:
        """The faces of each image; if one makes the pipeline fail, what is wrong with that one."""
        try:
            return list(self.pipeline.extract(images))
        except _UNUSABLE as exc:
            if len(images) == 1:
                return [Looked(problem=("unusable", f"the image: faces cannot be read: {exc}"))]
            return [found for image in images for found in self._extract([image])]

    def keep(self, image: RGBImage, faces: Sequence[Face]) -> Looked:
        """What may be kept of an image whose faces were found."""
        options = self.options
        if options.one_person and len(faces) > 1:
            if options.gate is not None:
                return Looked(seen=len(faces), objections=(several_faces(len(faces)),))
            largest = max(range(len(faces)), key=lambda i: area(faces[i]))
            return Looked((self._found(image, faces[largest], largest),), seen=len(faces))
        kept = tuple(self._found(image, face, i) for i, face in enumerate(faces))
        return Looked(kept, seen=len(faces))

    def _found(self, image: RGBImage, face: Face, number: int) -> FoundFace:
        objections = self.options.gate.check(image, face) if self.options.gate else ()
        if objections:
            return FoundFace(face, number, objections)
        return keep_face(image, face, number, self.options.keep_crops)

    def _follow(
        self, tracks: Tracks, frame: Frame, faces: Sequence[Face], best: dict[int, FoundFace]
    ) -> None:
        found = [self._found(frame.image, face, 0) for face in faces]
        shots = [
            Shot(face, frame.t_s, (not f.objections, shot_quality(measure(frame.image, face))))
            for f, face in zip(found, faces, strict=True)
        ]
        for f, shot, track in zip(found, shots, tracks.add(shots), strict=True):
            if track.best is shot:
                best[id(track)] = replace(f, t_s=frame.t_s)

    def _choose_shots(self, shots: tuple[FoundFace, ...]) -> Looked:
        if self.options.one_person and len(shots) > 1:
            if self.options.gate is not None:
                return Looked(seen=len(shots), objections=(several_faces(len(shots)),))
            largest = max(shots, key=lambda shot: area(shot.face))
            return Looked((largest,), seen=len(shots))
        return Looked(shots, seen=len(shots))


def keep_face(image: RGBImage, face: Face, number: int, keep_crop: bool) -> FoundFace:
    """The face with its loose crop, or without one.

    A face outside of the image has nothing to keep: its objection is ``outside``.
    """
    if not keep_crop:
        return FoundFace(face, number)
    try:
        crop, landmarks = loose_crop(image, face.box_xyxy, face.landmarks)
    except ValueError as exc:
        return FoundFace(face, number, (Rejection("outside", f"No part of it can be kept: {exc}"),))
    return FoundFace(face, number, (), to_jpeg(crop), landmarks)


def is_full(images: Sequence[RGBImage]) -> bool:
    """Whether a batch of images is large enough to be looked at."""
    pixels = sum(image.shape[0] * image.shape[1] for image in images)
    return len(images) >= BATCH_PHOTOS or pixels >= BATCH_PIXELS


def no_face(source: str) -> Failure:
    """What is wrong with a photo that shows nobody."""
    return Failure(source, "no_face", "No face was found in this photo.")


def several_faces(count: int, *, taken: bool = False) -> Rejection:
    """What is wrong with a photo of ``count`` people that is to show one."""
    sentence = f"The photo shows {count} faces"
    sentence += "; the largest was taken." if taken else "; choose one, or crop the photo to one."
    return Rejection("several_faces", sentence)


def area(face: Face) -> float:
    """Of the face's box, square pixels."""
    return float(np.prod(face.box_xyxy[2:] - face.box_xyxy[:2]))
