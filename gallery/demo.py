"""A gallery to try things on, from photos that installed packages ship; nothing is fetched.

Imports the core and this package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from facerec.errors import GalleryError
from facerec.image import load_image, read_bytes, to_jpeg
from facerec.pipeline import Pipeline
from gallery.enrolment import enrol_photos
from gallery.gallery import Gallery

GROUP_PHOTO = ("insightface", "data/images/t1.jpg")
PORTRAITS = {
    "Eileen Collins": ("skimage", "data/astronaut.png"),
    "Tom Hanks": ("insightface", "data/images/Tom_Hanks_54745.png"),
}
_GUEST_MARGIN = 0.45
"""Of the face box, on each side: one guest and no neighbour."""


def demo_photo(package: str, relative: str) -> Path:
    """A file of an installed package, found without importing it.

    Raises GalleryError where the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / relative if spec and spec.origin else None
    if path is None or not path.is_file():
        raise GalleryError(f"the demo needs {relative} of the package {package}; reinstall facerec")
    return path


def build_demo(
    gallery: Gallery, pipeline: Pipeline, progress: Callable[[str], object] | None = None
) -> list[str]:
    """Enrol the demo people that are not there yet; returns the names that were added.

    Two portraits, and the six guests of a group photo by their place from left to right.
    """
    known = {person.name for person in gallery.people(limit=None)}
    photos = {name: read_bytes(demo_photo(*where)) for name, where in PORTRAITS.items()}
    photos |= _guests(pipeline)
    added = []
    for name, data in photos.items():
        if name in known:
            continue
        # A guest's head may be turned: the demo wants all six.
        enrol_photos(gallery, pipeline, name, [(f"demo photo of {name}", data)], force=True)
        added.append(name)
        if progress is not None:
            progress(name)
    return added


def _guests(pipeline: Pipeline) -> dict[str, bytes]:
    """A JPEG of each face of the group photo, by name."""
    image = load_image(demo_photo(*GROUP_PHOTO))
    [found] = pipeline.detector.detect([image])
    boxes = found.boxes_xyxy[np.argsort(found.boxes_xyxy[:, 0])]
    crops = {}
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist(), 1):
        dx, dy = _GUEST_MARGIN * (x1 - x0), _GUEST_MARGIN * (y1 - y0)
        rows = slice(max(0, round(y0 - dy)), round(y1 + dy))
        columns = slice(max(0, round(x0 - dx)), round(x1 + dx))
        crops[f"Guest {i}"] = to_jpeg(np.ascontiguousarray(image[rows, columns]), 95)
    return crops
