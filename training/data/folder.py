"""Aligned chips in ROOT/IDENTITY/*.jpg. Imports the core and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from facerec.alignment import TEMPLATES, find_template
from facerec.errors import ConfigError
from facerec.folders import Listing, list_identities
from facerec.image import read_bytes
from training.data.sources import FaceSource, PackedStrings


class ImageFolder(FaceSource):
    """Chips that are aligned already, as files under ROOT/IDENTITY/.

    template, size: how they are aligned; None for what the images' own size says
    (112: arcface-112, 150: dlib-150). Raises ConfigError for a folder that holds no images,
    and for an unknown template or size.
    """

    def __init__(self, root: Path, template: str | None = None, size: int | None = None) -> None:
        listing = list_identities(Path(root))
        side = image_side(listing) if size is None else size
        if template is None:
            template = template_of_size(side, listing.root)
        self.root = listing.root
        self.origin = str(root)
        self.labels = np.array(listing.identity, dtype=np.int64)
        self.identities = listing.names
        self.template = find_template(template).name
        self.size = side or find_template(template).size
        self._paths = PackedStrings(listing.paths)

    def encoded(self, index: int) -> bytes:
        return read_bytes(self.root / self._paths[index])

    def name(self, index: int) -> str:
        return str(self.root / self._paths[index])


def template_of_size(size: int | None, origin: Path) -> str:
    """The template whose own chips have ``size`` pixels. Raises ConfigError if none has."""
    for template in TEMPLATES.values():
        if template.size == size:
            return template.name
    known = ", ".join(f"{t.name} ({t.size}x{t.size})" for t in TEMPLATES.values())
    found = f"images of {size}x{size}" if size else "images that are not square"
    raise ConfigError(
        f"{origin}: {found} are no template's own size; known are {known}. Name template and size, "
        "or have the photos aligned."
    )


def image_side(listing: Listing, looks: int = 16) -> int | None:
    """The side of the images if the readable ones among the first ``looks``, spread over the
    listing, are square and equal; else None."""
    step = max(1, len(listing.paths) // looks)
    sizes = set()
    for path in listing.paths[::step][:looks]:
        try:
            with Image.open(listing.root / path) as image:
                sizes.add(image.size)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    if len(sizes) == 1:
        width, height = sizes.pop()
        return width if width == height else None
    return None
