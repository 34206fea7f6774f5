"""One to one: do two photos show one person, is this the person they claim to be?

Imports the core and this package.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from facerec.errors import ImageError
from facerec.image import DEFAULT_MAX_PIXELS, ImageSource, load_image
from facerec.pipeline import Pipeline
from facerec.types import Comparison, Face, RGBImage
from gallery.gallery import Gallery
from gallery.policy import operating_point


def largest_face(faces: tuple[Face, ...], name: str) -> Face:
    """The face with the largest box. Raises ImageError, naming the photo, if there is none."""
    if not faces:
        raise ImageError(f"{name}: no face was found in it")
    return max(faces, key=lambda f: float(np.prod(f.box_xyxy[2:] - f.box_xyxy[:2])))


def verify_photos(
    pipeline: Pipeline,
    a: ImageSource,
    b: ImageSource,
    *,
    fmr: float | None = None,
    threshold: float | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    names: tuple[str, str] | None = None,
) -> Comparison:
    """Compare the largest faces of two photos at the threshold for ``fmr`` (default 1e-3).

    Raises ImageError for a photo that cannot be read or shows no face, ConfigError for a
    rate that was not measured.
    """
    name_a, name_b = names or (_name(a, "photo A"), _name(b, "photo B"))
    point = operating_point(
        pipeline.thresholds, 1, pack_name=pipeline.pack.name, fmr=fmr, threshold=threshold
    )
    images = [load_image(source, max_pixels=max_pixels) for source in (a, b)]
    faces_a, faces_b = pipeline.extract(images)
    face_a, face_b = largest_face(faces_a, name_a), largest_face(faces_b, name_b)
    similarity = float(np.clip(face_a.embedding @ face_b.embedding, -1, 1))
    return Comparison(
        name_a,
        name_b,
        similarity,
        point.threshold,
        point.fmr,
        len(faces_a),
        len(faces_b),
        face_a,
        face_b,
    )


def verify_with_person(
    gallery: Gallery,
    pipeline: Pipeline,
    a: ImageSource,
    person: str,
    *,
    fmr: float | None = None,
    threshold: float | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Comparison:
    """Compare the largest face of a photo with the nearest template of an enrolled person.

    Raises IdentityNotFound for a name that is not in the gallery, and what
    :func:`verify_photos` raises.
    """
    name = _name(a, "the photo")
    gallery.person(person)  # an unknown name is found out before any model runs
    image: RGBImage = load_image(a, max_pixels=max_pixels)
    [faces] = pipeline.extract([image])
    face = largest_face(faces, name)
    decision = gallery.verify(person, face.embedding, fmr=fmr, threshold=threshold)
    similarity = decision.candidates[0].similarity if decision.candidates else -math.inf
    return Comparison(
        name, person, similarity, decision.threshold, decision.fmr, len(faces), None, face, None
    )


def _name(source: ImageSource, otherwise: str) -> str:
    return str(source) if isinstance(source, (str, Path)) else otherwise
